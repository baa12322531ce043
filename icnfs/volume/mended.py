"""Shares that were stored anew, and how soon each may be stored at the same place once more.  Pure: told the time.

A provider that answers wrongly, or loses what it is given, is found out with each look, and what it should hold is
missing again as soon as it was stored.  Once that is nothing; from the second time on there is a gap, of GAP_SECONDS
and twice as long after each time more, GAP_MAX_SECONDS at most.  Meanwhile the share may go to any other place.
"""

from __future__ import annotations

from typing import Final, NamedTuple

GAP_SECONDS: Final = 30.0
GAP_MAX_SECONDS: Final = 6 * 3600.0

REMEMBERED: Final = 10_000
"""Shares; of more the oldest are forgotten."""


class _Once(NamedTuple):
    provider: str
    gap: float
    due: float


class Mended:
    """By segment and index, where a share was stored anew, and when it may be again."""

    def __init__(self) -> None:
        self._shares: dict[tuple[bytes, int], _Once] = {}

    def note(self, segment: bytes, index: int, provider: str, now: float) -> None:
        """It was stored anew at `provider`."""
        before = self._shares.pop((segment, index), None)
        gap = 0.0
        if before is not None and now < before.due + GAP_MAX_SECONDS:
            gap = min(max(GAP_SECONDS, 2 * before.gap), GAP_MAX_SECONDS)
        self._shares[segment, index] = _Once(provider, gap, now + gap)
        while len(self._shares) > REMEMBERED:
            del self._shares[next(iter(self._shares))]

    def waits(self, segment: bytes, index: int, provider: str, now: float) -> bool:
        """Whether it is not to be stored at `provider` yet."""
        once = self._shares.get((segment, index))
        return once is not None and once.provider == provider and now < once.due
