"""Times of what changes: those of the kernel's ticks, never older than what the kernel itself gave a moment ago."""

from __future__ import annotations

import pytest

from icnfs.vfs import times
from icnfs.vfs.times import TICK, Clock


class Ticks:
    """A kernel's two clocks: that of its ticks, and the fine one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ticked = 10**18
        self.fine = self.ticked + 500
        monkeypatch.setattr(times, "clock_gettime_ns", lambda clock: self.ticked)
        monkeypatch.setattr(times, "time_ns", lambda: self.fine)


def test_what_the_kernel_gave_a_moment_ago_is_never_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, clock = Ticks(monkeypatch), Clock()
    assert clock.now() == ticks.ticked
    clock.heard(ticks.ticked + 300)
    assert clock.now() == ticks.ticked + 300
    ticks.ticked += 400
    assert clock.now() == ticks.ticked


@pytest.mark.parametrize("moment", [0, -5, 10**18 - 1, 10**18 + 501, 2**63 - 1])
def test_other_times_that_files_are_given_change_nothing(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    ticks, clock = Ticks(monkeypatch), Clock()
    clock.heard(moment)
    assert clock.now() == ticks.ticked


def test_a_clock_that_is_set_back_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, clock = Ticks(monkeypatch), Clock()
    clock.heard(ticks.ticked + 300)
    ticks.ticked -= TICK
    ticks.fine -= TICK
    assert clock.now() == ticks.ticked
