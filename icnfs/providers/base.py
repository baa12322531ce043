"""The one interface to a place where objects are kept, as a contract: what every kind of provider owes its callers.

It knows nothing of shares, segments or keys: objects are named byte strings.  `tests/providers` holds every kind, and
every wrapper around one, to what is written here.

Obligations of all methods:

1. They raise `ObjectMissingError`, `ProviderAwayError`, `ProviderFullError`, `ProviderRefusedError` or
   `ProviderLiesError`, and nothing else but `trio.Cancelled`, and `ValueError` for arguments that no caller may pass.
2. They never wait where they cannot be cancelled: a hanging disk costs its own operations, and nobody else's.
3. A call that was cancelled, or that raised `ProviderAwayError`, may have taken effect, or take effect later.  Hence
   callers never reuse the name of an object that they deleted, and put only equal bytes under a name twice, or bytes
   of which either may win.
4. They may be called from many tasks at once.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from icnfs.errors import ProviderLiesError
from icnfs.limits import LIST_PAGE, MIB, OBJECT_MAX

Buffer: TypeAlias = bytes | bytearray | memoryview
Names: TypeAlias = list[str]
"""So that a class with a method `list` can say what its others return."""

OBJECT_NAME_MAX: Final = 200
"""Characters in an object's name: well below NAME_MAX and every store's own bound, prefix included."""

LISTED_MAX: Final = 4_000_000
"""Names that are listed page by page: a volume of 64 TiB in 16 MiB segments, and an end to endless answers."""

LISTED_BYTES: Final = 48 * MIB
"""Bytes of names that `list_all` takes: some 700,000 heads, which cross from process to process as one answer."""

COMPONENT: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""What an object's name has between its slashes."""

_NAME: Final = re.compile(f"{COMPONENT.pattern}(?:/{COMPONENT.pattern})*")
_PREFIX: Final = re.compile(f"(?:{COMPONENT.pattern}/)*(?:{COMPONENT.pattern})?")


@final
class Pieces:
    """An object's bytes in parts, one after the other, **none of which ever changes again**.

    So a provider stores them as they lie, and may refer to them for as long as it needs: nothing is joined or copied.
    """

    __slots__ = ("_size", "parts")

    def __init__(self, *parts: bytes | memoryview) -> None:
        self.parts: Final = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


Data: TypeAlias = Buffer | Pieces


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a provider says of its room; None where it does not say."""

    free_bytes: int | None
    total_bytes: int | None
    pool: str
    """Two providers that answer the same string share one disk, and its fate."""


def is_name(name: str) -> bool:
    """True for `[a-z0-9][a-z0-9._-]*`, components parted by `/`, 200 characters at most, no `..` anywhere."""
    return len(name) <= OBJECT_NAME_MAX and ".." not in name and _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """`name` itself, or ValueError: the caller's bug, for names are made by icnfs alone."""
    if not is_name(name):
        raise ValueError(f"not an object name: {name[:OBJECT_NAME_MAX]!r}")
    return name


def check_prefix(prefix: str) -> str:
    """`prefix` itself when it is empty or the beginning of some object name, else ValueError."""
    if len(prefix) > OBJECT_NAME_MAX or ".." in prefix or _PREFIX.fullmatch(prefix) is None:
        raise ValueError(f"not the beginning of an object name: {prefix[:OBJECT_NAME_MAX]!r}")
    return prefix


def check_range(offset: int, length: int | None) -> None:
    """ValueError unless 0 <= offset and, where given, 0 <= length <= OBJECT_MAX."""
    if offset < 0 or (length is not None and not 0 <= length <= OBJECT_MAX):
        raise ValueError(f"not a range of an object: offset {offset}, length {length}")


def check_size(data: Data) -> None:
    """ValueError where `data` is larger than any object may be."""
    if len(data) > OBJECT_MAX:
        raise ValueError(f"{len(data)} bytes are more than an object may have")


