"""Reading small chunks ahead: what lies near one in its share is likely to be wanted next.

Chunks are packed in the order in which they were written, and a directory's files lie close together, though they are
listed in another order.  So whoever walks over a tree of small files asks for many ranges of one stretch of a share,
each a round trip.  When a small range lies near the last one of its share, the whole window around it is asked for, and
held for what comes.  Pure: it knows ranges, not providers.  What it hands out is unchecked, as what a provider answers
is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from icnfs.format.records import Location
from icnfs.limits import KIB

SMALL: Final = 64 * KIB
"""Ranges below this are read ahead of; above it a round trip carries its weight."""

AHEAD: Final = 256 * KIB
"""Bytes of a window, and how far from the last range one may begin to count as near."""

HELD: Final = 32
"""Ranges held, 8 MiB: of several walkers, one for each of k shares."""


class Ahead:
    """Where each share was read last, and the windows that were read."""

    def __init__(self) -> None:
        self._ranges: OrderedDict[tuple[bytes, int], tuple[int, bytes]] = OrderedDict()
        self._last: OrderedDict[tuple[bytes, int], int] = OrderedDict()

    def held(self, location: Location) -> bytes | None:
        """The bytes of `location`, where they came with an earlier range."""
        offset, data = self._ranges.get((location.segment, location.share), (0, b""))
        start = location.offset - offset
        if start < 0 or start + location.length > len(data):
            return None
        return data[start : start + location.length]

    def window(self, location: Location, share_len: int) -> Location:
        """What to ask for: the location itself, or the window around it where it lies near the last range."""
        last = self._last.get((location.segment, location.share))
        if last is None or location.length >= SMALL or abs(location.offset - last) > AHEAD:
            return location
        start = location.offset // AHEAD * AHEAD
        end = max(min(start + AHEAD, share_len), location.offset + location.length)
        return location._replace(offset=start, length=end - start)

    def keep(self, location: Location, window: Location, data: bytes) -> None:
        """`data` is what `window` holds, which was asked for on account of `location`."""
        key = location.segment, location.share
        self._last[key] = location.offset
        self._last.move_to_end(key)
        if window.length > location.length:
            self._ranges[key] = window.offset, data
            self._ranges.move_to_end(key)
        while len(self._ranges) > HELD:
            self._ranges.popitem(last=False)
        while len(self._last) > 8 * HELD:
            self._last.popitem(last=False)

    def drop(self, location: Location) -> None:
        """What is held of the location's share is not to be trusted."""
        self._ranges.pop((location.segment, location.share), None)
