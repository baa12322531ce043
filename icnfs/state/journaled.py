"""What the journal holds that LMDB lacks, and sealed chunks that wait for the batch which names them.

Used by whoever commits, the committer's thread or, for a moment, the request loop: one at a time.
"""

from __future__ import annotations

import logging
from math import inf
from time import monotonic
from typing import Final

from icnfs.limits import KIB, MIB
from icnfs.state.batch import Batch
from icnfs.state.jobs import Job, SealJob
from icnfs.state.journal import Journal

log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 0.05
SETTLE_BATCHES: Final = 256
SETTLE_BYTES: Final = 2 * MIB
"""LMDB takes over what the journal holds after so long without work, or when it holds so many batches or bytes: a
quarter of ACCEPTED_MAX, for what LMDB lacks counts as accepted."""

HOLD_MAX: Final = 256 * KIB
"""Plain bytes of chunks that may wait for the batch that names them, and go to the journal with it; sealing an entry
holds the interpreter lock for 0.1 ms then."""


class Journaled:
    """Jobs that are durable by the journal alone, in order, and sealed chunks that are held for the next entry."""

    def __init__(self, journal: Journal | None) -> None:
        self.jobs: list[Batch | SealJob] = []
        self.append_seconds = inf
        """What the last entry took."""
        self._journal = journal
        self._held: list[SealJob] = []
        self._batches = 0
        self._appended = 0.0

    def __bool__(self) -> bool:
        """Whether LMDB lacks anything that is here."""
        return bool(self.jobs or self._held)

    @property
    def is_full(self) -> bool:
        """Whether LMDB is to take over what the journal holds now."""
        return self._journal is not None and (self._batches >= SETTLE_BATCHES or self._journal.used >= SETTLE_BYTES)

    def rest(self) -> float:
        """Seconds until LMDB is to take over what the journal holds; 0 where it holds nothing as well."""
        return max(0.0, self._appended + SETTLE_SECONDS - monotonic()) if self.jobs else 0.0

    def hold(self, jobs: list[Job], seals: list[SealJob]) -> bool:
        """Keep sealed chunks, where there is nothing else and they are few, for the batch that will name them."""
        if len(seals) != len(jobs) or self._journal is None or not self._is_small(seals):
            return False
        self._held += seals
        return True

    def takes(self, jobs: list[Job], seals: list[SealJob]) -> bool:
        """Whether a group is for the journal: awaited batches, and no more chunks than go with them."""
        batches = sum(isinstance(job, Batch) and job.awaited for job in jobs)
        return self._journal is not None and batches + len(seals) == len(jobs) and self._is_small(seals)

    def append(self, jobs: list[Job], seals: list[SealJob]) -> int | None:
        """Make a group that it takes durable: the number of its last batch; None where LMDB must."""
        if self._journal is None:
            return None
        batches = [job for job in jobs if isinstance(job, Batch)]
        seals = self._held + seals
        began = monotonic()
        try:
            if not self._journal.append(batches, [(job.record.version, job.sealed) for job in seals]):
                return None
        except OSError as error:
            log.warning("the journal is given up until the next mount: %s", error)
            self._journal = None
            return None
        self._appended = monotonic()
        self.append_seconds = self._appended - began
        self._held = []
        self.jobs += seals
        self.jobs += batches
        self._batches += len(batches)
        return batches[-1].number

    def with_held(self) -> list[Job]:
        """All jobs, those held among them, which are held no more."""
        held, self._held = self._held, []
        return [*self.jobs, *held]

    def clear(self) -> None:
        """LMDB has all of it."""
        self.jobs.clear()
        self._batches = 0
        if self._journal is not None:
            self._journal.reset()

    def _is_small(self, seals: list[SealJob]) -> bool:
        return sum(len(job.plain) for job in (*self._held, *seals)) <= HOLD_MAX
