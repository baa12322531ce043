"""The local state of a volume: what is accepted, what is committed, and how the one becomes the other.

    requests --> Store (overlay, open batch) --> Committer (thread) --> LMDB
                   ^                                   |
                   +------- snapshots renewed ---------+

A store answers from the overlay over one pair of LMDB snapshots, synchronously: a caller that does not await sees and
makes one consistent state.  Changes gather in the open batch; it closes after BATCH_SECONDS, when it grows large, or
when somebody waits for it (`flush`).  See `batch` for the invariants of batches and `committer` for those of commits.

It does not know what POSIX means, nor that there are providers: cold chunks come from `source`.
"""

from __future__ import annotations

import errno
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, Final

import trio

from icnfs.crypto.keys import MasterKey
from icnfs.crypto.names import NameHash
from icnfs.crypto.sealing import ChunkSealer, RecordSealer, Salts
from icnfs.errors import FencedError, FsError, LocalDiskError
from icnfs.format.records import ChunkRecord, Location
from icnfs.format.segment import SegmentInfo
from icnfs.limits import ACCEPTED_MAX
from icnfs.state.apply import Writer, unpack_counters
from icnfs.state.batch import Batch, Counters, Overlay
from icnfs.state.committer import Committer
from icnfs.state.contents import Contents
from icnfs.state.env import Environments, check_identity
from icnfs.state.foresight import Foresight
from icnfs.state.inode import Inode
from icnfs.state.jobs import Done, Last, Task
from icnfs.state.layers import ColdSource
from icnfs.state.names import Beneath
from icnfs.state.opening import load_salts, open_journal, put_salt, read_identity
from icnfs.state.reader import Reader
from icnfs.state.standstill import LEAST_WAIT, Standstill
from icnfs.state.tree import Records

log = logging.getLogger(__name__)

BATCH_SECONDS: Final = 0.4
"""An open batch closes after this, so that with its commit a crash costs at most one second."""

BATCH_CHANGES: Final = 4096
"""An open batch closes at so many changed records, so that committing one stays short."""

UNCOMMITTED_MAX: Final = 32768
"""Changed records accepted and not yet committed; past it writers wait."""

INODES_MAX: Final = 20000
"""Inodes kept in memory that are unchanged, some 600 bytes each: of twice as many, so many are left."""

INO_STEP: Final = 1 << 16
VERSION_STEP: Final = 1 << 32
"""Numbers reserved ahead of use by a commit, so that no crash hands one out twice."""

BYTES_MAX: Final = 2**62
"""The most that is said to be used: forged sizes may add up to more than a head holds."""