def exact_length(provider: str, name: str, size: int, offset: int, length: int | None) -> int:
    """How many bytes a `get` of this range has to return from an object of `size` bytes.

    Raises `ProviderLiesError` where the object is too short for the range, or longer than OBJECT_MAX in all.
    """
    wanted = size - offset if length is None else length
    if wanted < 0 or offset + wanted > size:
        raise ProviderLiesError(provider, f"object {name} is cut short: it ends at {size}, not at {offset + wanted}")
    if wanted > OBJECT_MAX:
        raise ProviderLiesError(provider, f"object {name} is longer than any object can be: {size} bytes")
    return wanted


class Provider(ABC):
    """One place that keeps objects.  Rules 1 to 4 of the module hold for every method."""

    def __init__(self, name: str) -> None:
        self.name = name
        """The provider's name in the TOML; every error carries it."""

    @abstractmethod
    async def put(self, name: str, data: Data) -> None:
        """Store `data` (at most OBJECT_MAX bytes) under `name`, over what was there.

        Atomic: at every instant, and after every crash on either side, a reader finds the old object (or none) or the
        new one, whole.  Durable when it returns.  Idempotent.  It keeps no reference to a buffer past the call, not
        even when cancelled; to `Pieces` it may.  No caller puts a `name` below another object, or above one: a kind
        that cannot hold both refuses the second (`ProviderRefusedError`), and none loses the first.
        """

    @abstractmethod
    async def put_new(self, name: str, data: Data) -> bool:
        """As `put`, but only where there is no such object: False where there is one, which stays as it is.

        That one may be this very call's, whose first answer was lost: compare what is there.  Of several callers at
        once at most one is told True.  An S3 server that knows no conditional writes replaces what is there, and
        answers True: `icnfs provider test` tells.
        """

    @abstractmethod
    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Exactly `length` bytes from `offset`, or all from there; `ProviderLiesError` where the object is shorter."""

    @abstractmethod
    async def size(self, name: str) -> int:
        """The object's bytes."""

    @abstractmethod
    async def delete(self, name: str) -> bool:
        """Remove the object; a missing one is no error.  Durable when it returns.

        True where the provider says that it only hid it and keeps what it was: then its bytes are still there.
        """

    @abstractmethod
    async def list(self, prefix: str, after: str = "") -> list[str]:
        """The names that begin with `prefix` and sort after `after`, sorted: the first LIST_PAGE of them.

        A shorter page is the last one.  Only names of whole objects are listed, and only names that pass
        `check_name`.  `prefix` is compared as a string: it may end within a component.
        """

    @abstractmethod
    async def probe(self) -> Capacity:
        """Ask whether the provider answers, and what room it has."""

    def moved(self) -> bool:
        """Whether it is known that bytes of objects have arrived there since this was last asked."""
        return False

    async def close(self) -> None:  # noqa: B027 - most kinds have nothing to let go of
        """Let go of connections; the provider is not used afterwards."""


def disordered(provider: str, prefix: str) -> ProviderLiesError:
    """A page of the listing of `prefix` is none."""
    what = f"its listing of {prefix!r} is out of order, or not of it"
    return ProviderLiesError(provider, f"{what}; ask the provider, or leave it")


async def list_all(provider: Provider, prefix: str, after: str = "", *, most: int = LISTED_BYTES) -> list[str]:
    """Every page of `provider.list(prefix, after)`; `ProviderLiesError` past `most` bytes of names, or out of order."""
    names: list[str] = []
    last, size = after, 0
    full = True
    while full:
        page = await list_page(provider, prefix, last)
        full = len(page) >= LIST_PAGE
        last = page[-1] if page else last
        names += page
        size += sum(len(name) + 1 for name in page)
        if size > most:
            raise ProviderLiesError(provider.name, f"its listing of {prefix!r} does not end within {most} bytes")
    return names


async def list_page(provider: Provider, prefix: str, after: str = "") -> list[str]:
    """One page of `provider.list(prefix, after)`; `ProviderLiesError` where it is out of order, or not of it."""
    page = await provider.list(prefix, after)
    last = after
    for name in page:
        if not is_name(name) or not name.startswith(prefix) or name <= last:
            raise disordered(provider.name, prefix)
        last = name
    return page
