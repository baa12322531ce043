"""What lies at providers and nothing names: shares that crashes left, and objects that no volume made.

A crash between an upload and its head, or a machine that is lost with its notes of what is to be deleted, leaves shares
that nothing names: *orphans*.  An object under a name that icnfs gives nothing, or under a share's that is none, is
*foreign*.  Both are found by listing; orphans are deleted when asked for.  Promises:

1. Named is what local state names, the last head, notes of what is to be deleted, or what attempts to publish have
   stored.  It is looked up before the listing and, of what is listed and was not named, again after it.
2. Only an orphan is deleted that an earlier run of this machine, a grace ago, found to be one, and that begins as a
   share does and has a share's size.  Foreign objects, heads, key slots and marks are left alone.
3. Before each deletion the heads are listed, while nothing is published or restored: a machine that was overtaken
   deletes nothing, nor does one with a head at some provider that was not published: a recovery may take that.  What
   repair stored meanwhile under a name that was an orphan's stays.

Memory: 8 bytes for each share that is named, and what is found of strays up to STRAYS_MAX.
"""

from __future__ import annotations

import hashlib
import logging
import re
import struct
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from icnfs.errors import DegradedError, FormatError, IcnfsError, ObjectMissingError, UsageError
from icnfs.format import head as head_format
from icnfs.format import marker
from icnfs.format import share as share_format
from icnfs.format.records import Table
from icnfs.format.segment import SegmentInfo
from icnfs.state import cut as cuts
from icnfs.state.store import Store
from icnfs.volume import condemned
from icnfs.volume.collect import DELETE_SECONDS, DELETES_AT_ONCE, walk
from icnfs.volume.fence import Fence, keep
from icnfs.volume.heads import Heads
from icnfs.volume.keyring import is_slot_name
from icnfs.volume.listing import pages
from icnfs.volume.network import SHARES_PREFIX, Network
from icnfs.volume.publish import Publisher
from icnfs.volume.together import together

log = logging.getLogger(__name__)

SETTING: Final = "orphans"
"""The setting that holds when which orphan was first seen."""

STRAYS_MAX: Final = 100_000
"""Orphans, and foreign objects, that one run deals with of each provider; it says where there are more."""

SEEN_MAX: Final = 100_000
"""Orphans of which it is remembered when they were first seen; the oldest are."""

PEEKS_AT_ONCE: Final = 4
HELD_AT_ONCE: Final = 256
"""Orphans deleted while publisher and repair stand still."""

PEEK_SECONDS: Final = 60.0
SHOWN: Final = 5
"""Foreign objects of each provider that are named."""

_SHARE: Final = re.compile(rf"{SHARES_PREFIX}[a-z2-7]{{2}}/[a-z2-7]{{50}}")
_SEEN: Final = struct.Struct(">12sI")
"""Which provider and object (4 and 8 bytes of hashes), and when it was first seen (Unix time in seconds)."""
_WORD: Final = 2**64 - 1


@dataclass(frozen=True)
class Strays:
    """What was found at one provider: objects and their bytes.  `waiting` orphans were not seen for long enough to be
    deleted, and `left` could not be."""

    orphans: int = 0
    orphan_bytes: int = 0
    foreign: int = 0
    foreign_bytes: int = 0
    waiting: int = 0
    deleted: int = 0
    deleted_bytes: int = 0
    left: int = 0
    more: bool = False
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class OrphanReport:
    """What was found by provider; `skipped` tells why the others could not be listed; `grace` is in seconds."""

    providers: dict[str, Strays]
    skipped: dict[str, str]
    grace: float


class Named:
    """The objects that something names, as 8 bytes of each: what is not in it is named by nothing."""

    def __init__(self, providers: Iterable[str]) -> None:
        self._words: dict[str, array[int]] = {provider: array("Q") for provider in providers}

    def add(self, objects: Iterable[tuple[str, str]]) -> None:
        """(provider, name) of each; `sort` before the first question."""
        for provider, name in objects:
            if provider in self._words:
                self._words[provider].append(hash(name) & _WORD)

    def sort(self) -> None:
        for provider, words in self._words.items():
            self._words[provider] = array("Q", sorted(words))

    def __len__(self) -> int:
        return sum(map(len, self._words.values()))

    def has(self, provider: str, name: str) -> bool:
        """Whether it is named, or, once in 2**64 / count, only seems so."""
        words, word = self._words[provider], hash(name) & _WORD
        at = bisect_left(words, word)
        return at < len(words) and words[at] == word


@dataclass
class _Found:
    """What was found at one provider."""

    orphans: dict[str, int]
    """By name; the value is the share's bytes, once they are known."""
    foreign: dict[str, int]
    more: bool = False
    deleted: int = 0
    deleted_bytes: int = 0
    left: int = 0


