"""The stall meter sees what keeps the loop from its tasks, and leaves an idle loop asleep."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable

import pytest
import trio

from icnfs.control import stalls
from icnfs.control.stalls import Histogram, Load, StallMeter


def measured(work: Callable[[], Awaitable[None]]) -> StallMeter:
    """A meter that ran beside `work`."""

    async def main() -> StallMeter:
        meter = StallMeter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.run)
            await work()
            nursery.cancel_scope.cancel()
        return meter

    return trio.run(main)


async def busy(seconds: float) -> None:
    """Compute, and let others run all the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await trio.lowlevel.checkpoint()


def test_a_loop_that_blocks_50_ms_shows_it() -> None:
    async def work() -> None:
        await busy(0.1)
        time.sleep(0.05)
        await busy(0.1)

    found = measured(work).figures()
    assert 40 < found.max_ms < 500
    assert found.p999_ms > 30
    assert found.count > 15


def test_the_first_thing_that_an_idle_loop_does_is_measured_too() -> None:
    async def work() -> None:
        read, write = os.pipe()
        await trio.sleep(0.05)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, read)
            await trio.to_thread.run_sync(os.write, write, b"x")
        time.sleep(0.05)
        await trio.sleep(0.02)
        os.close(read)
        os.close(write)

    assert measured(work).figures().max_ms > 35


def test_a_stall_of_many_ticks_weighs_as_many() -> None:
    async def work() -> None:
        await busy(0.05)
        time.sleep(0.3)
        await busy(0.1)

    found = measured(work).figures()
    assert found.p50_ms > 30
    assert found.count >= 35


def test_an_idle_loop_is_not_woken() -> None:
    turns = 0

    class Counting(trio.abc.Instrument):
        def after_io_wait(self, timeout: float) -> None:
            nonlocal turns
            turns += 1

    async def work() -> None:
        nonlocal turns
        trio.lowlevel.add_instrument(Counting())
        with trio.fail_after(30):  # a machine that is busy elsewhere lets the ticker doubt for a while
            while True:
                turns = 0
                await trio.sleep(0.3)
                if turns <= 2:  # after the sleep, and the one tick that it brings
                    return

    measured(work)


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 3.1e-5, 0.0042, 0.05, 1.0, 77.0, 1e9])
def test_a_quantile_is_at_most_an_eighth_too_high(seconds: float) -> None:
    histogram = Histogram()
    histogram.add(0.0)
    histogram.add(seconds)
    assert histogram.max == seconds
    assert histogram.quantile(1.0) <= seconds
    assert histogram.quantile(1.0) >= min(seconds, 2.0**36 / 1e6)
    histogram.add(1e10)
    assert seconds <= max(1e-6, 1e9, histogram.quantile(0.6))
    assert histogram.quantile(0.6) <= max(2e-6, seconds * 1.126)


def test_quantiles_part_the_times() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0.0
    for number in range(1000):
        histogram.add((number + 1) / 1000)
    for share in (0.5, 0.9, 0.99):
        assert share <= histogram.quantile(share) <= share * 1.126


def test_a_loop_that_computes_is_busy_and_stays_so_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    at = used = 0.0
    monkeypatch.setattr(stalls.time, "monotonic", lambda: at)
    monkeypatch.setattr(stalls.time, "thread_time", lambda: used)
    load = Load()

    def after(seconds: float, computed: float) -> bool:
        nonlocal at, used
        at, used = at + seconds, used + computed
        return load.busy()

    assert not after(0.25, 0.01)
    assert after(0.25, 0.2)
    assert after(0.25, 0.0)
    assert after(stalls.REST - 0.3, 0.0)
    assert not after(0.25, 0.0)


def test_what_the_loop_of_this_thread_computes_is_what_counts() -> None:
    load = Load()
    time.sleep(0.05)
    assert not load.busy()
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    assert load.busy()
