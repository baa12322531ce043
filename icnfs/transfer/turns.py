"""Bulk calls to one provider, one after another in the order in which they are wanted.

All at once they would come all at once, and the first of them as late as the last; and tasks, which the scheduler
wakes in any order, would come in any order.  So a few are under way, and of those that wait the one with the least
`turn` is next.  Small calls wait for nobody here.

How many are a few is counted in bytes, for what is under way lies on the line or in the queue before it.  Less than
the line holds leaves it idle; more than it and its queue hold is dropped, and a connection that loses the end of an
answer may need seconds to get it back.  Over six lines of 25 MB/s and 40 ms, which hold 1 MB, with queues of 2 MiB,
six reads of 1 MiB at once lost some 400 packets of up to 64 KiB in each 256 MiB, reads of 2.25 MiB in all none; 256 MiB
came at 0.69 of the lines then, at 0.74 with 3.5 MiB under way, at 0.71 with 4.5 (means of four to eight files).  Since
reads that are given up leave their connections in use, 3 MiB do as well as 3.5, and better where one line has just
become ten times slower: 0.69 of six lines instead of 0.63 (medians of six to eight files, which vary by 0.1).
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

import trio

from icnfs.limits import KIB, MIB

BULK: Final = 256 * KIB
"""Bytes from which on a call is bulk."""

UNDER_WAY: Final = 12 * BULK
"""Bytes of bulk calls under way at one provider whose line is not known to hold more."""

UNDER_WAY_MAX: Final = 8 * MIB
"""The most of them for a line that does."""

PART: Final = 0.75
"""What part of all that a line is thought to hold may be under way beyond UNDER_WAY: too little costs that little, too
much is dropped, and what an estimate is made of varies by as much."""

LEAST: Final = 2
"""Bulk calls under way at one provider, however large: a line is full while one of them waits for its answer."""

BACKGROUND: Final = 2**63
"""Beyond every other turn: for what nobody waits for."""

turn: Final = ContextVar("turn", default=0)
"""The place in the order, least first, of what a task and those that it starts read."""


class Turns:
    """Who is next at one provider.  `holds` says how many bytes lie on its line when that is full; 0: not known."""

    def __init__(self, holds: Callable[[], float] = lambda: 0.0) -> None:
        self._holds = holds
        self._calls = self._bytes = 0
        self._waiting: list[tuple[int, int, int, trio.Event]] = []
        self._count = 0

    @asynccontextmanager
    async def of(self, length: int) -> AsyncIterator[None]:
        """For the time of a call of `length` bytes, once it is its turn."""
        if length < BULK:
            yield
            return
        await self._wait(length)
        try:
            yield
        finally:
            self._leave(length)

    async def _wait(self, length: int) -> None:
        self._count += 1
        entry = turn.get(), self._count, length, trio.Event()
        heapq.heappush(self._waiting, entry)
        try:
            await trio.lowlevel.checkpoint()  # those who begin at the same time have their say
            self._let_in()
            await entry[3].wait()
        except BaseException:
            if entry[3].is_set():
                self._leave(length)
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
                self._let_in()
            raise

    def _leave(self, length: int) -> None:
        self._calls -= 1
        self._bytes -= length
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][2]):
            _, _, length, event = heapq.heappop(self._waiting)
            self._calls += 1
            self._bytes += length
            event.set()

    def _fits(self, length: int) -> bool:
        room = min(max(PART * self._holds(), UNDER_WAY), UNDER_WAY_MAX)
        return self._calls < LEAST or self._bytes + length <= room
