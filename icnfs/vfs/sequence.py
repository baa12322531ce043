"""Whether a file is read in order, and how much of it is worth having before it is asked for.

The kernel has several reads under way, and they may arrive in any order; so what counts is whether reads lie close to
where the last ones ended, and leave out little.  Whoever reads here and there has no window; that of who reads in order
is a multiple of what was read, so that it grows fast, and little is fetched in vain when the reader stops.  Pure.
"""

from __future__ import annotations

from typing import Final

from icnfs.limits import KIB, MIB

NEAR: Final = 2 * MIB
"""Bytes before and after the end of what was read: all that the kernel has under way."""

BEGINS: Final = 256 * KIB
"""Bytes read in order before anything is fetched ahead."""

GROWS: Final = 16
"""The window is so many times what was read.  The first read of the kernel, 2 MiB, then has as much asked for as the
lines of six providers hold, whose connections all begin slowly at the same time, not one after another."""

WIDEST: Final = 128 * MIB


class Sequence:
    """The reads of one handle that miss what is at hand."""

    __slots__ = ("_read", "_start", "announced", "end")

    def __init__(self) -> None:
        self._start = self._read = 0
        self.end = 0
        """Where what was read ends."""
        self.announced = 0
        """How far it was fetched ahead, in bytes of the file."""

    def saw(self, offset: int, size: int) -> bool:
        """A read arrives; whether it belongs to those before it."""
        goes_on = abs(offset - self.end) <= NEAR
        if not goes_on:
            self._start = self.end = self.announced = offset
            self._read = 0
        self._read += size
        self.end = max(self.end, offset + size)
        return goes_on

    @property
    def window(self) -> int:
        """Bytes worth fetching from `end` on."""
        span = self.end - self._start
        if span < BEGINS or self._read * 2 < span:
            return 0
        return min(GROWS * span, WIDEST)
