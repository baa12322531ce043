"""Any `need` good answers out of several candidates, as fast as the candidates allow.

The first `need` candidates are asked at once; each that fails is replaced by the next, and when nothing has come for
the hedge time, as many more are asked as are still awaited.  So a candidate that is dead costs a round trip, one that
hangs costs the hedge, and neither costs the deadline while enough others answer.  It does not know what is read.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from icnfs.errors import IcnfsError

T = TypeVar("T")


@dataclass(frozen=True)
class Gathered(Generic[T]):
    """What came: `got` holds `need` answers, or fewer if no candidate is left; the errors are of those that failed."""

    got: Mapping[int, T]
    errors: Mapping[int, IcnfsError]


async def gather(
    need: int,
    candidates: Sequence[int],
    read: Callable[[int], Awaitable[T]],
    hedge: float,
    slow: Callable[[int], None],
) -> Gathered[T]:
    """Ask `read(candidate)` of the candidates, best first, until `need` have answered.

    `slow` is told of each candidate that let the hedge time (seconds) pass.  Raises nothing but trio.Cancelled: what
    `read` raises of the closed tree is an answer too.
    """
    got: dict[int, T] = {}
    errors: dict[int, IcnfsError] = {}
    waiting = list(reversed(candidates))
    running: set[int] = set()
    send, receive = trio.open_memory_channel[tuple[int, T | IcnfsError]](math.inf)

    async def ask(candidate: int) -> None:
        try:
            answer: T | IcnfsError = await read(candidate)
        except IcnfsError as error:
            answer = error
        send.send_nowait((candidate, answer))

    async with trio.open_nursery() as nursery:

        async def next_answer(patience: float) -> bool:
            with trio.move_on_after(patience):
                candidate, answer = await receive.receive()
                running.discard(candidate)
                if isinstance(answer, IcnfsError):
                    errors[candidate] = answer
                else:
                    got[candidate] = answer
                return True
            return False

        def start(count: int) -> None:
            for _ in range(min(count, len(waiting))):
                candidate = waiting.pop()
                running.add(candidate)
                nursery.start_soon(ask, candidate)

        extra = 0
        while len(got) < need:
            start(need + extra - len(got) - len(running))
            if not running:
                break
            if not await next_answer(hedge if waiting else math.inf):
                for candidate in running:
                    slow(candidate)
                extra += need - len(got)
        nursery.cancel_scope.cancel()
    return Gathered(got, errors)
