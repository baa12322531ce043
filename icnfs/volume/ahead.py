"""Reading ahead of whoever reads cold chunks: what lies near one in its share is likely to be wanted next.

Chunks are packed in the order in which they were written.  A file's lie one after another in each of k shares; a
directory's small files lie close together, though they are listed in another order.  So whoever reads a file, or walks
over a tree, asks for many ranges of one stretch of a share, each a round trip.  When a range lies near the last one of
its share, a whole window is asked for, from it on or around it, and held for what comes; a wider one where the last one
was right.  Ranges that adjoin and are wanted at the same time are asked for as one, and a range that lies in a window
which is on its way waits for that.

Memory: windows of HELD bytes in all, and those on their way.  Pure: it knows ranges, not providers.  What it hands out
is unchecked, as what a provider answers is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import trio

from icnfs.format.records import Location
from icnfs.limits import KIB, MIB

SMALL: Final = 64 * KIB
"""Ranges below this are read around of, in either direction; larger ones follow each other when a file is read."""

NARROW: Final = 256 * KIB
WIDE: Final = MIB
"""Bytes of a share's first window, and of those that follow near it: 8 chunks of a file, or 240 files of 4 KiB."""

HELD: Final = 16 * MIB
"""Bytes of windows held: of several readers, one for each of k shares."""

FOLLOWED: Final = 256
"""Shares of which it is known where they were read last."""

Key = tuple[bytes, int]


@dataclass
class _Place:
    """Where a share was read last, and how many windows of it were asked for."""

    offset: int
    windows: int = 0


@dataclass(frozen=True)
class Window:
    """A range that is on its way; `come` is set when it is held, or will not be."""

    location: Location
    come: trio.Event


class Ahead:
    """Where each share was read last, and the windows that were read or are on their way."""

    def __init__(self) -> None:
        self._ranges: OrderedDict[tuple[Key, int], bytes] = OrderedDict()
        self._starts: dict[Key, list[int]] = {}
        self._places: OrderedDict[Key, _Place] = OrderedDict()
        self._wanted: dict[Key, dict[int, int]] = {}
        self._coming: dict[Key, list[Window]] = {}
        self.held_bytes = 0

    def held(self, location: Location) -> bytes | None:
        """The bytes of `location`, where they came with an earlier range."""
        key = location.segment, location.share
        for offset in self._starts.get(key, ()):
            data = self._ranges[key, offset]
            start = location.offset - offset
            if start >= 0 and start + location.length <= len(data):
                return data[start : start + location.length]
        return None

    def coming(self, location: Location) -> Window | None:
        """The window on its way that `location` lies in."""
        for window in self._coming.get((location.segment, location.share), ()):
            if _covers(window.location, location):
                return window
        return None

    def want(self, location: Location) -> None:
        """`location` is about to be asked for: what is wanted at the same time and adjoins it goes with it."""
        self._wanted.setdefault((location.segment, location.share), {})[location.offset] = location.length

    def satisfied(self, location: Location) -> None:
        """`location` is wanted no more."""
        key = location.segment, location.share
        wanted = self._wanted.get(key, {})
        wanted.pop(location.offset, None)
        if not wanted:
            self._wanted.pop(key, None)

    def window(self, location: Location, share_len: int) -> Location:
        """What to ask for: the location and what is wanted beside it; a window where that lies near the last range."""
        key = location.segment, location.share
        stretch, last = self._stretch(location)
        place = self._places.get(key)
        if place is None:
            self._places[key] = _Place(last)
            if len(self._places) > FOLLOWED:
                self._places.popitem(last=False)
            return stretch
        self._places.move_to_end(key)
        width = WIDE if place.windows else NARROW
        gap, place.offset = stretch.offset - place.offset, last
        if location.length >= SMALL:
            near, window = 0 < gap <= WIDE, _following(stretch, location.length, width, share_len)
        else:
            near, window = abs(gap) <= width, _around(stretch, width, share_len)
        place.windows = place.windows + 1 if near else 0
        return window if near else stretch

    def _stretch(self, location: Location) -> tuple[Location, int]:
        """The location with what is wanted on both sides of it, WIDE at most, and where the last of it begins."""
        wanted = self._wanted.get((location.segment, location.share), {})
        ends = {offset + length: offset for offset, length in wanted.items()}
        start, last, end = location.offset, location.offset, location.offset + location.length
        while start in ends and end - ends[start] <= WIDE:
            start = ends[start]
        while end in wanted and end + wanted[end] - start <= WIDE:
            last, end = end, end + wanted[end]
        return location._replace(offset=start, length=end - start), last

    def ask(self, location: Location) -> Window:
        """`location` is asked for now; `keep` or `give_up` must follow."""
        window = Window(location, trio.Event())
        self._coming.setdefault((location.segment, location.share), []).append(window)
        return window

    def keep(self, window: Window, data: bytes) -> None:
        """`data` is what the window holds."""
        key = window.location.segment, window.location.share
        self._forget(key, window.location.offset)
        self._ranges[key, window.location.offset] = data
        self._starts.setdefault(key, []).append(window.location.offset)
        self.held_bytes += len(data)
        while self.held_bytes > HELD:
            self._forget(*next(iter(self._ranges)))
        self.give_up(window)

    def give_up(self, window: Window) -> None:
        """The window is on its way no more; whoever waits for it looks whether it is held."""
        key = window.location.segment, window.location.share
        coming = self._coming.get(key, [])
        if window in coming:
            coming.remove(window)
        if not coming:
            self._coming.pop(key, None)
        window.come.set()

    def drop(self, location: Location) -> None:
        """What is held of the location's share is not to be trusted."""
        key = location.segment, location.share
        for offset in tuple(self._starts.get(key, ())):
            self._forget(key, offset)

    def _forget(self, key: Key, offset: int) -> None:
        data = self._ranges.pop((key, offset), None)
        if data is None:
            return
        self.held_bytes -= len(data)
        self._starts[key].remove(offset)
        if not self._starts[key]:
            del self._starts[key]


def _covers(window: Location, location: Location) -> bool:
    return window.offset <= location.offset and location.offset + location.length <= window.offset + window.length


def _following(stretch: Location, length: int, width: int, share_len: int) -> Location:
    """From the stretch on, whole ranges of `length`: the chunks of one file are of one size, but for its last."""
    ahead = max(width // length, 2) * length
    return stretch._replace(length=max(stretch.length, min(ahead, share_len - stretch.offset)))


def _around(stretch: Location, width: int, share_len: int) -> Location:
    start = stretch.offset // width * width
    end = max(min(start + width, share_len), stretch.offset + stretch.length)
    return stretch._replace(offset=start, length=end - start)
