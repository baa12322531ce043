"""The device loop: pyfuse3 really uses it, requests cost no scheduler turn, and no worker is lost.

(The kernel lets one fsync at a time at an inode, so those that are to wait together have files of their own.)
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio

from icnfs.fuse.loop import MIN_TASKS, DeviceLoop
from tests.fuse.mounting import BOUND, Mount, mounted

pytestmark = pytest.mark.mount


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path / "mnt", deadline=0.3) as mount:
        (mount.path / "file").write_bytes(b"contents")
        yield mount


def _loop() -> DeviceLoop:
    loop = pyfuse3.trio  # type: ignore[attr-defined]
    assert isinstance(loop, DeviceLoop)
    return loop


class Counting(trio.abc.Instrument):
    """Counts the scheduler's turns, and the workers that are alive."""

    def __init__(self) -> None:
        self.turns = 0
        self.workers = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.workers += task.name.startswith("pyfuse")

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.workers -= task.name.startswith("pyfuse")

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.turns += task.name.startswith("pyfuse")


def _count(mount: Mount) -> Counting:
    counting = Counting()
    mount.in_loop(trio.lowlevel.add_instrument, counting)
    return counting


def test_the_stand_in_is_there_during_a_mount_only(tmp_path: Path) -> None:
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]
    with mounted(tmp_path / "mnt"):
        assert isinstance(pyfuse3.trio, DeviceLoop)  # type: ignore[attr-defined]
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]


def test_requests_in_a_burst_cost_hardly_any_scheduler_turns(mount: Mount) -> None:
    """Four askers keep a request ready; as shipped there are at least two turns for each."""
    counting = _count(mount)
    askers = [threading.Thread(target=lambda: [os.statvfs(mount.path) for _ in range(500)]) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(BOUND)
    assert mount.fs.calls.count("statfs") == 2000
    assert counting.turns < 2000


def test_other_tasks_get_their_turn_while_requests_keep_coming(mount: Mount) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            os.statvfs(mount.path)

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(50):
            mount.in_loop(int)
    finally:
        stop.set()
        for asker in askers:
            asker.join(BOUND)


def test_a_request_that_is_taken_back_does_not_stop_the_loop(mount: Mount) -> None:
    """What poll saw and read no longer finds: the descriptor does not block, and the worker starts again."""
    device: Any = _loop().lowlevel
    real = device._poll
    lies = 0

    class Lying:
        def poll(self, timeout: int) -> list[tuple[int, int]]:
            nonlocal lies
            if lies < 20:
                lies += 1
                return [(device._fd, 1)]
            return real.poll(timeout)  # type: ignore[no-any-return]

    mount.in_loop(setattr, device, "_poll", Lying())
    for number in range(50):
        (mount.path / f"file{number}").touch()
    assert lies == 20
    assert not mount.ended.done()


def test_idle_workers_are_few_again_after_a_crowd(mount: Mount) -> None:
    counting = _count(mount)
    mount.in_loop(setattr, _loop(), "deadline", BOUND)
    release = trio.Event()
    mount.in_loop(setattr, mount.fs, "pause", lambda called: release if called == "fsync" else None)

    def sync(number: int) -> None:
        fd = os.open(mount.path / f"file{number}", os.O_CREAT | os.O_WRONLY)
        os.fsync(fd)
        os.close(fd)

    crowd = [threading.Thread(target=sync, args=(number,)) for number in range(60)]
    for thread in crowd:
        thread.start()
    while mount.fs.calls.count("fsync") < 60:
        mount.in_loop(int)
    mount.in_loop(release.set)
    for thread in crowd:
        thread.join(BOUND)
    for _ in range(200):
        os.statvfs(mount.path)
    assert counting.workers <= MIN_TASKS + 1


def test_a_deadline_costs_no_worker(mount: Mount) -> None:
    """After many handlers ran into the deadline, one after another and at once, the mount answers as before."""
    mount.in_loop(setattr, mount.fs, "pause", lambda called: trio.Event() if called == "fsync" else None)
    told: list[int | None] = []

    def sync(number: int) -> None:
        fd = os.open(mount.path / f"file{number}", os.O_CREAT | os.O_WRONLY)
        try:
            os.fsync(fd)
        except OSError as exc:
            told.append(exc.errno)
        os.close(fd)

    for _ in range(3):
        crowd = [threading.Thread(target=sync, args=(number,)) for number in range(40)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(BOUND)
    for number in range(5):
        sync(number)
    assert told == [errno.EIO] * 125
    for _ in range(1000):
        os.statvfs(mount.path)


def test_an_fsync_may_be_allowed_to_wait_longer_than_the_rest_and_not_for_ever(tmp_path: Path) -> None:
    class Long:
        async def wait(self) -> None:
            await trio.sleep(0.6)

    with mounted(tmp_path / "mnt", deadline=0.2, fsync_deadline=1.0) as mount:
        (mount.path / "file").write_bytes(b"contents")
        mount.in_loop(setattr, mount.fs, "pause", lambda called: Long() if called in ("fsync", "read") else None)
        fd = os.open(mount.path / "file", os.O_RDWR)
        for _ in range(2):
            os.fsync(fd)
            with pytest.raises(OSError, match="Input/output"):
                os.pread(fd, 4, 0)
        mount.in_loop(setattr, mount.fs, "pause", lambda called: trio.Event() if called == "fsync" else None)
        with pytest.raises(OSError, match="Input/output"):
            os.fsync(fd)
        os.close(fd)


def test_a_handler_that_waits_within_the_deadline_leaves_its_worker_usable(mount: Mount) -> None:
    class Brief:
        async def wait(self) -> None:
            await trio.sleep(0.2)

    mount.in_loop(setattr, mount.fs, "pause", lambda called: Brief() if called == "fsync" else None)
    fd = os.open(mount.path / "file", os.O_WRONLY)
    for _ in range(5):
        os.fsync(fd)
    os.close(fd)