class Orphans:
    """The strays of one volume; `still` keeps repair from moving shares, `now` is Unix time in seconds."""

    def __init__(
        self,
        store: Store,
        network: Network,
        heads: Heads,
        fence: Fence,
        publisher: Publisher,
        still: trio.Lock,
        grace: float,
        *,
        now: Callable[[], float] | None = None,
    ) -> None:
        """`grace` is in seconds."""
        self._store = store
        self._network = network
        self._heads = heads
        self._fence = fence
        self._publisher = publisher
        self._still = still
        self._grace = grace
        self._now = now or time.time
        self._stored: set[tuple[str, str]] | None = None
        """(provider, object) of what was restored while a run is under way."""

    def restored(self, segments: Iterable[SegmentInfo]) -> None:
        """Shares of these lie elsewhere by now, or were stored anew."""
        if self._stored is not None:
            for segment in segments:
                self._stored.update(condemned.shares_of(self._network, segment))

    async def run(self, *, delete: bool = False, progress: Callable[[int], None] = lambda _: None) -> OrphanReport:
        """List every provider that answers; with `delete`, delete what has been an orphan for long enough.

        `progress` hears how many named objects were not listed yet, about.  Raises `UsageError` where a run is under
        way; `FencedError`, `TooFewProvidersError` and `DegradedError` where it may not delete; `FormatError` where a
        record of what is named cannot be read; `LocalDiskError`.
        """
        if self._store.fenced is not None:
            raise self._store.fenced
        if self._store.read_only:
            raise UsageError("the volume is mounted read-only; another mount has to look for orphans")
        if self._stored is not None:
            raise UsageError("what lies at the providers is being listed already; wait for it")
        self._stored = set()
        try:
            return await self._run(delete, progress)
        finally:
            self._stored = None

    async def _run(self, delete: bool, progress: Callable[[int], None]) -> OrphanReport:
        begun = self._now()
        named = await self._named()
        found, skipped = await self._list_all(named, progress)
        if any(there.orphans for there in found.values()):
            named = await self._named()
            for provider, there in found.items():
                there.orphans = {name: 0 for name in there.orphans if not named.has(provider, name)}
        await self._peek_all(found, skipped)
        seen = await self._remember(found, begun)
        due = {
            (provider, name)
            for provider, there in found.items()
            for name in there.orphans
            if seen.get(_digest(provider, name), begun) <= min(begun - self._grace, begun - 1)
        }
        if delete and due:
            await self._delete(found, sorted(due))
            await self._remember(found, begun)
        return OrphanReport(
            {provider: self._strays(provider, there, due) for provider, there in found.items()}, skipped, self._grace
        )

    def _strays(self, provider: str, there: _Found, due: set[tuple[str, str]]) -> Strays:
        return Strays(
            len(there.orphans),
            sum(there.orphans.values()),
            len(there.foreign),
            sum(there.foreign.values()),
            sum((provider, name) not in due for name in there.orphans),
            there.deleted,
            there.deleted_bytes,
            there.left,
            there.more,
            tuple(sorted(there.foreign)[:SHOWN]),
        )

    # --- what is named ------------------------------------------------------------------------------------------------

    async def _named(self) -> Named:
        """All that is named now; nothing is published or moved while it is taken."""
        async with self._still, self._publisher.standstill:
            cut = await cuts.begin_cut(self._store)
            parts = self._publisher.stored()
        named = Named(self._network.providers)
        try:
            await walk(self._naming(named, cut, parts))
        finally:
            cut.close()
        await trio.to_thread.run_sync(named.sort)
        return named

    def _naming(self, named: Named, cut: cuts.PublishCut, parts: Iterable[SegmentInfo]) -> Iterator[None]:
        for segment in parts:
            named.add(condemned.shares_of(self._network, segment))
        for segment in cuts.segments_at(cut, all_of_them=True):
            named.add(condemned.shares_of(self._network, segment))
            yield
        for key, _ in cut.reader.rows(Table.CONDEMNED):
            try:
                named.add(condemned.decode(cut.reader.get(Table.CONDEMNED, key) or b"").objects)
            except FormatError as error:
                log.warning("%s", error)
            yield

    # --- what is there ------------------------------------------------------------------------------------------------

    async def _list_all(
        self, named: Named, progress: Callable[[int], None]
    ) -> tuple[dict[str, _Found], dict[str, str]]:
        found: dict[str, _Found] = {}
        skipped: dict[str, str] = {}
        left = len(named)

        def listed(count: int) -> None:
            nonlocal left
            left -= count
            progress(max(left, 0))

        async def ask(provider: str) -> None:
            there = _Found({}, {})
            try:
                await self._list(provider, named, there, listed)
                found[provider] = there
            except IcnfsError as error:
                skipped[provider] = str(error)

        await self._network.wake()
        progress(left)
        async with trio.open_nursery() as nursery:
            for provider in self._network.providers:
                if provider in self._network.lost() or provider not in self._network.taken:
                    skipped[provider] = "it is down, or its place is not known to be the volume's"
                else:
                    nursery.start_soon(ask, provider)
        return found, skipped

    async def _list(self, provider: str, named: Named, there: _Found, listed: Callable[[int], None]) -> None:
        """Sort out what lies at one provider, page by page."""
        async for page in pages(self._network, provider, ""):
            for name in page:
                if _SHARE.fullmatch(name) is not None:
                    if not named.has(provider, name):
                        _take(there, there.orphans, name)
                elif not _is_ours(name):
                    _take(there, there.foreign, name)
            listed(len(page))

    async def _peek_all(self, found: dict[str, _Found], skipped: dict[str, str]) -> None:
        """See how large they are, and which of those with a share's name are shares."""

        async def peek(provider: str, there: _Found, name: str) -> None:
            if provider in skipped:
                return
            try:
                size, head = await self._network.transfer.peek(
                    provider, name, share_format.FIXED_SIZE, deadline=PEEK_SECONDS
                )
            except ObjectMissingError:
                there.orphans.pop(name, None)
                there.foreign.pop(name, None)
                return
            except IcnfsError as error:
                skipped[provider] = str(error)
                return
            if name in there.orphans and not _is_share(size, head):
                del there.orphans[name]
                there.foreign[name] = size
            else:
                (there.orphans if name in there.orphans else there.foreign)[name] = size

        async def at(provider: str, there: _Found) -> None:
            await together(
                (partial(peek, provider, there, name) for name in [*there.orphans, *there.foreign]), PEEKS_AT_ONCE
            )

        async with trio.open_nursery() as nursery:
            for provider, there in found.items():
                nursery.start_soon(at, provider, there)
        for provider in skipped:
            found.pop(provider, None)

    # --- since when ---------------------------------------------------------------------------------------------------

    async def _remember(self, found: dict[str, _Found], now: float) -> dict[bytes, int]:
        """When each of these was first seen, which is kept; those of providers that were not listed stay as they are.

        What is none any more is forgotten: it has to be seen anew.
        """
        known = _load(self._store)
        seen = {
            digest: known.get(digest, int(now))
            for digest in (_digest(provider, name) for provider, there in found.items() for name in there.orphans)
        }
        listed = {_place(provider) for provider in found}
        seen |= {digest: when for digest, when in known.items() if digest[:4] not in listed}
        oldest = sorted(seen.items(), key=lambda item: item[1])[:SEEN_MAX]
        if dict(oldest) != known:
            await keep(self._store, SETTING, b"".join(_SEEN.pack(*item) for item in oldest))
        return seen

    # --- deleting -----------------------------------------------------------------------------------------------------

    async def _delete(self, found: dict[str, _Found], due: list[tuple[str, str]]) -> None:
        for at in range(0, len(due), HELD_AT_ONCE):
            async with self._still, self._publisher.standstill:
                survey = await self._heads.survey(self._fence.number)
                if self._publisher.owes_head or self._fence.base is None or self._fence.is_ahead(survey):
                    raise DegradedError("the last changes are not published yet; `icnfs sync`, and call it again")
                await self._fence.pass_by(survey)
                await together(
                    (
                        partial(self._delete_one, found[provider], provider, name)
                        for provider, name in due[at : at + HELD_AT_ONCE]
                        if (provider, name) not in (self._stored or ())
                    ),
                    DELETES_AT_ONCE,
                )

    async def _delete_one(self, there: _Found, provider: str, name: str) -> None:
        try:
            await self._network.transfer.delete_object(provider, name, deadline=DELETE_SECONDS)
        except IcnfsError as error:
            log.warning("an orphan is left: %s", error)
            there.left += 1
            return
        there.deleted += 1
        there.deleted_bytes += there.orphans.pop(name)
        log.info("provider %s: orphan %s is deleted", provider, name)


def _take(there: _Found, into: dict[str, int], name: str) -> None:
    if len(into) < STRAYS_MAX:
        into[name] = 0
    else:
        there.more = True


def _is_ours(name: str) -> bool:
    """Whether a volume stores such objects beside shares."""
    return name == marker.NAME or head_format.parse_name(name) is not None or is_slot_name(name)


def _is_share(size: int, head: bytes) -> bool:
    try:
        return share_format.file_size(share_format.parse_fixed(head)) == size
    except FormatError:
        return False


def _place(provider: str) -> bytes:
    return hashlib.blake2b(provider.encode(), digest_size=4, person=b"icnfs-orphan").digest()


def _digest(provider: str, name: str) -> bytes:
    return _place(provider) + hashlib.blake2b(name.encode(), digest_size=8, person=b"icnfs-orphan").digest()


def _load(store: Store) -> dict[bytes, int]:
    """What was kept; bytes that are no such list are none, for then only more time has to pass."""
    raw = store.get_setting(SETTING) or b""
    if len(raw) % _SEEN.size:
        log.warning("when orphans were first seen cannot be read, and begins anew")
        return {}
    return dict(_SEEN.iter_unpack(raw))
