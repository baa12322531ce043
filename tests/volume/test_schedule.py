"""Automatic snapshots: at the right times, as many as the rules keep, whatever the clock does."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.config.volume import Schedule
from icnfs.format.snapshot import KINDS, Snapshot
from icnfs.vfs.attributes import SetAttr
from icnfs.volume import scheduler, snapshots
from icnfs.volume.schedule import PERIODS, automatic, due, spent
from icnfs.volume.scheduler import Scheduler
from icnfs.volume.volume import Volume
from tests.format.test_snapshot import ONE
from tests.volume.test_snapshots import SECONDS, make
from tests.volume.world import World, files_of, put_file

HOUR = 3_600 * 10**9
DAY = 24 * HOUR
START = 1_767_225_600 * 10**9
"""Thursday, 2026-01-01 00:00 UTC."""


def taken(kind: str, time_ns: int, until: int = 0) -> Snapshot:
    return msgspec.structs.replace(ONE, name=f"{kind}-{time_ns}", kind=kind, time_ns=time_ns, until=until)


def live(times: list[int], rules: Schedule, present: list[Snapshot] | None = None) -> list[Snapshot]:
    """What there is after the clock has shown these times."""
    found = list(present or [])
    for now in times:
        kind = due(found, rules, now)
        if kind is not None:
            found.append(taken(kind, now))
            assert due(found, rules, now) is None, "one is enough"
        gone = spent(found, rules, now)
        assert found[-1:] != gone[-1:] or kind is None, "none is made for nothing"
        found = [each for each in found if each not in gone]
    return found


def test_a_year_leaves_what_the_rules_say() -> None:
    rules = Schedule(hourly=24, daily=7, weekly=4, monthly=12)
    found = live([START + hour * HOUR + 17 for hour in range(366 * 24)], rules)
    end = START + (366 * 24 - 1) * HOUR + 17
    hours = [end - hour * HOUR for hour in range(24)]
    assert set(hours) <= {each.time_ns for each in found}
    months = {PERIODS["monthly"](each.time_ns) for each in found}
    assert len(months) == 12 and 24 + 6 + 2 + 11 <= len(found) <= 24 + 7 + 4 + 12
    first_of_january_2027 = START + 365 * DAY + 17
    assert taken("monthly", first_of_january_2027) in found


def test_the_longest_period_gives_the_kind() -> None:
    rules = Schedule(hourly=3, daily=3, weekly=3, monthly=3)
    found = live([START, START + HOUR, START + DAY, START + 4 * DAY], rules)
    assert [each.kind for each in found] == ["monthly", "hourly", "daily", "weekly"]


rules = st.builds(Schedule, *[st.integers(0, 3)] * 4)
times = st.lists(st.integers(START, START + 400 * DAY), max_size=40)


@given(rules, times)
def test_jumping_clocks_make_no_more_than_the_rules_keep(rules: Schedule, times: list[int]) -> None:
    found = live(times, rules)
    assert len(found) <= rules.hourly + rules.daily + rules.weekly + rules.monthly
    if times and rules != Schedule():
        assert found, "and never lose them all"


@given(rules, times, st.lists(st.tuples(st.sampled_from(KINDS), st.integers(START, START + DAY), st.booleans())))
def test_neither_those_by_hand_nor_locked_ones_are_thinned(
    rules: Schedule, times: list[int], given: list[tuple[str, int, bool]]
) -> None:
    present = [taken(kind, time, (START + 500 * DAY) // 10**9 if locked else 0) for kind, time, locked in given]
    found = live(times, rules, present)
    for each in present:
        if each.kind == "manual" or each.until:
            assert each in found
    assert all(each.kind != "manual" for each in automatic(found))


def test_the_mount_makes_and_thins_them(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()
    now = START + 100

    class Clock:
        def __getattr__(self, name: str) -> object:
            import time

            return getattr(time, name)

        def time_ns(self) -> int:
            return now

        def time(self) -> float:
            return now / 1e9

        def gmtime(self, *_: float) -> object:
            import time

            return time.gmtime(now / 1e9)

    monkeypatch.setattr(scheduler, "time", Clock())
    monkeypatch.setattr(snapshots, "time", Clock())
    monkeypatch.setattr("icnfs.state.cut.time", Clock())

    async def main(volume: Volume) -> None:
        nonlocal now
        rules = Schedule(hourly=2, daily=2)
        schedule = Scheduler(volume.store, volume.snapshots, lambda: rules, SECONDS)
        await put_file(volume, b"f", b"1")
        await make(volume, "mine")
        for _ in range(2):
            now += HOUR
            await schedule.look()
            assert [each.name for each in volume.snapshots.list()] == ["mine"], "nothing was changed"
        for hour in range(5):
            now += HOUR
            vfs = files_of(volume)
            vfs.setattr(vfs.lookup(1, b"f").ino, SetAttr(mode=0o600 + hour))
            for _ in range(2):
                await schedule.look()
        names = [each.name for each in volume.snapshots.list()]
        assert names == ["mine", "daily-2026-01-01T030000Z", "hourly-2026-01-01T060000Z", "hourly-2026-01-01T070000Z"]
        rules = Schedule()
        now += HOUR
        await put_file(volume, b"f", b"2")
        await schedule.look()
        assert len(volume.snapshots.list()) == 4

    here.run(main)
