"""Power loss: whatever the disk kept of writes under way, the state opens, is a prefix, and holds what was promised.

The 2,000 states of a release: `python -m tests.acceptance.powerloss --states 2000 --seed 1`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.powerloss import trial
from tests.acceptance.powerloss.recording import Crash, Loss, Rebuilder, Recording, Write, draw_crashes

STATES = 300
REQUESTS = 800

_PROGRAM = """
import os, sys, ctypes
d = sys.argv[1]
fd = os.open(d + "/plain", os.O_CREAT | os.O_RDWR)
dsync = os.open(d + "/plain", os.O_RDWR | os.O_DSYNC)
os.pwrite(fd, b"a" * 1024, 0)
os.fdatasync(fd)
os.pwrite(fd, b"b" * 1024, 512)
os.pwrite(dsync, b"c" * 512, 4096)
os.ftruncate(fd, 4608)
ctypes.CDLL(None).recorder_mark(b"said", ctypes.c_size_t(4))
os.writev(fd, [b"d", b"e"])
"""


@pytest.fixture
def work() -> Iterator[Path]:
    """In memory where that is possible: what is synced here is recorded, not relied on."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="icnfs-powerloss-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def recording(work: Path) -> Recording:
    (work / "live").mkdir()
    (work / "base").mkdir()
    return trial.record(work, work / "live", ["-c", _PROGRAM, str(work / "live")])


def _state(recording: Recording, work: Path, crash: Crash) -> bytes:
    Rebuilder(recording, work / "base").rebuild(crash, work / "state")
    return (work / "state" / "plain").read_bytes()


def test_recorder_tells_durable_from_pending(recording: Recording) -> None:
    assert list(recording.names.values()) == ["plain"]
    assert [mark.text for mark in recording.marks] == ["said"]
    synced, pending, through_dsync, resized, gathered = recording.writes
    last = recording.length
    assert synced.durable < pending.issued
    assert pending.returned < last < pending.durable
    assert through_dsync.durable == through_dsync.returned < last
    assert resized.data is None and resized.offset == 4608
    assert (gathered.data, gathered.offset) == (b"de", 0)


def test_states_hold_what_is_durable_and_no_more_than_was_written(recording: Recording, work: Path) -> None:
    end = recording.length - 1
    lost = _state(recording, work, Crash(end, Loss.NONE, 1))
    assert lost == b"a" * 1024 + bytes(3072) + b"c" * 512
    assert (
        _state(recording, work, Crash(end, Loss.ALL, 1)) == b"de" + b"a" * 510 + b"b" * 1024 + bytes(2560) + b"c" * 512
    )
    torn = {_state(recording, work, Crash(end, Loss.TORN, seed))[512:1536] for seed in range(40)}
    assert {b"b" * 512 + bytes(512), b"a" * 512 + b"b" * 512} <= torn
    assert _state(recording, work, Crash(recording.writes[0].issued, Loss.NONE, 1)) == b""


def test_a_write_is_not_made_durable_by_a_sync_that_was_issued_before_it_returned() -> None:
    writes = [Write(1, 0, 0, b"x", returned=3)]
    assert writes[0].durable > 10**9
    crashes = draw_crashes(Recording({1: "f"}, writes, [], 5, [1, 2]), 8, seed=1)
    assert {crash.loss for crash in crashes} == set(Loss)
    assert [c.moment for c in crashes] == sorted(c.moment for c in crashes)


@pytest.mark.timeout(300)
def test_every_state_after_a_power_loss_is_a_prefix_that_holds_what_fsync_promised(work: Path) -> None:
    verdicts = trial.run(work, STATES, seed=1, requests=REQUESTS)
    faults = [f"{verdict.crash}: {verdict.fault}" for verdict in verdicts if verdict.fault]
    assert not faults, "\n".join(faults)
    assert len(verdicts) == STATES
    assert sum(verdict.pending > 0 for verdict in verdicts) > STATES // 4, "too few states had anything to lose"
    assert sum(verdict.held < verdict.most for verdict in verdicts) > STATES // 10


def test_the_trial_notices_a_disk_that_lies_about_syncs(work: Path) -> None:
    """The same run on a disk that keeps nothing of what it says it has synced."""

    def lying(folder: Path, below: Path, argv: list[str]) -> Recording:
        recording = trial_record(folder, below, argv)
        return replace(recording, writes=[replace(write, durable=1 << 62) for write in recording.writes])

    trial_record = trial.record
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "record", lying)
        verdicts = trial.run(work, 40, seed=1, requests=200)
    assert sum(bool(verdict.fault) for verdict in verdicts) > 10
