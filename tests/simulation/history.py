"""What the tree was after each request, and so what it may be after a crash, and at a cut.

A tree is a mapping of paths to contents (None for a directory).  The model is told of a request before it is made and
after it ended; between the two it may be seen or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Tree = Mapping[bytes, bytes | None]


class Unknown:
    """Stands for contents that could not be read."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = Unknown()
Seen = Mapping[bytes, bytes | Unknown | None]
"""A tree as it was read; contents that could not be had are UNKNOWN."""


def matches(seen: Seen, tree: Tree) -> bool:
    if seen.keys() != tree.keys():
        return False
    for path, content in seen.items():
        if isinstance(content, Unknown):
            if tree[path] is None:
                return False
        elif content != tree[path]:
            return False
    return True


def describe(tree: Seen) -> str:
    return ", ".join(
        f"{path.decode()}={'dir' if c is None else c if isinstance(c, Unknown) else f'{len(c)}:{hash_of(c)}'}"
        for path, c in sorted(tree.items())
    )


def hash_of(data: bytes) -> str:
    import zlib

    return f"{zlib.crc32(data):08x}"


@dataclass
class _Request:
    tree: Tree
    first_batch: int
    last_batch: int | None
    """The batches between which it was accepted; None while it is being made."""
    time: float


class History:
    """One machine's requests since it last began, oldest first."""

    def __init__(self, tree: Tree, batch: int, time: float) -> None:
        self._requests = [_Request(tree, batch, batch, time)]
        self._vouched = 0

    @property
    def tree(self) -> Tree:
        """As of the last request."""
        return self._requests[-1].tree

    def begin(self, tree: Tree, batch: int, time: float) -> None:
        self._requests.append(_Request(tree, batch, None, time))

    def done(self, batch: int, time: float) -> None:
        last = self._requests[-1]
        last.last_batch, last.time = batch, time

    def refused(self) -> None:
        """The last request changed nothing."""
        self._requests.pop()

    def here(self) -> int:
        """A mark for `vouch`: everything up to now."""
        return len(self._requests) - (1 if self._requests[-1].last_batch is not None else 2)

    def vouch(self, mark: int) -> None:
        """An fsync that began at this mark returned."""
        self._vouched = max(self._vouched, mark)

    def after_crash(self, now: float, grace: float) -> Iterator[Tree]:
        """What a crash may leave, the newest first: nothing vouched for is lost, nor what is older than `grace`."""
        for index in range(len(self._requests) - 1, -1, -1):
            request = self._requests[index]
            yield request.tree
            if index <= self._vouched or (request.last_batch is not None and request.time < now - grace):
                return

    def at_cut(self, batch: int) -> list[Tree]:
        """What the tree may be at the cut of `batch`."""
        surely = 0
        for index, request in enumerate(self._requests):
            if request.last_batch is not None and request.last_batch <= batch:
                surely = index
        found = [self._requests[surely].tree]
        for request in self._requests[surely + 1 :]:
            if request.first_batch > batch:
                break
            found.append(request.tree)
        return found
