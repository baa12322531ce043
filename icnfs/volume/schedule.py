"""When automatic snapshots are due, and which have had their time.

A rule keeps the first snapshot of each of the last so many hours, days, weeks (from Monday) or months, in UTC, that
have one; one snapshot may serve several rules.  One is due while some rule's present period has none.  Both go by
counts and never by age, so a clock that jumps loses nothing: forwards, a period more is filled; backwards, periods
that are filled stay so.  Only automatic ones are looked at.  Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from icnfs.config.volume import Schedule
from icnfs.format.snapshot import Snapshot

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MONDAY: Final = 3
"""Days by which the epoch, a Thursday, follows a Monday."""


def _month(time_ns: int) -> int:
    day = EPOCH + timedelta(days=time_ns // (86_400 * 10**9))
    return day.year * 12 + day.month


PERIODS: Final[Mapping[str, Callable[[int], int]]] = {
    "monthly": _month,
    "weekly": lambda time_ns: (time_ns // (86_400 * 10**9) + MONDAY) // 7,
    "daily": lambda time_ns: time_ns // (86_400 * 10**9),
    "hourly": lambda time_ns: time_ns // (3_600 * 10**9),
}
"""The number of the period that holds a Unix time (ns), by kind, the longest first."""


def automatic(snapshots: Iterable[Snapshot]) -> list[Snapshot]:
    """Those that a schedule made, the oldest first."""
    return sorted((each for each in snapshots if each.kind in PERIODS), key=lambda each: each.time_ns)


def due(snapshots: Sequence[Snapshot], rules: Schedule, now_ns: int) -> str | None:
    """The kind of the snapshot that is to be made now: the longest period that has none; None for none.

    Nor is one due that would have had its time at once, as where the clock went back.
    """
    times = [each.time_ns for each in automatic(snapshots)]
    if now_ns not in _kept([*times, now_ns], rules):
        return None
    for kind, period in PERIODS.items():
        if _count(rules, kind) and period(now_ns) not in map(period, times):
            return kind
    return None


def spent(snapshots: Sequence[Snapshot], rules: Schedule, now_ns: int) -> list[Snapshot]:
    """Automatic ones that no rule keeps, but for those that are locked."""
    found = automatic(snapshots)
    kept = _kept([each.time_ns for each in found], rules)
    return [each for each in found if each.time_ns not in kept and each.until * 10**9 <= now_ns]


def _kept(times: Sequence[int], rules: Schedule) -> set[int]:
    kept: set[int] = set()
    for kind, period in PERIODS.items():
        first: dict[int, int] = {}
        for time_ns in sorted(times):
            first.setdefault(period(time_ns), time_ns)
        count = _count(rules, kind)
        kept.update(list(first.values())[-count:] if count else ())
    return kept


def _count(rules: Schedule, kind: str) -> int:
    count: int = getattr(rules, kind)
    return count
