"""How fast each provider is, from what it did last.

A call of `length` bytes is expected to take the provider's latency, plus all bytes in flight there, its own included,
at the provider's rate.  Latency is the median of recent small calls; the rate comes from large ones.  How far that
can be trusted is measured as well: what recent calls took as a multiple of what was expected of them.  A call that is
late by that measure is *overdue*, and while it is, or once it was given up, the provider counts as that slow.

    nothing known       as the median of the others; of nobody: UNKNOWN_RATE, and patience is the longest
    slow, and asked     what it does, call by call
    slow, not asked     what was known fades towards the others' median, by half each HALF_LIFE: so it is tried again

Pure: it is told the time, and asks nobody anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final

from icnfs.limits import HEDGE_SECONDS, KIB, MIB

SMALL: Final = 64 * KIB
"""Calls up to this tell a provider's latency; larger ones tell its rate."""

RECENT: Final = 15
"""Small calls whose median is the latency: enough that one outlier says nothing, few enough to turn within eight."""

TRUSTED: Final = 64
ENOUGH: Final = 8
"""Calls, the last ones, from which patience is measured; with fewer, those of all providers together are taken."""

FADES: Final = 0.9
"""What one more large call leaves of the weight of those before it."""

FADES_LATE: Final = 0.5
"""The same where it took much longer than was expected: a line that became slow is known after a few calls."""

HALF_LIFE: Final = 15.0
"""Seconds in which the bad reputation of a provider that is not asked halves."""

STALE: Final = 30.0
"""Seconds without a call of its size after which what those before it took is not held against the next."""

PATIENCE_LEAST: Final = 0.05
"""Seconds; below it lies what a busy machine does to a call that no provider is to blame for."""

SLOWER: Final = 1.5
"""A call that is given up after so many times what was expected of it shows that its provider is slower."""

BARELY: Final = 0.005
"""Seconds; calls expected to take less say nothing of multiples."""

LATE_MAX: Final = 30.0
"""Seconds that a provider which lets one call after another hang is at most expected to take."""

UNKNOWN_RATE: Final = 8 * MIB
"""Bytes per second that are expected of anybody before the first large call."""

SLOWEST_USEFUL: Final = 2 * MIB
"""A call may take its bytes at this rate, per second, on top of the longest patience."""


@dataclass(eq=False, slots=True)
class Call:
    """One that is under way."""

    length: int
    """Bytes: what was asked, or 0 where that is not known; to be set to what came."""
    begun: float
    weight: int
    """Of the bytes in flight at its provider, those counted for it."""
    behind: int
    """All of those when it began, its own included."""
    expected: float
    patience: float


class Pace:
    """All providers' estimates in one direction: what is not known of one is taken from the others."""

    def __init__(self, hedge: float = HEDGE_SECONDS) -> None:
        self.hedge = hedge
        """The longest patience in seconds, and the patience while nothing is known."""
        self.estimates: list[Estimate] = []

    def latency(self) -> float:
        known = [one.latency for one in self.estimates if one.latency is not None]
        return median(known) if known else 0.0

    def seconds_per_byte(self) -> float:
        known = [one.seconds_per_byte for one in self.estimates if one.seconds_per_byte is not None]
        return median(known) if known else 1 / UNKNOWN_RATE

    def multiples(self) -> list[float]:
        return [multiple for one in self.estimates for multiple in one.multiples]


