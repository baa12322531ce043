"""When a mount goes before other programs, and when it ceases to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest

from icnfs import process
from icnfs.control import precedence
from icnfs.control.precedence import CROWDED, HOLD, HOLD_MAX, PERIOD, Precedence
from icnfs.process import Place

ORDINARY = Place(0, 0)


class Machine:
    """A clock, and a thread that waits for `share` of each period."""

    def __init__(self, given: Place = ORDINARY) -> None:
        self.now = 100.0
        self.waited = 0.0
        self.niceness = 0
        self.taken: list[tuple[float, int]] = []
        self.has = given
        self.precedence = Precedence(lambda: self.waited, lambda: self.has, self._take, lambda: self.now)
        self.precedence.look()

    def _take(self, place: Place) -> None:
        self.has = place
        self.niceness = place.process
        self.taken.append((self.now, place.process))

    def runs(self, seconds: float, share: float, step: float = 0.01) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            self.waited += share * step
            self.precedence.look()


def test_it_goes_ahead_once_others_keep_it_waiting_for_a_period() -> None:
    machine = Machine()
    machine.runs(10, CROWDED - 0.05)
    assert machine.taken == []
    machine.runs(2.5 * PERIOD, CROWDED + 0.05)
    assert machine.niceness == process.AHEAD


def test_it_steps_back_after_a_while_and_stays_back_where_nobody_is_in_the_way() -> None:
    machine = Machine()
    machine.runs(0.5, 0.9)
    machine.runs(20, 0.0)
    assert [niceness for _, niceness in machine.taken] == [process.AHEAD, 0]
    (ahead, _), (back, _) = machine.taken
    assert HOLD <= back - ahead <= HOLD + 2 * PERIOD


def test_it_steps_back_to_the_place_that_it_was_given() -> None:
    machine = Machine(Place(5, None))
    machine.runs(0.5, 0.9)
    assert machine.has == Place(process.AHEAD, process.AHEAD)
    machine.runs(5, 0.0)
    assert machine.has == Place(5, None)


def test_where_the_crowd_stays_it_tries_ever_more_seldom() -> None:
    machine = Machine()
    machine.runs(600, 0.8)
    tried = [at for at, niceness in machine.taken if niceness == 0]
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert gaps[:3] == sorted(gaps[:3])
    assert gaps[-1] == pytest.approx(HOLD_MAX, abs=3 * PERIOD)
    behind = sum(b - a for (a, n), (b, _) in pairwise(machine.taken) if n == 0)
    assert behind < 0.02 * 600


def test_a_crowd_that_comes_anew_later_is_met_as_the_first_was() -> None:
    machine = Machine()
    machine.runs(60, 0.8)
    machine.runs(60, 0.0)
    machine.taken.clear()
    machine.runs(0.5, 0.8)
    machine.runs(5, 0.0)
    (ahead, _), (back, _) = machine.taken
    assert back - ahead <= HOLD + 2 * PERIOD


def test_a_rest_is_no_crowd_and_a_loop_that_hardly_runs_is_in_one() -> None:
    machine = Machine()
    machine.waited += 0.09
    machine.now += 5.5
    machine.precedence.look()
    assert machine.taken == []
    machine.runs(1.0, 0.9, step=0.4)
    assert machine.niceness == process.AHEAD


CROWD = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
end = time.monotonic() + 20
while time.monotonic() < end:
    pass
"""


@pytest.mark.skipif(not os.path.exists(precedence.SCHEDSTAT), reason="this kernel does not count waits")
def test_the_kernel_counts_the_waits_of_the_thread_that_asks() -> None:
    processor = min(os.sched_getaffinity(0))
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD, str(processor)]) for _ in range(2)]
    found: list[float] = []

    def computes() -> None:
        os.sched_setaffinity(0, {processor})
        before, end = precedence.waited() or 0.0, time.monotonic() + 0.5
        while time.monotonic() < end:
            pass
        found.append((precedence.waited() or 0.0) - before)

    try:
        thread = threading.Thread(target=computes)
        thread.start()
        thread.join()
    finally:
        for other in crowd:
            other.kill()
            other.wait()
    assert 0.05 < found[0] < 5


def test_a_kernel_that_does_not_count_leaves_it_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedence, "SCHEDSTAT", "/proc/no-such-file")
    assert precedence.waited() is None
    readings = iter([5.0, None, 5.0, 5.0])  # one that fails once must not seem to begin at nothing
    moments = iter([100.0, 100.1, 100.3, 100.5])
    taken: list[Place] = []
    judge = Precedence(lambda: next(readings), take=taken.append, clock=lambda: next(moments))
    for _ in range(4):
        judge.look()
    assert taken == []
