"""The thread that owns LMDB's write transactions.

Work comes in a queue, its large chunks sealed (see `sealer`), and is taken in groups.  Of each group, first every chunk
is put into `data`, which is committed and, where a batch is in the group, made durable; then all batches and tasks go
into one `meta` commit.  So what `meta` names always lies in `data`, concurrent fsyncs share a commit, and an fsync
waits for no more bulk data than ACCEPTED_MAX.

A batch that somebody waits for goes to the `journal` instead, with the few chunks that were sealed for it: it is
durable then, and LMDB follows when no more work has come for SETTLE_SECONDS or the journal holds enough, with all of
them merged into one batch.  Few sealed chunks are held for the batch that will name them.

To hand a batch over and to hear of it costs as much as a quick disk's flush.  So the request loop writes the journal by
itself where the thread rests, the batch is small and the disk was quick the last time (`at_once`): one holds `_turn`.

Invariants:

1. Batches are applied in the order in which they were submitted, each whole or not at all.
2. Work that was taken is retried until it succeeds; a full disk delays it and is reported, and drops nothing.
3. Callbacks run in the request loop, in order, after the commit they report.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto
from errno import EIO
from typing import Any, Final

import lmdb

from icnfs.crypto.sealing import ChunkSealer, RecordSealer, Salts
from icnfs.errors import IcnfsError, LocalDiskError
from icnfs.format.records import U64, Table
from icnfs.limits import KIB, MIB
from icnfs.state.apply import Writer
from icnfs.state.batch import Batch
from icnfs.state.env import Environments
from icnfs.state.jobs import CacheJob, Done, Job, Last, SealJob, Task, lasting, merged
from icnfs.state.journal import Journal
from icnfs.state.journaled import Journaled
from icnfs.state.sealer import Sealer

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.5
"""Between attempts while the disk takes nothing; a kick ends the wait early."""

RELIEF_SECONDS: Final = 0.05
RELIEF_TRIES: Final = 4
TURNS: Final = 3
"""A full disk is not reported while the clean chunks that went may yet help: they do after so many commits, between
which the request loop renews its snapshots."""

_NO_VERSION: Final = U64.pack(0)

GROUP_BYTES: Final = 2 * MIB
"""Of bulk data, what goes into one commit: a quarter of ACCEPTED_MAX, so that more is accepted while it is written."""

IDLE_SECONDS: Final = 0.5
"""After so long without work the data of dead versions is erased."""

QUICK: Final = 0.0005
"""Seconds that an entry of the journal may have taken for the request loop to write the next one by itself: nobody is
answered meanwhile."""

QUICK_CHANGES: Final = 64
QUICK_BYTES: Final = 128 * KIB
"""Changed records and plain bytes of chunks that the loop puts into one."""

DOOMED_MAX: Final = 4096
"""Erasures are put off to the next idle moment, but no more than so many."""


class _Wake(Enum):
    """For the thread to see that the journal holds something."""

    UP = auto()


class _TaskFailedError(Exception):
    """The transaction goes without the task that failed."""


def _bulk(job: Job) -> int:
    """Bytes that it puts into `data`."""
    return len(job.plain) if isinstance(job, SealJob) else len(job.sealed) if isinstance(job, CacheJob) else 0


def _is_quick(jobs: list[Job]) -> bool:
    """Whether they are few enough for the request loop."""
    changes = sum(job.changes for job in jobs if isinstance(job, Batch))
    return changes <= QUICK_CHANGES and sum(map(_bulk, jobs)) <= QUICK_BYTES


def _write_nothing(txn: lmdb.Transaction) -> None:
    """LMDB skips a commit that changed nothing."""
    txn.put(_NO_VERSION, b"")
    txn.delete(_NO_VERSION)


def _work(task: Task, writer: Writer) -> Any:
    try:
        return task.work(writer)
    except IcnfsError as error:
        task.error = error
        raise _TaskFailedError from error


class Committer:
    """Start with `start`, end with `stop`, which commits what was submitted; `submit` may be called from the loop."""

    def __init__(
        self,
        env: Environments,
        records: RecordSealer,
        chunks: ChunkSealer,
        salts: Salts,
        last: Last,
        post: Callable[[Callable[[], None]], None],
        on_done: Callable[[Done], None],
        on_failure: Callable[[LocalDiskError | None], None],
        on_durable: Callable[[int], None],
        journal: Journal | None,
    ) -> None:
        self._last = last
        self.dirty_bytes = last.dirty_bytes
        """Bytes of sealed chunks that no location names; written by this thread only."""
        self.keeping = 0
        """How many copy from a cut: what dies meanwhile is marked, as they may name it again."""
        self.spared = 0
        """Grows whenever it may be worth finding out what is named no longer: see `Writer.spared`."""
        self.commits = 0
        self.relief: Callable[[Writer], object] = lambda writer: None
        """Dooms clean chunks; called in the thread when the disk takes nothing."""
        self._env = env
        self._records = records
        self._post = post
        self._on_done = on_done
        self._on_failure = on_failure
        self._on_durable = on_durable
        self._journaled = Journaled(journal)
        self._queue: queue.SimpleQueue[Job | _Wake | None] = queue.SimpleQueue()
        self._sealer = Sealer(chunks, salts, self._queue.put)
        self._kick = threading.Event()
        self._doomed: list[int] = []
        self._forgotten: list[int] = []
        self._unsynced = False
        self._unsynced_seals = False
        self._sync_failed = False
        self._failing = False
        self._turns = 0
        self._stopping = False
        self._turn = threading.Lock()
        """Held by whoever commits: the thread, or for a moment the request loop."""
        self._submitted = self._worked_off = 0
        """Jobs that the thread was given, by the loop's count, and that it is done with, by its own."""
        self._gathered: list[Job] | None = None
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        self._sealer.start()
        self._thread.start()

    def submit(self, job: Job) -> None:
        if self._gathered is not None:
            self._gathered.append(job)
            return
        self._submitted += 1
        self._sealer.put(job)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In the loop: an awaited batch that is submitted meanwhile is durable on return, if that is quickly done."""
        self._gathered = jobs = list[Job]()
        done = False
        try:
            yield
            done = self._done_at_once(jobs)
        finally:
            self._gathered = None
            if not done:
                for job in jobs:
                    self.submit(job)

    def _done_at_once(self, jobs: list[Job]) -> bool:
        if not jobs:
            return True
        if self._journaled.append_seconds > QUICK or self._submitted != self._worked_off or not _is_quick(jobs):
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if self._unsynced_seals or self._journaled.is_full:
                return False
            seals = [job for job in jobs if isinstance(job, SealJob)]
            for job in seals:
                self._sealer.seal(job)
            rested = not self._journaled.jobs
            if not self._put_journal(jobs, seals, lambda told: told()):
                return False
        finally:
            self._turn.release()
        if rested:
            self._queue.put(_Wake.UP)
        return True

    def kick(self) -> None:
        """Try again now: there may be room."""
        self._kick.set()

    def stop(self) -> None:
        """Commit what was submitted and end; blocks.  Where the disk takes nothing, what waits is given up."""
        self._stopping = True
        self._sealer.put(None)
        self._kick.set()
        self._sealer.join()
        self._thread.join()

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                jobs = self._take()
                with self._turn:
                    if jobs is None:
                        if self._journaled:
                            self._commit([])
                        self._erase_doomed()
                        return
                    if jobs:
                        self._commit(jobs)
                self._worked_off += len(jobs)
            except Exception as error:
                self._failing = True
                if self._stopping:
                    log.critical("what the local disk had not taken when the mount ended is lost: %s", error)
                    return
                log.critical("the committer thread failed: %s", type(error).__name__, exc_info=True)
                remedy = "the mount is read-only; unmount and mount again"
                failure = LocalDiskError(f"the local state cannot be written ({type(error).__name__}): {remedy}", EIO)
                self._post(lambda failure=failure: self._on_failure(failure))  # type: ignore[misc]
                return

    def _take(self) -> list[Job] | None:
        """The next group of work, which may be empty; None when all is done."""
        job = self._next()
        jobs: list[Job] = []
        left = GROUP_BYTES
        with contextlib.suppress(queue.Empty):
            while job is not None:
                if not isinstance(job, _Wake):
                    jobs.append(job)
                    left -= _bulk(job)
                    if left <= 0:
                        return jobs
                job = self._queue.get_nowait()
            if jobs:
                self._queue.put(None)
            return jobs or None
        return jobs

    def _next(self) -> Job | _Wake | None:
        """Wait for work; what was put off to a quiet moment is done in it."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=self._journaled.rest())
            with self._turn:
                if not self._journaled.rest():
                    if self._journaled.jobs:
                        self._commit([])
                    break
        if self._doomed:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=IDLE_SECONDS)
            with self._turn:
                self._erase_doomed()
        return self._queue.get()

    def _commit(self, jobs: list[Job]) -> None:
        """Make `jobs` durable; none: let LMDB take over what the journal holds."""
        seals = [j for j in jobs if isinstance(j, SealJob)]
        for job in seals:
            self._sealer.seal(job)
        if jobs and self._journaled.hold(jobs, seals):
            return
        if jobs and self._put_journal(jobs, seals, self._post):
            if not self._journaled.is_full:
                return
            jobs = []
        jobs = [*self._journaled.with_held(), *jobs]
        done = Done(
            [j for j in jobs if isinstance(j, SealJob)],
            [j for j in jobs if isinstance(j, CacheJob)],
            [j for j in jobs if isinstance(j, Batch)],
            [j for j in jobs if isinstance(j, Task)],
        )
        ordered = merged([j for j in jobs if isinstance(j, Batch | Task)])
        new = lasting(done.sealed, ordered)
        if new or done.cached or len(self._doomed) > DOOMED_MAX:
            self._insist(lambda: self._put_data(new, done.cached), in_data=True)
        if not ordered and done.sealed:
            self._post(lambda: self._on_done(Done(done.sealed, done.cached)))
            return
        if ordered:
            if self._unsynced:
                self._insist(self._sync)
            self._insist(lambda: self._put_meta(ordered))
            self._journaled.clear()
            for task in done.tasks:
                if task.error is None:
                    task.committed()
        self.commits += 1
        self._post(lambda: self._on_done(done))

    def _put_journal(self, jobs: list[Job], seals: list[SealJob], tell: Callable[[Callable[[], None]], None]) -> bool:
        """Make a group of awaited batches durable by the journal alone, and `tell` so; false where LMDB must."""
        if self._failing or not self._journaled.takes(jobs, seals):
            return False
        if self._unsynced_seals:
            self._insist(self._sync)
        number = self._journaled.append(jobs, seals)
        if number is None:
            return False
        tell(lambda: self._on_durable(number))
        return True

    def _sync(self) -> None:
        """Make `data` durable.  After a failure a commit comes first: the kernel forgets pages that it could not write,
        and the next fsync would succeed without them; what is left to be written is the meta page, which that renews.
        """
        if self._sync_failed:
            with self._env.data.begin(write=True, db=self._env.data_db) as txn:
                _write_nothing(txn)
        self._sync_failed = True
        self._env.sync_data()
        self._sync_failed = self._unsynced = self._unsynced_seals = False

    def _insist(self, step: Callable[[], None], *, in_data: bool = False) -> None:
        """Run `step` until it succeeds; report a disk that takes nothing, and again when it takes something.

        Clean chunks make room `in_data`; for `meta` they cannot, for LMDB's files never shrink.
        """
        tries = 0
        while True:
            try:
                step()
            except (lmdb.Error, OSError) as error:
                if isinstance(error, lmdb.PanicError):
                    raise
                tries += 1
                if not (in_data and self._relieve()) or tries > RELIEF_TRIES:
                    if self._env.give_up_reserve():
                        continue
                    if self._stopping:
                        raise
                    self._report(error)
                self._kick.wait(RETRY_SECONDS if self._failing else RELIEF_SECONDS)
                self._kick.clear()
                continue
            if self._failing:
                self._failing = False
                self._post(lambda: self._on_failure(None))
            if not self._env.has_reserve:
                self._env.take_reserve()
            if in_data and tries:  # what failed to be written may have been the last commit's meta page
                self._insist(self._sync)
            return

    def _relieve(self) -> bool:
        """Let clean chunks go, so that `data` has pages to use again; false when that cannot help.

        LMDB uses a page again once a later commit is the oldest that anybody reads: that takes commits more.
        """
        with self._env.data.begin() as data, self._env.meta.begin() as meta:
            writer = Writer(self._env, self._records, meta, data)
            self.relief(writer)
        self._doomed += writer.doomed
        if self._doomed:
            self._turns = TURNS
        if not self._turns:
            return False
        self._turns -= 1
        return self._erase_doomed(turn=True)

    def _report(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            root, why = self._env.root, self._env.reason(error)
            failure = LocalDiskError(f"{root}: the local disk takes no more ({why}); free some space there")
            log.error("%s", failure)
            self._post(lambda: self._on_failure(failure))

    def _put_data(self, sealed: list[SealJob], cached: list[CacheJob]) -> None:
        try:
            self._write_data(sealed, cached and self._alive(cached))
        except lmdb.Error:
            if not cached:
                raise
            self._write_data(sealed, [])  # what was only to be cached can be fetched again

    def _alive(self, cached: list[CacheJob]) -> list[CacheJob]:
        with self._env.meta.begin(db=self._env.meta_dbs[Table.GARBAGE]) as meta:
            return [job for job in cached if meta.get(U64.pack(job.version)) is None]

    def _write_data(self, sealed_jobs: list[SealJob], cached: list[CacheJob]) -> None:
        with self._env.data.begin(write=True, db=self._env.data_db) as txn:
            for job in sealed_jobs:
                txn.put(U64.pack(job.record.version), job.sealed)
            for kept in cached:
                txn.put(U64.pack(kept.version), kept.sealed)
            self._erase(txn)
        self._erased()
        if sealed_jobs:
            self._unsynced_seals = True

    def _put_meta(self, ordered: list[Batch | Task]) -> None:
        while True:
            try:
                self._write_meta(ordered)
            except _TaskFailedError:
                continue
            return

    def _write_meta(self, ordered: list[Batch | Task]) -> None:
        settled = not self._unsynced
        with self._env.data.begin() as data, self._env.meta.begin(write=True) as meta:
            writer = Writer(self._env, self._records, meta, data, keeping=self.keeping > 0)
            last = self._last
            for job in ordered:
                if isinstance(job, Batch):
                    job.lingering.clear()
                    writer.apply(job)
                    last = Last(job.counters, job.number, job.next_generation, 0)
                elif job.error is None:
                    job.result = _work(job, writer)
            if last is not self._last or writer.dirty_change:
                dirty = self.dirty_bytes + writer.dirty_change
                writer.put_counters(last.counters, last.batch, last.generation, dirty)
            if settled:
                self._forget(meta)
        self._last = last
        self.dirty_bytes += writer.dirty_change
        self._doomed += writer.doomed
        self.spared += writer.spared
        if settled:
            self._forgotten.clear()

    # --- dead versions ----------------------------------------------------------------------------------------------

    def _erase(self, txn: lmdb.Transaction) -> None:
        for version in self._doomed:
            txn.delete(U64.pack(version), db=self._env.data_db)

    def _erased(self) -> None:
        self._forgotten += self._doomed
        self._doomed = []
        self._unsynced = True

    def _erase_doomed(self, *, turn: bool = False) -> bool:
        """In an idle moment; false where a full disk leaves it for later.  `turn`: commit in any case."""
        if not self._doomed and not turn:
            return True
        try:
            with self._env.data.begin(write=True, db=self._env.data_db) as txn:
                if turn:
                    _write_nothing(txn)
                self._erase(txn)
            self._erased()
            self._post(lambda: self._on_done(Done()))
        except lmdb.Error as error:
            if self._env.give_up_reserve():
                return self._erase_doomed(turn=turn)
            log.warning("dead chunks could not be erased yet: %s", error)
            return False
        return True

    def _forget(self, meta: lmdb.Transaction) -> None:
        """Drop the notes of versions whose erasure is durable, and that no location names."""
        locations, garbage = self._env.meta_dbs[Table.LOCATIONS], self._env.meta_dbs[Table.GARBAGE]
        for version in self._forgotten:
            key = U64.pack(version)
            if meta.get(key, db=locations) is None:
                meta.delete(key, db=garbage)
