"""The wish for awake processors is held while bursts of requests come fast, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from icnfs.fuse import wakeups
from icnfs.fuse.wakeups import DEVICE, KEEP_SECONDS, Wakeups
from tests.fuse.mounting import mounted


def _holders(device: Path) -> int:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link) == str(device) for link in links if os.path.islink(link))


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "latency"
    path.touch()
    return path


def _run(device: Path, pace: float, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Four bursts `pace` seconds apart, then quiet: how many hold the device after each burst, and in the end."""
    seen: list[int] = []

    async def main() -> None:
        monkeypatch.setattr(wakeups.time, "monotonic", trio.current_time)
        asks = Wakeups(device)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks.run)
            for _ in range(4):
                await trio.sleep(pace)
                asks.burst()
                await wait_all_tasks_blocked()
                seen.append(_holders(device))
            await trio.sleep(3 * KEEP_SECONDS)
            seen.append(_holders(device))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return seen


def test_held_while_bursts_are_fast(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(device, 0.02, monkeypatch) == [0, 1, 1, 1, 0]
    assert device.read_bytes() == bytes(4)


def test_not_held_for_slow_requests(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(device, 0.1, monkeypatch) == [0, 0, 0, 0, 0]
    assert device.read_bytes() == b""


def test_a_device_that_cannot_be_had_ends_it(tmp_path: Path) -> None:
    async def main() -> None:
        asks = Wakeups(tmp_path / "missing")
        asks.burst()
        asks.burst()
        with trio.fail_after(5):
            await asks.run()

    trio.run(main)


@pytest.mark.mount
@pytest.mark.skipif(not os.access(DEVICE, os.W_OK), reason="needs /dev/cpu_dma_latency")
def test_a_mount_asks_for_it_under_load(tmp_path: Path) -> None:
    held = 0
    with mounted(tmp_path / "mnt") as mount:
        for _ in range(20):
            for _ in range(100):
                os.statvfs(mount.path)
            held = max(held, _holders(DEVICE))
    assert held == 1
    assert _holders(DEVICE) == 0
