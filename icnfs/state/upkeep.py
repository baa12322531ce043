"""What a store does beside requests: folding, reaping, evicting, and judging whether there is room.

All of it is bounded in each step, may be interrupted anywhere, and is found again after a crash: patches, tombstones,
orphans and `garbage` notes are records.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

import trio

from icnfs.errors import FormatError, FsError, IcnfsError
from icnfs.format.records import TRIPLE, U64, Table
from icnfs.format.segment import SegmentInfo
from icnfs.limits import GIB, MIB
from icnfs.state import copying
from icnfs.state.apply import Writer
from icnfs.state.batch import Cut
from icnfs.state.store import Store

log = logging.getLogger(__name__)

TICK: Final = 1.0
"""Seconds between looks at the disk's and the cache's room."""

REAP_STEP: Final = 512
EVICT_STEP: Final = 512
SWEEP_STEP: Final = 2048
"""Rows that one commit reaps, versions that one looks at, notes that one reads: a few milliseconds of the committer's
time.  Notes of dead versions that providers still hold add up to millions."""

FOLD_DEADLINE: Final = 20.0
"""Seconds that a fold may wait for a provider."""

RELIEF: Final = 32 * MIB
"""Clean chunks that go at once when the disk takes nothing."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes: of clean chunks kept, of dirty ones accepted, of disk left free."""

    clean: int = 10 * GIB
    dirty: int = 4 * GIB
    reserve: int = 256 * MIB


class Upkeep:
    """Make it before requests come, and start `run` beside `Store.run`."""

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store = store
        self._budget = budget
        self._hand = b""
        store.abandoned += [U64.unpack(key)[0] for key, _ in store.reader.rows(Table.ORPHANS)]
        self._swept = False
        self.evicted = 0
        store.committer.relief = partial(self._evict, RELIEF)
        store.judge = self._judge

    async def run(self) -> None:
        store = self._store
        while True:
            try:
                await self._round()
            except IcnfsError as error:
                log.warning("upkeep will try again: %s", error)
                await trio.sleep(TICK)
            with trio.move_on_after(TICK):
                await store.upkeep_wanted.wait()
            store.upkeep_wanted = trio.Event()

    async def _round(self) -> None:
        await self._remove_abandoned()
        if not self._swept:
            await self._sweep()
            self._swept = True
        await self._fold()
        await self._reap()
        await self._make_room()

    # --- after a crash ----------------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        """Erase the dead versions that the last mount left, and drop the notes that nothing keeps."""
        swept, at = 0, b"\0"
        while at:
            count, at = await self._store.task(partial(_sweep, at))
            swept += count
        if swept:
            log.info("erasing %d chunk versions that the last mount had left", swept)

    async def _remove_abandoned(self) -> None:
        """Inodes that only open handles kept when the last mount ended, and copies that were not finished."""
        abandoned = self._store.abandoned
        while abandoned and not self._store.read_only:
            await copying.remove(self._store, abandoned[-1])
            abandoned.pop()

    # --- folding and reaping ----------------------------------------------------------------------------------------

    async def _fold(self) -> None:
        store = self._store
        places = store.contents.to_fold
        while places and not store.read_only:
            if store.congested:
                try:
                    await store.wait_room(growing=False)
                except FsError as error:
                    log.debug("chunks keep their patches for now: %s", error)
                    return
            if not places:
                return
            ino, index = places.pop()
            try:
                await store.contents.fold(ino, index, trio.current_time() + FOLD_DEADLINE)
            except IcnfsError as error:
                log.debug("a chunk could not be folded and keeps its patches: %s", error)
            await trio.lowlevel.checkpoint()

    async def _reap(self) -> None:
        store = self._store
        for ino, first, bound in list(store.reader.tombstones()):
            cut = Cut(ino, first, bound)
            step = partial(_reap, cut)
            while not await store.task(step):
                pass
            store.contents.reaped(cut)

    # --- room -------------------------------------------------------------------------------------------------------

    async def _make_room(self) -> None:
        store, budget = self._store, self._budget
        if store.env.lacks_reserve:
            await store.task(lambda writer, generation: None)  # any commit takes it back where there is room
        used, reusable = store.data_usage()
        dirty = store.dirty_bytes
        over = used - dirty - budget.clean
        room = store.env.free_bytes() + reusable
        if room < budget.reserve:
            over = max(over, budget.reserve - room)
        while over > 0:
            freed, end = await store.task(partial(self._evict, over))
            over -= freed
            if end:
                break
        store.set_full(self._lacks_room())
        if store.failure is not None:
            store.committer.kick()

    def _lacks_room(self) -> bool:
        store, budget = self._store, self._budget
        _, reusable = store.data_usage()
        room = store.env.free_bytes() + reusable
        return room < budget.reserve or store.dirty_bytes > budget.dirty or store.env.lacks_reserve

    def _judge(self) -> None:
        """After a commit of data: a fast writer puts more than the reserve between two rounds."""
        if not self._store.full and self._lacks_room():
            self._store.set_full(True)
            self._store.want_upkeep()

    def _evict(self, over: int, writer: Writer, _: int = 0) -> tuple[int, bool]:
        """In the committer thread: doom clean chunks from the clock's hand on; (bytes, whether a round ended)."""
        reader = writer.reader
        freed = 0
        safe: dict[bytes, bool] = {}
        looked = 0
        with reader.data.cursor(reader.env.data_db) as cursor:
            found = cursor.set_range(self._hand) if self._hand else cursor.first()
            if not found:
                self._hand = b""
                return 0, True
            for key, sealed in cursor:
                looked += 1
                self._hand = bytes(key)
                if looked > EVICT_STEP or freed >= over:
                    return freed, False
                version = U64.unpack(key)[0]
                try:
                    location = reader.location(version)
                    if location is None:
                        continue
                    if location.segment not in safe:
                        safe[location.segment] = _is_safe(reader.segment(location.segment), self._store.is_safe)
                except FormatError as error:
                    log.warning("version %d is kept: %s", version, error)
                    continue
                if safe[location.segment]:
                    writer.doomed.append(version)
                    freed += len(sealed)
        self._hand = b""
        self.evicted += freed
        return freed, True


def _is_safe(segment: SegmentInfo | None, judge: Callable[[SegmentInfo], bool]) -> bool:
    return segment is not None and judge(segment)


def _sweep(at: bytes, writer: Writer, generation: int) -> tuple[int, bytes]:
    """One step from note `at` on: (versions doomed, the note to go on at or nothing).

    Notes of an earlier release do not say when a version died: by now it has.
    """
    reader = writer.reader
    count = 0
    for looked, (key, note) in enumerate(list(islice(reader.rows(Table.GARBAGE, at), SWEEP_STEP + 1))):
        if looked == SWEEP_STEP:
            return count, key
        if not note:
            writer.note_garbage(key, generation)
        version = U64.unpack(key)[0]
        if reader.has_chunk(version) or reader.raw(Table.LOCATIONS, key) is None:
            writer.doomed.append(version)
            count += 1
    return count, b""


def _reap(cut: Cut, writer: Writer, generation: int) -> bool:
    """One step; true when the tombstone is gone."""
    done = writer.reap(cut, generation, REAP_STEP)
    if done:
        writer.delete(Table.TOMBSTONES, TRIPLE.pack(cut.ino, cut.first, cut.bound), generation)
    return done
