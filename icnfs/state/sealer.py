"""Sealing of large chunks in a thread of its own, ahead of the committer, which waits for the disk most of the time.

Of a sequential write's time the committer needed a fifth to seal.  Small chunks and batches do without the second
thread where nothing is ahead of them: its turn would cost more than they do.

Promise: jobs come out in the order in which they were put in, the large chunks among them sealed.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Final

from icnfs.crypto.sealing import ChunkSealer, Salts
from icnfs.limits import KIB
from icnfs.state.jobs import Job, SealJob

LARGE: Final = 64 * KIB
"""Plain bytes of a chunk that is worth another thread's turn, some 20 us: to seal it takes as long."""

RUN: Final = 16
"""Jobs that are handed on together, or fewer where no more have come: what a file's fsync submits at once the
committer is to find at once, or it would flush twice."""


class Sealer:
    """A way to `ready`, the committer's queue; the last job is None."""

    def __init__(self, chunks: ChunkSealer, salts: Salts, ready: Callable[[Job | None], None]) -> None:
        self._chunks = chunks
        self._salts = salts
        self._ready = ready
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._taken = self._passed = 0
        """Jobs that came this way, by the loop's count, and that have left it, by the thread's."""
        self._thread = threading.Thread(target=self._run, name="sealer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Once None was put in; blocks."""
        self._thread.join()

    def put(self, job: Job | None) -> None:
        """To be called by one thread."""
        if job is not None and self._taken == self._passed and not _is_large(job):
            self._ready(job)
            return
        self._taken += 1
        self._queue.put(job)

    def seal(self, job: SealJob) -> None:
        """Fill in what is missing, in whatever thread; nothing where the job is sealed."""
        if job.sealed:
            return
        record = job.record
        record.salt_id = salt_id = self._salts.current
        sealed, record.tag = self._chunks.seal(job.file_key, record.key_id, salt_id, record.version, job.plain)
        record.length = len(sealed)
        job.sealed = sealed

    def _run(self) -> None:
        run: list[Job | None] = []
        while True:
            job = self._queue.get()
            if isinstance(job, SealJob):
                with contextlib.suppress(Exception):  # the committer tries again, and reports what it meets
                    self.seal(job)
            run.append(job)
            if len(run) >= RUN or self._queue.empty():
                for each in run:
                    self._ready(each)
                self._passed += len(run)
                run.clear()
            if job is None:
                return


def _is_large(job: Job) -> bool:
    return isinstance(job, SealJob) and len(job.plain) >= LARGE
