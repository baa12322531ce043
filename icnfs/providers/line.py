"""A line of so many bytes a second, which all who use it take in turns of PIECE bytes.

So a small call beside large ones waits for one piece of each, and two large ones get half of it each: as connections
over one link do.  Nothing is saved up: after an idle time no more goes at once than ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import trio

from icnfs.limits import KIB

PIECE: Final = 64 * KIB


class Line:
    """`rate` is in bytes per second, 0 for no bound, and may be changed at any time."""

    def __init__(self, rate: float = 0.0) -> None:
        self.rate = rate
        self._free_at = float("-inf")

    def reserve(self, size: int, now: float) -> float:
        """Take the next `size` bytes of the line; the time at which they are through."""
        if not self.rate:
            return now
        self._free_at = max(self._free_at, now) + size / self.rate
        return self._free_at


async def take(lines: Iterable[Line], size: int) -> None:
    """Wait until `size` bytes are through all of the lines."""
    bounded = [line for line in lines if line.rate]
    while size > 0 and bounded:
        piece = min(size, PIECE)
        now = trio.current_time()
        await trio.sleep_until(max(line.reserve(piece, now) for line in bounded))
        size -= piece
