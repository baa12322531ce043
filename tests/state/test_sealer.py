"""What goes to the committer keeps its order, large chunks come out sealed, and each says which salt sealed it."""

from __future__ import annotations

import threading
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.crypto.chunks import ChunkSealer
from icnfs.crypto.salts import Salts
from icnfs.errors import DamagedError
from icnfs.format.records import ChunkRecord
from icnfs.state.jobs import CacheJob, Job, SealJob
from icnfs.state.sealer import LARGE, Sealer

KEY = bytes(32)


class Turning(Salts):
    """Two salts that take turns as the current one: whenever somebody looks, it is the other."""

    def __init__(self) -> None:
        super().__init__()
        self.add(1, bytes(32))
        self.add(2, bytes([1] * 32))
        self._looks = count()

    @property
    def current(self) -> int:
        return next(self._looks) % 2 + 1


def seal_job(version: int, size: int) -> SealJob:
    return SealJob(ChunkRecord(version=version, key_id=1, salt_id=0, length=0, tag=b""), KEY, bytes(size))


def opens(chunks: ChunkSealer, job: SealJob) -> bool:
    record = job.record
    return len(job.sealed) == record.length and bytes(job.plain) == chunks.open(
        KEY, record.key_id, record.salt_id, record.version, record.tag, job.sealed
    )


@given(st.lists(st.sampled_from([1, LARGE - 1, LARGE, LARGE + 1, None]), max_size=30))
def test_order_is_kept_and_the_large_are_sealed(sizes: list[int | None]) -> None:
    salts = Turning()
    chunks = ChunkSealer(bytes(16), salts)
    out: list[Job | None] = []
    sealer = Sealer(chunks, salts, out.append)
    sealer.start()
    jobs = [CacheJob(n, b"") if size is None else seal_job(n, size) for n, size in enumerate(sizes)]
    for job in jobs:
        sealer.put(job)
    sealer.put(None)
    sealer.join()
    assert out == [*jobs, None]
    for job in jobs:
        if isinstance(job, SealJob):
            assert not job.sealed or opens(chunks, job)
            assert job.sealed or len(job.plain) < LARGE


def test_what_cannot_be_sealed_goes_on_and_is_told_of_where_it_is_tried_again() -> None:
    salts = Salts()
    out: list[Job | None] = []
    sealer = Sealer(ChunkSealer(bytes(16), salts), salts, out.append)
    sealer.start()
    job, after = seal_job(1, LARGE), seal_job(2, 1)
    for each in (job, after, None):
        sealer.put(each)
    sealer.join()
    assert out == [job, after, None]
    with pytest.raises(RuntimeError):
        sealer.seal(job)


def test_a_small_job_overtakes_no_large_one_and_takes_no_turn_where_there_is_none() -> None:
    salts = Turning()
    chunks = ChunkSealer(bytes(16), salts)
    let_go, out = threading.Event(), list[Job | None]()

    class Slow(ChunkSealer):
        def seal(self, *args: object) -> tuple[bytes, bytes]:  # type: ignore[override]
            let_go.wait(30)
            return super().seal(*args)  # type: ignore[arg-type]

    sealer = Sealer(Slow(bytes(16), salts), salts, out.append)
    sealer.start()
    first, large, small = seal_job(1, 1), seal_job(2, LARGE), CacheJob(3, b"")
    sealer.put(first)
    assert out == [first]
    sealer.put(large)
    sealer.put(small)
    assert out == [first]
    let_go.set()
    sealer.put(None)
    sealer.join()
    assert out == [first, large, small, None]
    assert opens(chunks, large)


def test_a_wrong_salt_would_be_noticed() -> None:
    salts = Turning()
    chunks = ChunkSealer(bytes(16), salts)
    job = seal_job(1, LARGE)
    Sealer(chunks, salts, lambda job: None).seal(job)
    job.record.salt_id = 3 - job.record.salt_id
    with pytest.raises(DamagedError):
        opens(chunks, job)
