"""How a provider stands: what its answers to audits were worth, and how much of the time it was there.  Pure.

    standing    becomes       when
    vetting     trusted       VETTED answers and a day have passed, and it did not become suspended
    vetting     suspended     fewer than VETTING_LEAST of its last answers were right (the second wrong one of late)
    trusted     suspended     fewer than RIGHT_LEAST of its last answers were right (the sixth wrong one of late), or it
                              was there for less than THERE_LEAST of the last day or so
    suspended   vetting       at least RIGHT_AGAIN of its last answers were right and it was there for THERE_AGAIN; or
                              it holds nothing to be asked for, and was there for PAROLE

A suspended provider gets no new shares while there are enough others, and its shares do not count as held (`sync` goes
by what was stored, and names it where that was for its answers).  It is audited on, and that is its way back: to be
vetted again, with a clean record.  Who was not there was not asked: that is no wrong answer.  Unknown outcomes count
neither way.  While fewer than half of all providers are there, the fault is more likely on this side, and nobody is
blamed.

Both numbers are moving averages: of the last ANSWERS answers, and of the last THERE seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

ANSWERS: Final = 50
THERE: Final = 86_400.0

RIGHT_LEAST: Final = 0.90
VETTING_LEAST: Final = 0.97
RIGHT_AGAIN: Final = 0.98
THERE_LEAST: Final = 0.75
THERE_AGAIN: Final = 0.90

VETTED: Final = 100
VETTED_SECONDS: Final = 86_400.0
PAROLE: Final = 7 * 86_400.0

LOOK_MOST: Final = 600.0
"""Seconds between two looks that count at most: what lies between two mounts was seen by nobody."""

WRONG: Final = frozenset({"missing", "altered"})


class Standing(StrEnum):
    """See the module."""

    VETTING = "vetting"
    TRUSTED = "trusted"
    SUSPENDED = "suspended"


class Record(msgspec.Struct, array_like=True):
    """What is known of one provider; times are Unix seconds."""

    since: float
    """When it got its standing."""
    looked: float
    """When it was last seen there, or not."""
    standing: Standing = Standing.VETTING
    right: float = 1.0
    """The part of its last answers that were right."""
    there: float = 1.0
    """The part of the time of late that it was there."""
    asked: int = 0
    """Answers since it got its standing."""
    answered: float = 0.0
    """When the last one came."""
    outcomes: dict[str, int] = {}
    """All outcomes so far."""
    reason: str = ""
    """Why it has its standing."""


@dataclass(frozen=True)
class Change:
    """A provider's standing has changed."""

    provider: str
    before: Standing
    after: Standing
    reason: str


class Trust:
    """All providers of a volume; `records` may be kept at any moment, and gone on from."""

    def __init__(self, records: dict[str, Record]) -> None:
        self.records = records

    def adopt(self, names: Iterable[str], now: float) -> None:
        """From now on know these, and no others; one that is new is to be vetted."""
        self.records = {name: self.records.get(name) or Record(now, now, reason="it is new") for name in names}

    def suspended(self) -> frozenset[str]:
        """Those that get no new shares."""
        return frozenset(name for name, one in self.records.items() if one.standing is Standing.SUSPENDED)

    def liars(self) -> frozenset[str]:
        """Those of them whose answers of late were wrong too often: what they are said to hold, they may not."""
        return frozenset(name for name in self.suspended() if self.records[name].right < RIGHT_AGAIN)

    def answered(self, name: str, outcome: str, now: float) -> Change | None:
        """The outcome of a check, as in `transfer.checks`."""
        one = self.records.get(name)
        if one is None:
            return None
        one.outcomes[outcome] = one.outcomes.get(outcome, 0) + 1
        if outcome not in WRONG and outcome != "present":
            return None
        one.asked += 1
        one.answered = now
        one.right += ((outcome == "present") - one.right) / ANSWERS
        return self._judge(name, one, now)

    def look(self, there: Mapping[str, bool], now: float) -> list[Change]:
        """Who is there now; of those that are not named nothing is known."""
        blame = 2 * sum(there.values()) >= len(there)
        changes = []
        for name, one in self.records.items():
            gap = min(max(now - one.looked, 0.0), LOOK_MOST)
            one.looked = now
            if name in there and blame:
                one.there += (there[name] - one.there) * -math.expm1(-gap / THERE)
                changes.append(self._judge(name, one, now))
        return [change for change in changes if change is not None]

    def _judge(self, name: str, one: Record, now: float) -> Change | None:
        after, reason = _next(one, now)
        if after is one.standing:
            return None
        change = Change(name, one.standing, after, reason)
        if after is Standing.VETTING:
            one.right = 1.0
        one.standing, one.since, one.asked, one.reason = after, now, 0, reason
        return change


def _next(one: Record, now: float) -> tuple[Standing, str]:
    """The standing that these numbers mean, and why."""
    right = f"{one.right:.0%} of its last {ANSWERS} answers were right"
    there = f"it was there {one.there:.0%} of the last day"
    waited = max(now - one.since, 0.0)
    if one.standing is Standing.SUSPENDED:
        idle = now - max(one.answered, one.since)
        if one.there >= THERE_AGAIN and (one.right >= RIGHT_AGAIN or idle >= PAROLE):
            return Standing.VETTING, right if one.right >= RIGHT_AGAIN else "it holds nothing, and was there for a week"
        return Standing.SUSPENDED, ""
    if one.right < (RIGHT_LEAST if one.standing is Standing.TRUSTED else VETTING_LEAST):
        return Standing.SUSPENDED, right
    if one.there < THERE_LEAST:
        return Standing.SUSPENDED, there
    if one.standing is Standing.VETTING and one.asked >= VETTED and waited >= VETTED_SECONDS:
        return Standing.TRUSTED, f"{one.asked} answers, and {right}"
    return one.standing, ""
