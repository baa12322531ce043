"""The order and the pace of the audit, as numbers.  Pure: it is told the time, and asks nobody anything.

A sweep visits every segment once, and all its shares, in an order that is drawn once for a volume on a machine; it is
spread evenly over `days`, so that each share is looked at every so many days.  Ids are random, so a part of the order
is as large a part of the volume, and how far a sweep is, is one id: it goes on from there after any interruption.  A
visit reads each share's list of leaf hashes, 0.05 % of it, and as many of its leaves, chosen at random each time, as
the share's part of the reading allows: on average in proportion to its size, so most visits to a small share read none.

Where `days` and `most` cannot both hold, the reading gives first (visits that read no leaf), then the time: a sweep
goes on past `days`.  `most` holds on every day (UTC), but LEAST bytes a day may be read of any volume.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from icnfs.config import AuditRules
from icnfs.erasure import hashtree
from icnfs.format import share as share_format
from icnfs.format.segment import ID_SIZE
from icnfs.limits import LEAF_SIZE, MIB

DAY: Final = 86_400.0

LEAST: Final = 16 * MIB
"""Bytes of any volume that may be read a day: below 16 GiB stored, 0.1 % of it would be a few leaves."""

EARLY: Final = 0.97
PLANNED: Final = 0.9
"""A sweep that keeps its time is done after this part of `days`, and plans to read this part of `most`: what chance and
second looks add to a day must not delay it."""

IDS: Final = 1 << (8 * ID_SIZE)


class State(msgspec.Struct, array_like=True):
    """How far the audit is; times are Unix seconds."""

    mask: bytes = bytes(ID_SIZE)
    """What ids are ordered by."""
    at: bytes = b""
    """The last id visited, masked; empty before the first."""
    begun: float = 0.0
    """When this sweep began, 0 before the first."""
    day: int = 0
    read: int = 0
    """Bytes read on `day`, counted from 1970."""
    sweeps: int = 0
    """Sweeps that were finished."""


@dataclass(frozen=True)
class Visit:
    """One share to look at: `leaves` of it, its list of leaf hashes in any case."""

    index: int
    leaves: tuple[int, ...]
    cost: int
    """Bytes that it takes."""


class Sweep:
    """The audit's order and pace; `state` may be kept at any moment, and gone on from."""

    def __init__(self, state: State, rng: random.Random) -> None:
        self.state = state
        self._rng = rng

    # --- order --------------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Begin a sweep."""
        state = self.state
        if state.begun:
            state.sweeps += 1
        else:
            state.mask = self._rng.randbytes(ID_SIZE)
        state.at, state.begun = b"", now

    def upcoming(self, ids: Iterable[bytes], most: int) -> list[bytes]:
        """Of the segments `ids`, the next to be visited, at most `most`; none where all were."""
        mask, at = int.from_bytes(self.state.mask, "big"), self.state.at
        masked = ((int.from_bytes(id, "big") ^ mask).to_bytes(ID_SIZE, "big") for id in ids)
        chosen = heapq.nsmallest(most, (each for each in masked if each > at))
        return [self._swapped(each) for each in chosen]

    def visited(self, id: bytes) -> None:
        """This one, and with it all that come before it, were visited."""
        self.state.at = self._swapped(id)

    def _swapped(self, id: bytes) -> bytes:
        """A masked id, or of one that is masked the id."""
        return (int.from_bytes(id, "big") ^ int.from_bytes(self.state.mask, "big")).to_bytes(ID_SIZE, "big")

    # --- pace ---------------------------------------------------------------------------------------------------------

    def is_due(self, id: bytes, now: float, rules: AuditRules) -> bool:
        """Whether the sweep should have come to this segment by now."""
        self.state.begun = min(self.state.begun, now)  # the clock was set back
        part = int.from_bytes(self._swapped(id), "big") / IDS
        return now - self.state.begun >= part * rules.days * DAY * EARLY

    def is_over(self, now: float, rules: AuditRules) -> bool:
        """Whether the next sweep is to begin, once all of this one were visited."""
        return now - self.state.begun >= rules.days * DAY

    def spend(self, cost: int, now: float) -> None:
        """So many bytes were read."""
        self._turn_day(now)
        self.state.read += cost

    def _turn_day(self, now: float) -> None:
        day = int(now // DAY)
        if day != self.state.day:
            self.state.day, self.state.read = day, 0

    # --- what to read -------------------------------------------------------------------------------------------------

    def plan(
        self, share_len: int, indexes: Sequence[int], stored: int, now: float, rules: AuditRules
    ) -> list[Visit] | None:
        """What to look at of a segment's shares `indexes`, each `share_len` bytes long, of `stored` bytes in all.

        None where not even their lists of leaf hashes may be read today.
        """
        self._turn_day(now)
        for expected in (leaves_expected(share_len, stored, rules), 0.0):
            visits = [self._visit(share_len, index, expected) for index in indexes]
            if self.state.read + sum(visit.cost for visit in visits) <= a_day(stored, rules):
                return visits
        return None

    def _visit(self, share_len: int, index: int, expected: float) -> Visit:
        count = hashtree.leaf_count(share_len)
        wanted = min(math.floor(expected + self._rng.random()), count)
        leaves = tuple(sorted(self._rng.sample(range(count), wanted)))
        lengths = (min(LEAF_SIZE, share_len - leaf * LEAF_SIZE) for leaf in leaves)
        return Visit(index, leaves, share_format.header_size(share_len) + sum(lengths))


def a_day(stored: int, rules: AuditRules) -> float:
    """Bytes that may be read a day of `stored` ones."""
    return max(rules.most / 100 * stored, LEAST)


def leaves_expected(share_len: int, stored: int, rules: AuditRules) -> float:
    """Leaves that a visit to a share reads on average, so that a sweep keeps to `most`.

    Of a volume so small that LEAST is more than `most`, at most one for that.
    """
    header, leaf = share_format.header_size(share_len), min(LEAF_SIZE, share_len)
    by_rule = PLANNED * rules.most / 100 * rules.days * share_len - header
    by_least = LEAST * rules.days / max(stored, 1) * share_len - header
    return max(by_rule, min(by_least, leaf), 0.0) / leaf


def unnoticed(shares: int, lost: int, days: float, rules: AuditRules) -> float:
    """The probability that of `lost` among `shares` shares of a provider, lost on one day, none was looked at after
    `days` days of a sweep that keeps its time.

    A sweep that is under way goes on, in an order that has nothing to do with what is lost.
    """
    seen = min(round(shares * days / rules.days), shares)
    if seen > shares - lost:
        return 0.0
    return math.exp(
        math.lgamma(shares - lost + 1)
        + math.lgamma(shares - seen + 1)
        - math.lgamma(shares - lost - seen + 1)
        - math.lgamma(shares + 1)
    )


def unnoticed_leaves(shares: int, share_len: int, part: float, days: float, stored: int, rules: AuditRules) -> float:
    """The probability that after `days` days none of the altered leaves was read, a `part` of all leaves of a
    provider's `shares`, here and there."""
    visits = shares * days / rules.days
    expected = leaves_expected(share_len, stored, rules)
    sure, maybe = math.floor(expected), expected % 1.0
    each = (1 - part) ** sure * (1 - maybe * part)
    return float(each**visits)
