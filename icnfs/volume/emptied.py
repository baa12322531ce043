"""Places that were found empty: how often, and when such a one may be taken again.

A place may lose everything once, and what it held is stored there anew.  One that shows itself empty again and again
would have all shares sent to it each time, at nobody's gain: it is taken again ever later, and does without meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Final

import msgspec
import trio

from icnfs.format.segment import SegmentInfo

AT_ONCE: Final = 2
"""So many times a place is taken as soon as it is found empty: when it is new, and when it lost everything."""

WAIT_SECONDS: Final = 60.0
WAIT_MOST: Final = 86400.0
"""Between two takings after that: at first, and at most; twice as long each time."""


class Emptied:
    """Of one mount; `now` is in seconds."""

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self.now = now
        self.times: Counter[str] = Counter()
        """How often each provider's place was found empty, or became another: what it was given before that is gone."""
        self._takings: Counter[str] = Counter()
        self._taken: dict[str, float] = {}

    def taken(self, provider: str) -> None:
        """It is in use again."""
        self._takings[provider] += 1
        self._taken[provider] = self.now()

    def may_take(self, provider: str) -> bool:
        """Whether it is time."""
        again = self._takings[provider] + 1 - AT_ONCE
        if again <= 0:
            return True
        wait = min(WAIT_MOST, WAIT_SECONDS * 2.0 ** min(again - 1, 20))
        return self.now() >= self._taken[provider] + wait

    def since(self, before: Counter[str]) -> Counter[str]:
        """Those of which that is so since `times` was as in `before`."""
        return self.times - before


def may_lack(segment: SegmentInfo, provider: str) -> bool:
    """Whether `provider` is said to hold shares without which there are enough.

    What was stored there after it lost the rest is there: where too few others are, that may be what rebuilds all.
    """
    held = sum(share.provider == provider and share.stored for share in segment.shares)
    return held > 0 and segment.stored() - held >= segment.k


def without(segment: SegmentInfo, provider: str) -> SegmentInfo:
    """The segment, where `provider` holds nothing."""
    shares = tuple(
        msgspec.structs.replace(share, stored=share.stored and share.provider != provider) for share in segment.shares
    )
    return msgspec.structs.replace(segment, shares=shares)


def but_for(gone: Collection[str], now: SegmentInfo, changed: SegmentInfo) -> SegmentInfo:
    """`changed`, with what it says of the providers in `gone` as it is `now`."""
    both = zip(now.shares, changed.shares, strict=True)
    shares = tuple(old if new.provider in gone else new for old, new in both)
    return msgspec.structs.replace(changed, shares=shares)
