"""Reading the files of a recovered state back as a reader does: every chunk fetched from the providers and opened.

Promises: a file that cannot be had whole costs the others nothing; memory stays bounded, however large files are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import trio

from icnfs.errors import IcnfsError
from icnfs.limits import CHUNK_SIZE
from icnfs.state.inode import Inode
from icnfs.state.store import Store
from icnfs.volume.losses import STEP, files
from icnfs.volume.sample import Sample, held_bytes
from icnfs.volume.together import together

READERS: Final = 4
"""Files read at a time."""

PIECE: Final = 8
"""Chunks read at a time of each: those of all READERS are well below what a store holds of chunks it does not keep."""

AHEAD: Final = 4
"""Pieces of a file that are announced before they are read."""

Progress = Callable[[int, int], None]
"""(bytes done, bytes of all)."""


class ReadBack:
    """What reading a sample came to: call `run`.  `lost` says of each inode that could not be had why."""

    def __init__(self, store: Store, sample: Sample, read_deadline: float, progress: Progress) -> None:
        self._store = store
        self._sample = sample
        self._deadline = read_deadline
        self._progress = progress
        self._whole = 0
        self.files = 0
        self.bytes = 0
        self.seconds = 0.0
        self.lost: dict[int, str] = {}

    async def run(self) -> None:
        """Choose, and read class by class, so that each class's rate is known."""
        for count, node in enumerate(files(self._store.reader)):
            if count % STEP == 0:
                await trio.lowlevel.checkpoint()
            if isinstance(node, Inode):
                self._sample.see(node)
            else:
                self.lost[node] = "its record is damaged"
        chosen = self._sample.files()
        self._whole = sum(
            self._sample.bytes_of(held_bytes(self._store.inode(ino))) for _, all_ in chosen for ino in all_
        )
        for kind, inodes in chosen:
            begun, before = trio.current_time(), self.bytes
            waiting = iter(inodes)
            async with trio.open_nursery() as nursery:
                for _ in range(READERS):
                    nursery.start_soon(self._read_some, waiting)
            kind.seconds = trio.current_time() - begun
            kind.read_bytes = self.bytes - before
            self.seconds += kind.seconds

    async def _read_some(self, waiting: Iterator[int]) -> None:
        for ino in waiting:
            try:
                await self._read(ino)
                self.files += 1
            except IcnfsError as error:
                self.lost[ino] = str(error)

    async def _read(self, ino: int) -> None:
        """Those chunks of a file that the sample wants; `IcnfsError` at the first that cannot be had."""
        source = self._store.source
        indexes = self._sample.part(ino, sorted(self._store.contents.indexes(ino)))
        pieces = list(in_rows(indexes, PIECE))
        announced = 0
        async with trio.open_nursery() as nursery:
            failure: IcnfsError | None = None
            for place, piece in enumerate(pieces):
                deadline = trio.current_time() + self._deadline
                try:
                    while len(indexes) > 1 and announced < min(place + AHEAD, len(pieces)) and self._has_room(ino):
                        self._announce(nursery, ino, pieces[announced], deadline)
                        announced += 1
                    await self._read_piece(ino, piece, deadline)
                except IcnfsError as error:
                    failure = error
                    break
            source.forget(ino)
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _has_room(self, ino: int) -> bool:
        return self._store.source.room(ino) >= PIECE * CHUNK_SIZE

    def _announce(self, nursery: trio.Nursery, ino: int, piece: tuple[int, int], deadline: float) -> None:
        first, count = piece
        locations = self._store.contents.cold(ino, first, first + count - 1)
        if locations:
            nursery.start_soon(self._store.source.expect(ino, locations, deadline))

    async def _read_piece(self, ino: int, piece: tuple[int, int], deadline: float) -> None:
        """All chunks of a piece at once, each by itself: a failure is that of one."""
        node = self._store.inode(ino)

        async def read(index: int) -> None:
            data = await self._store.contents.read(node, index * CHUNK_SIZE, CHUNK_SIZE, deadline)
            self.bytes += len(data)
            self._progress(min(self.bytes, self._whole), self._whole)

        first, count = piece
        await together([partial(read, index) for index in range(first, first + count)])


def in_rows(indexes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """(first, count) of the rows of at most `most` consecutive numbers of `indexes`, which ascend."""
    first = count = 0
    for index in indexes:
        if count and index == first + count and count < most:
            count += 1
            continue
        if count:
            yield first, count
        first, count = index, 1
    if count:
        yield first, count
