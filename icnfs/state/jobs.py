"""The work that the request loop hands to the committer, and what of it LMDB must see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

from icnfs.errors import IcnfsError
from icnfs.format.records import ChunkRecord
from icnfs.state.apply import Writer
from icnfs.state.batch import Batch, Counters, merge


@dataclass(slots=True, eq=False)
class SealJob:
    """Seal `plain` as `record` (whose salt, length and tag this fills in) and put it into `data`."""

    record: ChunkRecord
    file_key: bytes
    plain: bytes | memoryview | bytearray
    sealed: bytes = b""


@dataclass(slots=True, eq=False)
class CacheJob:
    """Put a sealed chunk that came from the providers into `data`, unless it died meanwhile."""

    version: int
    sealed: bytes


@dataclass(slots=True, eq=False)
class Task:
    """A change of its own to `meta`, committed like a batch; where `work` raises an `IcnfsError`, nothing changes."""

    work: Callable[[Writer], Any]
    done: Callable[[Any], None]
    committed: Callable[[], None] = lambda: None
    """Called in the committer's thread once the change is durable, before anything else is done there."""
    result: Any = None
    error: IcnfsError | None = None


class Last(NamedTuple):
    """What the last commit's counters say."""

    counters: Counters
    batch: int
    generation: int
    dirty_bytes: int


Job = SealJob | CacheJob | Batch | Task


@dataclass(slots=True)
class Done:
    """What one group of work made durable."""

    sealed: list[SealJob] = field(default_factory=list)
    cached: list[CacheJob] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)


def merged(ordered: list[Batch | Task]) -> list[Batch | Task]:
    """The same work, consecutive batches of one generation merged."""
    found: list[Batch | Task] = []
    for generation, jobs in groupby(ordered, lambda job: None if isinstance(job, Task) else job.generation):
        if generation is None:
            found += jobs
        else:
            found.append(merge([job for job in jobs if isinstance(job, Batch)]))
    return found


def lasting(seals: list[SealJob], ordered: list[Batch | Task]) -> list[SealJob]:
    """Those that LMDB must have: a version that died in the very batches that name it leaves no trace, also in them."""
    dead = {record.version for job in ordered if isinstance(job, Batch) for record in job.dead}
    gone = {job.record.version for job in seals if job.record.version in dead}
    if not gone:
        return seals
    for job in ordered:
        if isinstance(job, Batch):
            job.dead = [record for record in job.dead if record.version not in gone]
    return [job for job in seals if job.record.version not in gone]
