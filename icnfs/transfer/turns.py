"""Bulk reads of one provider, one after another in the order in which they are wanted.

All at once they would come all at once, and the first of them as late as the last; and tasks, which the scheduler
wakes in any order, would come in any order.  So a few are under way, and of those that wait the one with the least
`turn` is next.  Small reads wait for nobody here.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

import trio

from icnfs.limits import KIB

BULK: Final = 256 * KIB
"""Bytes from which on a read is bulk."""

PLACES: Final = 6
"""Bulk reads under way at one provider: a line is full while one of them waits for its answer to begin."""

BACKGROUND: Final = 2**63
"""Beyond every other turn: for what nobody waits for."""

turn: Final = ContextVar("turn", default=0)
"""The place in the order, least first, of what a task and those that it starts read."""


class Turns:
    """Who is next at one provider."""

    def __init__(self) -> None:
        self._free = PLACES
        self._waiting: list[tuple[int, int, trio.Event]] = []
        self._count = 0

    @asynccontextmanager
    async def of(self, length: int) -> AsyncIterator[None]:
        """For the time of a read of `length` bytes, once it is its turn."""
        if length < BULK:
            yield
            return
        await self._wait()
        try:
            yield
        finally:
            self._free += 1
            self._let_in()

    async def _wait(self) -> None:
        self._count += 1
        entry = turn.get(), self._count, trio.Event()
        heapq.heappush(self._waiting, entry)
        try:
            await trio.lowlevel.checkpoint()  # those who begin at the same time have their say
            self._let_in()
            await entry[2].wait()
        except BaseException:
            if entry[2].is_set():
                self._free += 1
            else:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            heapq.heappop(self._waiting)[2].set()
