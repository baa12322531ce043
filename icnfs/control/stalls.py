"""How late the event loop comes round: what a request that needs the loop now would wait before anything is done.

A ticker asks to be woken every `TICK` seconds and records how much later it was.  Whatever keeps the loop from its
tasks counts: a handler that computes, a call that blocks, an interpreter lock that another thread holds, a processor
that is not there.  As ticks come at even times, a percentile is one of the loop's busy time: 0.1 % of it is spent in
stalls longer than `p999_ms`.  A stall longer than a tick hides the ticks that fall into it; they are made up
for, each with what was left of the stall at its time.

Promises:

1. An idle loop is never woken.  When the loop's thread has hardly computed since the last tick, the ticker parks; what
   wakes it is a hook that trio calls after each wait for events, in place only while the ticker is parked.
2. Constant memory: a histogram of fixed size, each bucket an eighth of a power of two wide.

epoll counts in milliseconds: lateness up to 1 ms is its rounding and means nothing.

Rejected: a hook for each turn of the loop.  It costs as much when the loop is busy, its percentiles count turns, of
which thousands are short, and it does not see the interpreter lock held while epoll returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec
import trio

TICK: Final = 0.01
"""Seconds between ticks: two thousand samples in twenty seconds, for a 99.9th percentile that is not one sample."""

IDLE_CPU: Final = 0.001
"""Seconds of CPU in a tick below which the loop counts as idle; a tick alone took up to 0.4 ms where the processor had
to be woken for it."""

LATE: Final = 0.002
"""Seconds of lateness that show a loop to be busy, whatever it used: an idle one may come 1 ms late, which is how epoll
counts."""

BUSY: Final = 0.25
"""The part of its time that a busy loop computes."""

REST: Final = 1.0
"""Seconds for which a busy loop counts as busy still: programs that work on files think in between."""

SUBBUCKETS: Final = 8
"""Buckets for each power of two: a percentile is at most an eighth too high."""

BUCKETS: Final = 37 * SUBBUCKETS
"""From 1 us to 2^36 us, 19 hours; what is later counts in the last one."""


class Stalls(msgspec.Struct, frozen=True):
    """The loop's lateness since the mount began, in milliseconds; `count` ticks were taken, while the loop was busy."""

    count: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0
    max_ms: float = 0.0


class Histogram:
    """Counts of times in seconds, in buckets of equal relative width."""

    def __init__(self) -> None:
        self.count = 0
        self.max = 0.0
        self._buckets = [0] * BUCKETS

    def add(self, seconds: float) -> None:
        """Count one time; below 1 us it counts as 1 us."""
        fraction, exponent = math.frexp(max(1.0, seconds * 1e6))
        place = (exponent - 1) * SUBBUCKETS + int((fraction * 2 - 1) * SUBBUCKETS)
        self._buckets[min(place, BUCKETS - 1)] += 1
        self.count += 1
        self.max = max(self.max, seconds)

    def quantile(self, share: float) -> float:
        """Seconds that `share` (0 to 1) of the times do not exceed: the upper end of its bucket; 0 where there are
        none."""
        left = math.ceil(share * self.count)
        for place, count in enumerate(self._buckets):
            left -= count
            if left <= 0 < self.count:
                exponent, part = divmod(place, SUBBUCKETS)
                return min(self.max, (1 << exponent) * (1 + (part + 1) / SUBBUCKETS) / 1e6)
        return self.max


class StallMeter:
    """The ticker of one loop, and what it found; `each` is called at every tick."""

    def __init__(self, each: Callable[[], None] = lambda: None) -> None:
        self._late = Histogram()
        self._each = each

    def figures(self) -> Stalls:
        """What was found so far."""
        p50, p99, p999, most = (round(self._late.quantile(share) * 1000, 3) for share in (0.5, 0.99, 0.999, 1.0))
        return Stalls(self._late.count, p50, p99, p999, most)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = await _until_busy()
            late, used = trio.current_time() - due, IDLE_CPU
            while late >= LATE or used >= IDLE_CPU:
                due += self._record(late) * TICK
                self._each()
                began = time.thread_time()
                await trio.sleep_until(due)
                late, used = trio.current_time() - due, time.thread_time() - began

    def _record(self, late: float) -> int:
        """Count a tick, and those that its lateness hid: how many."""
        ticks = 1 + int(late / TICK)
        for hidden in range(ticks):
            self._late.add(late - hidden * TICK)
        return ticks


class Load:
    """Whether the loop of this thread is busy, or was a moment ago."""

    def __init__(self) -> None:
        self._at, self._used = time.monotonic(), time.thread_time()
        self._busy_until = 0.0

    def busy(self) -> bool:
        """Whether it computed for BUSY of the time between two calls within the last REST seconds.

        To be called in the loop's thread, at even intervals; where they are longer than REST, it tells of the last one.
        """
        at, used = time.monotonic(), time.thread_time()
        if used - self._used >= BUSY * (at - self._at):
            self._busy_until = at + REST
        self._at, self._used = at, used
        return at < self._busy_until


class _Waker(trio.abc.Instrument):
    """Wakes the ticker after the loop's next wait, whatever ended it; `woken` is when that was."""

    def __init__(self) -> None:
        self.task = trio.lowlevel.current_task()
        self.woken = 0.0

    def after_io_wait(self, timeout: float) -> None:
        if not self.woken:
            self.woken = trio.current_time()
            trio.lowlevel.reschedule(self.task)


async def _until_busy() -> float:
    """The moment at which the loop next wakes."""
    waker = _Waker()

    def abort(_raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        waker.woken = math.inf
        return trio.lowlevel.Abort.SUCCEEDED

    trio.lowlevel.add_instrument(waker)
    try:
        await trio.lowlevel.wait_task_rescheduled(abort)
    finally:
        trio.lowlevel.remove_instrument(waker)
    return waker.woken