class Store(Records):
    """An open local state.  Use `create`, then `open`; start `run` in a nursery, and end with `close`."""

    def __init__(self, env: Environments, master: MasterKey) -> None:
        self.env = env
        self.overlay = Overlay()
        self.salts = Salts()
        self._drawn = 0, b""
        self.volume, self.chunk_size, _ = check_identity(read_identity(env), env.root)
        self.records = RecordSealer(master, self.volume, self.salts)
        self.chunks = ChunkSealer(self.volume, self.salts)
        self.names = NameHash(master)
        self.reader = Reader(env, self.records, env.meta.begin(), env.data.begin(buffers=True))
        self.beneath = Beneath(self.reader, self.names)
        load_salts(self.reader, self.records, self.salts)
        self._journal = open_journal(self.reader, self.records, self.salts)
        plain = self.reader.setting("counters")
        if plain is None:
            raise LocalDiskError(f"{env.root}: the local state is unfinished; run `icnfs recover`", errno.EIO)
        counters, number, generation, dirty_bytes = unpack_counters(plain)
        self.published_generation = int(self.reader.setting("published") or b"0")
        """The dirty generation up to which the providers have everything."""
        self.dirty_floor = int(self.reader.setting("dirty-floor") or b"0")
        """Dirty rows up to this generation are forgotten: no run can reach back past it."""
        self.files = counters.files
        self.bytes_used = counters.bytes_used
        self._unnamed = counters.next_version, counters.version_limit
        """Versions from the first on, below the second, were handed out before a crash, and no batch names them."""
        self._next_ino, self._ino_limit = counters.ino_limit, counters.ino_limit
        self._next_version, self._version_limit = counters.version_limit, counters.version_limit
        self.generation = generation
        self.committed = self.durable = number
        """Batches up to here LMDB shows; up to `durable`, they survive a crash."""
        self.changed = number
        """The last batch that changed the tree, as far as is known: an earlier mount's may have."""
        self.batch = Batch(number + 1, generation)
        self._closed: deque[Batch] = deque()
        self._inodes: dict[int, Inode | None] = {}
        self.foresight = Foresight()
        self.contents = Contents(self)
        self.source: ColdSource
        self.keeps_cold = True
        """Whether chunks that were fetched are kept, as clean ones."""
        self.is_safe: Callable[[SegmentInfo], bool] = lambda segment: not segment.missing()
        self.fenced: FencedError | None = None
        self.read_only = False
        self.failure: LocalDiskError | None = None
        self.full = False
        """Whether upkeep finds no room for more data: the disk's reserve or the budget of dirty data is used up."""
        self.judge: Callable[[], None] = lambda: None
        """Upkeep's look at the room, after each commit of data."""
        self.advance: Callable[[], object] = lambda: None
        """What changes while providers take data, for writers who wait for room."""
        self._standstill = Standstill()
        self._progress = trio.Event()
        self._stirred = trio.Event()
        self.upkeep_wanted = trio.Event()
        self.abandoned: list[int] = []
        """Inodes without a name that nobody uses any more: upkeep removes them, and all beneath them."""
        self._token: trio.lowlevel.TrioToken | None = None
        self.committer = Committer(
            env,
            self.records,
            self.chunks,
            self.salts,
            Last(counters, number, generation, dirty_bytes),
            self._post,
            self._on_done,
            self._on_failure,
            self._on_durable,
            self._journal,
        )

    @staticmethod
    def open(root: Path, master: MasterKey) -> Store:
        """Open what `create` or a recovery made.  Raises `NoVolumeError`, `MountedError`, `FormatError`, and
        `DamagedError` where `master` is not this volume's key."""
        env = Environments(root)
        try:
            return Store(env, master)
        except BaseException:
            env.close()
            raise

    # --- running ----------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the committer, draw this opening's salt, reserve its numbers, and close batches in time, for ever."""
        self._token = trio.lowlevel.current_trio_token()
        self.committer.start()
        await self._draw_salt()
        await self.task(lambda writer, _: writer.note_unnamed(*self._unnamed))
        self.touch()  # only now: this batch moves the counters that tell which versions have no name
        await self.flush()
        task_status.started()
        while True:
            await self._stirred.wait()
            await trio.sleep(BATCH_SECONDS)
            self._stirred = trio.Event()
            self.close_batch()
            if self.salts.spent and self.failure is None:
                await self._renew_salt()

    async def close(self) -> None:
        """Commit what was accepted and close; no request may follow."""
        if self._token is not None:
            self.close_batch()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self.committer.stop)
        self.foresight.close()
        self.reader.meta.abort()
        self.reader.data.abort()
        if self._journal is not None:
            self._journal.close()
        self.env.close()

    async def _draw_salt(self) -> None:
        """A new sealing salt, durable before it is used, and used from then on: see `journal`.

        Of draws that one commit makes, as after a full disk, the last stands.
        """

        def work(writer: Writer, generation: int) -> None:
            self._drawn = self.salts.draw()
            put_salt(writer, self.records, *self._drawn, generation)

        def use() -> None:
            self.salts.add(*self._drawn)
            self.salts.current = self._drawn[0]

        await self.task(work, use)

    async def _renew_salt(self) -> None:
        try:
            await self._draw_salt()
        except LocalDiskError as error:
            log.warning("the sealing salt is kept for now: %s", error)

    def _post(self, callback: Callable[[], None]) -> None:
        assert self._token is not None
        try:
            self._token.run_sync_soon(callback)
        except trio.RunFinishedError:
            log.debug("a commit ended after the event loop did")

    async def task(self, work: Callable[[Writer, int], Any], committed: Callable[[], None] = lambda: None) -> Any:
        """Run `work(writer, dirty generation)` in a transaction of the committer; its result, once it is durable.

        `committed` is called then, in the committer's thread, before anything else is done there.
        An `IcnfsError` of `work` is raised here, and then nothing has changed; `LocalDiskError` as in `flush`.
        """
        event = trio.Event()
        generation = self.generation
        task = Task(lambda writer: work(writer, generation), lambda result: event.set(), committed)
        self.committer.submit(task)
        await self._wait(event)
        if task.error is not None:
            raise task.error
        return task.result

    async def _wait(self, event: trio.Event) -> None:
        """Until `event`; `LocalDiskError` when the disk takes nothing meanwhile."""
        while not event.is_set():
            if self.failure is not None:
                raise self._failed()
            progress = self._progress
            async with trio.open_nursery() as nursery:
                for waited in (event, progress):
                    nursery.start_soon(_wait_then_cancel, waited, nursery.cancel_scope)

    # --- batches ----------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """The open batch has changes."""
        if not self.batch.touched:
            self.batch.touched = True
            self._stirred.set()

    def close_batch(self, *, urgent: bool = False, awaited: bool = False) -> int:
        """Hand the open batch to the committer; returns the number of the last closed one.

        `urgent`: small changes become patches.  `awaited`: being durable is enough, LMDB may follow.
        """
        batch = self.batch
        if not batch.touched:
            return batch.number - 1
        self.contents.capture(batch, urgent=urgent)
        if self._ino_limit - self._next_ino < INO_STEP // 2:
            self._ino_limit += INO_STEP
        if self._version_limit - self._next_version < VERSION_STEP // 2:
            self._version_limit += VERSION_STEP
        batch.awaited = awaited
        batch.counters = self.counters()
        batch.next_generation = self.generation
        if batch.has_changes:
            self.changed = batch.number
        self._closed.append(batch)
        self.batch = Batch(batch.number + 1, self.generation)
        self.committer.submit(batch)
        return batch.number

    def counters(self) -> Counters:
        return Counters(
            max(self.files, 0),
            min(max(self.bytes_used, 0), BYTES_MAX),
            self._next_ino,
            self._next_version,
            self._ino_limit,
            self._version_limit,
        )

    def close_for_cut(self) -> tuple[int, int]:
        """Close the open batch and begin the next dirty generation: (its number, the generation that ended)."""
        ended = self.generation
        self.touch()
        self.generation = ended + 1
        return self.close_batch(), ended

    async def persist(self) -> None:
        """Everything accepted is durable on return, in LMDB or in the journal; raises as `flush`."""
        with self.committer.at_once():
            number = self.close_batch(urgent=True, awaited=True)
        while self.durable < number:
            if self.failure is not None:
                self.committer.kick()
                raise self._failed()
            await self._progress.wait()

    def _failed(self) -> LocalDiskError:
        """The failure, for one more who hears of it."""
        return LocalDiskError(str(self.failure), self.failure.errno if self.failure is not None else errno.EIO)

    async def flush(self) -> int:
        """Everything accepted is committed on return: the number of the batch that holds the last of it.

        Raises `LocalDiskError` where the disk takes nothing; the changes stay accepted and are tried again.
        """
        number = self.close_batch(urgent=True)
        await self.wait_committed(number)
        return number

    async def wait_committed(self, number: int) -> None:
        """Until LMDB shows batch `number`; `LocalDiskError` while the disk takes nothing."""
        if self.committed < number:
            self.committer.submit(Task(lambda writer: None, lambda result: None))  # what the journal holds goes too
        while self.committed < number:
            if self.failure is not None:
                self.committer.kick()
                raise self._failed()
            await self._progress.wait()

    def _on_durable(self, number: int) -> None:
        """In the request loop, after a write of the journal."""
        self.durable = max(self.durable, number)
        self._signal()

    def _on_done(self, done: Done) -> None:
        """In the request loop, after a commit: renew the snapshots and drop what they show now.

        `data` first: then `meta` is never the older one, which could name a version that was erased since.  What it
        names too early for `data` is still in memory.
        """
        reader = self.reader
        reader.data.abort()
        reader.data = self.env.data.begin(buffers=True)
        reader.meta.abort()
        reader.meta = self.env.meta.begin()
        for _ in done.batches:
            self._closed.popleft()
        self.overlay.drop(done.batches, [*self._closed, self.batch])
        for batch in done.batches:
            self.committed = batch.number
            self.durable = max(self.durable, batch.number)
            for ino, node in batch.inodes.items():
                if node is None and self._inodes.get(ino, node) is None:
                    self._inodes.pop(ino, None)
        self.contents.committed(done)
        if done.sealed or done.cached:
            self.judge()
        self._trim_inodes()
        for task in done.tasks:
            task.done(task.result)
        self._signal()

    def _on_failure(self, failure: LocalDiskError | None) -> None:
        self.failure = failure
        if failure is not None and failure.errno == errno.EIO:
            self.read_only = True  # the committer has ended: what is accepted from here on would reach no disk
        self._signal()

    def _signal(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    def _trim_inodes(self) -> None:
        excess = len(self._inodes) - INODES_MAX
        if excess > INODES_MAX:
            settled = [i for i, node in self._inodes.items() if node is not None and node.batch <= self.committed]
            for ino in settled[:excess]:
                del self._inodes[ino]

    # --- admission --------------------------------------------------------------------------------------------------

    @property
    def uncommitted(self) -> int:
        """Changed records accepted and not yet committed."""
        return self.batch.changes + sum(batch.changes for batch in self._closed)

    @property
    def congested(self) -> bool:
        """Whether whoever changes something must wait first."""
        return (
            self.contents.accepted_bytes > ACCEPTED_MAX
            or self.batch.changes > BATCH_CHANGES
            or self.full
            or self.failure is not None
            or self.read_only
        )

    async def wait_room(self, *, growing: bool = True) -> None:
        """Until changes may be accepted.  `growing` ones need room for data; others only that commits go on.

        Raises EROFS when the volume is read-only, ENOSPC where nothing has moved for FULL_WAIT seconds: a disk and
        providers that take what they are given, however slowly, are waited for.
        """
        if self.read_only:
            raise FsError(errno.EROFS)
        if self.batch.changes > BATCH_CHANGES:
            self.close_batch()
        least = trio.current_time() + LEAST_WAIT
        with trio.CancelScope() as scope:
            while self._lacks_room(growing):
                self.relieve()
                scope.deadline = look_again = inf
                if self.full or self.failure is not None:
                    self.want_upkeep()
                    how = self.advance(), self.dirty_bytes, self.data_usage()
                    scope.deadline = max(least, self._standstill.until(how, trio.current_time()))
                    look_again = LEAST_WAIT
                with trio.move_on_after(look_again):
                    await self._progress.wait()
                if self.read_only:
                    raise FsError(errno.EROFS)
        if scope.cancelled_caught:
            raise FsError(errno.ENOSPC)

    def relieve(self) -> None:
        """At the end of a request: close a batch that has grown large."""
        if self.contents.hot_bytes > ACCEPTED_MAX // 2:
            self.close_batch()

    def _lacks_room(self, growing: bool) -> bool:
        if growing and (self.full or self.failure is not None):
            return True
        return self.contents.accepted_bytes > ACCEPTED_MAX or self.uncommitted > UNCOMMITTED_MAX

    def set_full(self, full: bool) -> None:
        """Upkeep's verdict on room for data.  Only a change wakes the writers, who would ask for the next verdict."""
        if full != self.full:
            self.full = full
            self._standstill.ends()
            log.warning("no room for more data: writers wait") if full else log.info("room for data again")
            self._signal()

    def want_upkeep(self) -> None:
        self.upkeep_wanted.set()

    def abandon(self, ino: int) -> None:
        """Have an inode that no name leads to removed, with all beneath it."""
        self.abandoned.insert(0, ino)
        self.want_upkeep()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """What any cut that is taken meanwhile names can be named anew: see `marks`."""
        self.committer.keeping += 1
        try:
            yield
        finally:
            self.committer.keeping -= 1

    def fence(self, error: FencedError) -> None:
        """Turn read-only for good: another machine took a higher epoch."""
        self.fenced = error
        self.read_only = True
        self._signal()

    def data_usage(self) -> tuple[int, int]:
        """(bytes of sealed chunks held, bytes of LMDB's file that are free for more)."""
        stat = self.reader.data.stat(self.env.data_db)
        pages = int(stat["branch_pages"]) + int(stat["leaf_pages"]) + int(stat["overflow_pages"])
        used = pages * int(stat["psize"])
        size = (self.env.root / "data" / "data.mdb").stat().st_size
        return used, max(size - used, 0)

    # --- numbers ----------------------------------------------------------------------------------------------------

    def new_version(self) -> int:
        version = self._next_version
        self._next_version = version + 1
        return version

    @staticmethod
    def random_key() -> bytes:
        return secrets.token_bytes(32)

    # --- where things lie ---------------------------------------------------------------------------------------------

    def locate(self, version: int) -> Location | None:
        return self.reader.location(version)

    def segment(self, segment: bytes) -> SegmentInfo | None:
        return self.reader.segment(segment)

    def chunk_rows(self, ino: int) -> Iterator[tuple[int, ChunkRecord | None, int]]:
        """(index, record, bytes in patches) of a file's chunks, in order."""
        return self.contents.records(ino)

    @property
    def dirty_bytes(self) -> int:
        """Bytes, as sealed, that no durable head names yet, and what is not committed."""
        return max(self.committer.dirty_bytes, 0) + self.contents.accepted_bytes


async def _wait_then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
