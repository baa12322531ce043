"""A network of memory providers, each behind seeded faults, and one segment stored in it: all in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import trio
import trio.testing

from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.providers.faults import FaultPlan, Faults
from icnfs.providers.memory import MemoryProvider
from icnfs.transfer.engine import Engine, in_place, open_engine
from icnfs.transfer.messages import Order, ShareEvent
from icnfs.transfer.upload import PutResult

K, N = 4, 6
SHARE = 200_000
"""Bytes of a share: three leaves and a bit."""


class Network:
    """`n` providers p0, p1, ... and the segment `order` of seeded random bytes."""

    def __init__(self, k: int = K, n: int = N, share_len: int = SHARE, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.memories = [MemoryProvider(f"p{index}") for index in range(n)]
        self.faults = [Faults(memory, FaultPlan()) for memory in self.memories]
        self.payload = self.rng.randbytes(k * share_len)
        names = tuple(f"shares/{index:02}/{self.rng.randbytes(8).hex()}" for index in range(n))
        self.order = Order(
            self.rng.randbytes(16), k, n, share_len, k * share_len, names, tuple(f"p{index}" for index in range(n))
        )
        self.events: list[ShareEvent] = []

    @property
    def names(self) -> tuple[str, ...]:
        return self.order.names

    def expected(self, share: int, offset: int, length: int) -> bytes:
        start = share * self.order.share_len + offset
        return self.payload[start : start + length]

    def info(self, result: PutResult, *, lacking: Iterable[int] = ()) -> SegmentInfo:
        shares = tuple(
            ShareInfo(provider, root, index not in result.errors and index not in lacking)
            for index, (provider, root) in enumerate(zip(self.order.providers, result.roots, strict=True))
        )
        order = self.order
        return SegmentInfo(order.id, order.k, order.n, order.share_len, order.size, shares)

    def plan(self, index: int, plan: FaultPlan) -> None:
        self.faults[index].plan = plan

    def corrupt(self, index: int, how: Callable[[bytes], bytes]) -> None:
        objects = self.memories[index].objects
        objects[self.names[index]] = how(objects[self.names[index]])

    @asynccontextmanager
    async def engine(self, *, watch: bool = False) -> AsyncIterator[Engine]:
        async with open_engine(self.faults, offload=in_place, notify=self.events.append, watch=watch) as engine:
            yield engine

    async def stored(self, engine: Engine) -> SegmentInfo:
        """The segment, put at every provider."""
        result = await engine.put_segment(self.order, memoryview(self.payload), deadline=60)
        assert not result.errors
        return self.info(result)


def run(test: Callable[[], Awaitable[None]]) -> None:
    """In virtual time: waiting costs nothing, and what never answers is waited for to its deadline."""
    trio.run(partial(_finished, test), clock=trio.testing.MockClock(autojump_threshold=0))


async def _finished(test: Callable[[], Awaitable[None]]) -> None:
    with trio.fail_after(10_000):
        await test()
