"""Any `need` good answers out of several candidates, as fast as the candidates allow.

The first `need` candidates are asked at once; each that fails is replaced by the next, and so is each that is late,
though it may still answer.  When all but one have answered, that one is late as soon as it takes much longer than they
did and than was expected of it: one connection in trouble is noticed by that long before its provider is.  So a
candidate that is dead costs a round trip, one that hangs costs its patience, and neither costs the deadline while
enough others answer.  It does not know what is read.

When everything is slow, asking more makes it slower: who is late by its usual patience is replaced only while there
are `Hedges` left, of which every SPARING-th read gives one; who is late by the longest patience is always replaced.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from icnfs.errors import IcnfsError
from icnfs.transfer.estimate import PATIENCE_LEAST

SPARING: Final = 10
"""Of so many reads one may be hedged early: twice what a patience of 19 in 20 asks for while all is well."""

HEDGES_MAX: Final = 32
"""Hedges saved up: as many reads as one provider has under way when it becomes slow."""

T = TypeVar("T")


FACTOR: Final = 2.0
"""The last of several reads of one kind is late when it takes so many times what the others took."""


class Patience(NamedTuple):
    """Seconds: what a read is expected to take, what 19 of 20 take, and what none may take without that somebody else
    is asked."""

    expected: float
    usual: float
    longest: float


@dataclass(frozen=True)
class Others:
    """Those that are asked together: since when (a trio time), and whether all but one of them have answered."""

    begun: float
    answered: trio.Event


class Hedges:
    """How many reads may be asked of somebody else before their longest patience has passed."""

    def __init__(self) -> None:
        self._left = float(HEDGES_MAX)

    def earn(self) -> None:
        """One more read was asked for."""
        self._left = min(self._left + 1 / SPARING, HEDGES_MAX)

    def take(self) -> bool:
        """Whether one more may be hedged; it counts as one that is."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

    async def late(self, patience: Patience, others: Others | None = None) -> None:
        """Return when a read that begins now is to be asked of somebody else as well; `others` were asked with it."""
        self.earn()
        begun = trio.current_time()
        if others is not None:
            with trio.move_on_after(patience.usual):
                await others.answered.wait()
            took = max(trio.current_time() - others.begun, patience.expected) * FACTOR
            await trio.sleep_until(begun + min(max(took, PATIENCE_LEAST), patience.usual))
        else:
            await trio.sleep(patience.usual)
        if trio.current_time() < begun + patience.longest and not self.take():
            await trio.sleep_until(begun + patience.longest)


@dataclass(frozen=True)
class Gathered(Generic[T]):
    """What came: `got` holds `need` answers, or fewer if no candidate is left; the errors are of those that failed."""

    got: Mapping[int, T]
    errors: Mapping[int, IcnfsError]


async def gather(
    need: int,
    candidates: Sequence[int],
    read: Callable[[int], Awaitable[T]],
    patience: Callable[[int], Patience],
    hedges: Hedges,
) -> Gathered[T]:
    """Ask `read(candidate)` of the candidates, best first, until `need` have answered.

    Raises nothing but trio.Cancelled: what `read` raises of the closed tree is an answer too.
    """
    got: dict[int, T] = {}
    errors: dict[int, IcnfsError] = {}
    waiting = list(reversed(candidates))
    running: set[int] = set()
    late: set[int] = set()
    watches: defaultdict[int, trio.CancelScope] = defaultdict(trio.CancelScope)
    others = Others(trio.current_time(), trio.Event())
    send, receive = trio.open_memory_channel[tuple[int, T | IcnfsError | None]](math.inf)

    async def ask(candidate: int) -> None:
        try:
            answer: T | IcnfsError = await read(candidate)
        except IcnfsError as error:
            answer = error
        send.send_nowait((candidate, answer))

    async def watch(candidate: int) -> None:
        with watches[candidate]:
            await hedges.late(patience(candidate), others)
            send.send_nowait((candidate, None))

    async with trio.open_nursery() as nursery:
        while len(got) < need:
            for _ in range(min(need - len(got) - len(running - late), len(waiting))):
                candidate = waiting.pop()
                running.add(candidate)
                nursery.start_soon(ask, candidate)
                if waiting:
                    nursery.start_soon(watch, candidate)
            if not running:
                break
            candidate, answer = await receive.receive()
            if answer is None:
                late.add(candidate)
                continue
            running.discard(candidate)
            watches[candidate].cancel()  # it would spend a hedge on what has come
            if isinstance(answer, IcnfsError):
                errors[candidate] = answer
            else:
                got[candidate] = answer
                if len(got) == need - 1:
                    others.answered.set()
        nursery.cancel_scope.cancel()
    return Gathered(got, errors)