class Estimate:
    """One provider.  Times are in seconds of one clock, whichever."""

    def __init__(self, pace: Pace) -> None:
        self.latency: float | None = None
        self.seconds_per_byte: float | None = None
        self.multiples: deque[float] = deque(maxlen=TRUSTED)
        self.in_flight = 0
        """Bytes of the calls under way."""
        self._pace = pace
        self._calls: dict[Call, None] = {}
        self._small: deque[float] = deque(maxlen=RECENT)
        self._seconds = self._bytes = 0.0
        self._told_latency = self._told_rate = float("-inf")
        self._late = 0.0
        self._late_told = self._proven = float("-inf")
        pace.estimates.append(self)

    @property
    def rate(self) -> float | None:
        """Bytes per second, None before the first large call."""
        return 1.0 / self.seconds_per_byte if self.seconds_per_byte else None

    def holds(self) -> float:
        """Bytes that lie on the line to the provider when that is full: its rate by its latency; 0 while unknown."""
        return self.latency / self.seconds_per_byte if self.latency and self.seconds_per_byte else 0.0

    def forget(self) -> None:
        """The provider is gone: the others are not measured by it."""
        self._pace.estimates.remove(self)

    # --- what is expected ---------------------------------------------------------------------------------------------

    def expected(self, length: int, now: float) -> float:
        """Seconds that a call of `length` bytes would take if it began now."""
        return max(self._plain(length, now), self._faded(self._late, 0.0, now - self._late_told), self._overdue(now))

    def patience(self, length: int, now: float) -> float:
        """Seconds after which such a call is late: 19 of 20 take less.  From PATIENCE_LEAST to the pace's hedge, and
        its bytes at SLOWEST_USEFUL."""
        longest = self.longest(length)
        multiples = list(self.multiples) if len(self.multiples) >= ENOUGH else self._pace.multiples()
        if len(multiples) < ENOUGH:
            return longest
        multiples.sort()
        usual = self._plain(length, now) * max(1.0, multiples[len(multiples) * 19 // 20])
        return min(max(usual, PATIENCE_LEAST), longest)

    def longest(self, length: int) -> float:
        """The most that `patience` may be."""
        return self._pace.hedge + length / SLOWEST_USEFUL

    def _plain(self, length: int, now: float) -> float:
        """By latency and rate alone."""
        latency, each = self._pace.latency(), self._pace.seconds_per_byte()
        if self.latency is not None:
            latency = self._faded(self.latency, latency, now - self._told_latency)
        if self.seconds_per_byte is not None:
            each = self._faded(self.seconds_per_byte, each, now - self._told_rate)
        return latency + (self.in_flight + length) * each

    def _faded(self, own: float, common: float, age: float) -> float:
        return own if own <= common else common + (own - common) * 0.5 ** (age / HALF_LIFE)

    def _overdue(self, now: float) -> float:
        """What the oldest call under way has taken, if it is late and none that began after it was answered."""
        for call in self._calls:
            if call.begun >= self._proven:
                waited = now - call.begun
                return waited if waited >= call.patience else 0.0
        return 0.0

    # --- what is learned ----------------------------------------------------------------------------------------------

    def begin(self, length: int, now: float) -> Call:
        """A call begins; `done` or `given_up` must follow."""
        expected, patience = self._plain(length, now), self.patience(length, now)
        self.in_flight += length
        call = Call(length, now, length, self.in_flight, expected, patience)
        self._calls[call] = None
        return call

    def done(self, call: Call, now: float) -> None:
        """It was answered, with `call.length` bytes."""
        self._end(call)
        took = now - call.begun
        self._note(took, call)
        self._proven = max(self._proven, call.begun)
        if call.begun >= self._late_told:
            self._late = 0.0
        if call.length <= SMALL:
            own = took - self._behind_others(call)
            if own > 0:
                if now - self._told_latency > STALE:
                    self._small.clear()
                self._small.append(own)
                self.latency, self._told_latency = median(self._small), now
            return
        self._learn(took, call, now)

    def given_up(self, call: Call, now: float) -> None:
        """It failed, or its caller wants it no more: that says something if it was late, or slower than was known."""
        self._end(call)
        took = now - call.begun
        if took < call.patience:
            if call.length > SMALL and call.begun >= self._proven and took > SLOWER * call.expected:
                self._learn(took, call, now)  # it would have taken longer still
            return
        self._note(took, call)
        if call.begun < self._proven:
            return  # others that began after it were answered: it was in trouble, and not its provider
        # Each time in a row it is expected to take twice as long, so that one that hangs is tried ever more seldom.
        again = self._late * 2 if call.begun >= self._late_told else self._late
        self._late, self._late_told = min(max(took, again), LATE_MAX), now

    def _behind_others(self, call: Call) -> float:
        """Seconds of what a small call took that the bytes before it explain; a few of them explain nothing."""
        if call.behind <= SMALL:
            return 0.0
        each = self._pace.seconds_per_byte() if self.seconds_per_byte is None else self.seconds_per_byte
        return (call.behind - call.length) * each

    def _learn(self, took: float, call: Call, now: float) -> None:
        """A large call took, or has taken, so long: that tells the rate."""
        keeps = (FADES_LATE if took > SLOWER * call.expected else FADES) if now - self._told_rate <= STALE else 0.0
        self._seconds = self._seconds * keeps + took - (self._pace.latency() if self.latency is None else self.latency)
        self._bytes = self._bytes * keeps + max(call.behind, call.length)
        self.seconds_per_byte, self._told_rate = max(self._seconds / self._bytes, 0.0), now

    def _note(self, took: float, call: Call) -> None:
        if self.latency is not None or self.seconds_per_byte is not None:  # what was expected was more than a guess
            self.multiples.append(took / max(call.expected, BARELY))

    def _end(self, call: Call) -> None:
        del self._calls[call]
        self.in_flight -= call.weight
