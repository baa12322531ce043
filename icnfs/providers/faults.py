"""A provider that fails on purpose: seeded, so that a failure replays from its seed.

It wraps any provider and is switched on by anybody: in code, or by a query on a provider's url
(`file:///srv/a?latency=0.05&seed=7`, see icnfs.toml(5)).  Each fault is a probability per call unless it says
otherwise.  With a plan of zeros it changes nothing.
"""

from __future__ import annotations

import dataclasses
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from icnfs.errors import ObjectMissingError, ProviderAwayError, ProviderLiesError
from icnfs.providers.base import Data, Provider
from icnfs.providers.line import Line, take
from icnfs.providers.wrappers import Act, Wrapper

T = TypeVar("T")

REMEMBERED: Final = 256
"""Names of which a stale answer can be given: the last ones put."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What goes wrong, and how often; all values >= 0, probabilities <= 1."""

    latency: float = 0.0
    """Seconds by which every call is late, times a random part between a half and three halves."""
    bandwidth: float = 0.0
    """Bytes per second of all puts together, and of all gets; 0 for no bound."""
    error: float = 0.0
    """Raise ProviderAwayError, half of the time after the call has taken effect."""
    hang: float = 0.0
    """Never answer."""
    flip: float = 0.0
    """Flip one bit of what a get returns."""
    truncate: float = 0.0
    """Cut off what a get returns: a whole object comes short, a range raises ProviderLiesError."""
    stale: float = 0.0
    """Answer a get, a size or a listing as if the last put of the name had not been."""
    lose: float = 0.0
    """Accept a put and forget it."""
    seed: int = 0

    def __post_init__(self) -> None:
        """ValueError for a value out of range."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            most = 1.0 if field.name in PROBABILITIES else float("inf")
            if not 0 <= value <= most or value == float("inf"):
                raise ValueError(f"{field.name} is out of range")


PROBABILITIES: Final = frozenset({"error", "hang", "flip", "truncate", "stale", "lose"})


class Faults(Wrapper):
    """`plan` may be replaced, and names be added to `withheld`, at any time."""

    def __init__(self, inner: Provider, plan: FaultPlan) -> None:
        super().__init__(inner)
        self.plan = plan
        self.withheld: set[str] = set()
        """Names that gets and listings deny to have."""
        self._up, self._down = Line(), Line()
        self._rng = random.Random(plan.seed)
        self._before: OrderedDict[str, bytes | None] = OrderedDict()
        """What the last puts replaced: the object, or None for nothing."""

    async def put(self, name: str, data: Data) -> None:
        if self.plan.stale:
            await self._remember(name)
        if self._happens(self.plan.lose):
            await self._around(Act(f"storing {name}", up=len(data)), trio.lowlevel.checkpoint)
        else:
            await super().put(name, data)

    async def put_new(self, name: str, data: Data) -> bool:
        if self.plan.stale:
            await self._remember(name)
        if self._happens(self.plan.lose):
            await self._around(Act(f"storing {name}", up=len(data)), trio.lowlevel.checkpoint)
            return True
        return await super().put_new(name, data)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._deny(name)
        if name in self._before and self._happens(self.plan.stale):
            data = await self._old(name, offset, length)
        else:
            data = await super().get(name, offset, length)
        if self._happens(self.plan.truncate) and data:
            if length is not None:
                raise ProviderLiesError(self.name, f"object {name} is cut short")
            data = data[: self._rng.randrange(len(data))]
        return self._flipped(data) if self._happens(self.plan.flip) else data

    async def size(self, name: str) -> int:
        self._deny(name)
        if name in self._before and self._happens(self.plan.stale):
            return len(await self._old(name, 0, None))
        return await super().size(name)

    async def list(self, prefix: str, after: str = "") -> list[str]:
        page = await super().list(prefix, after)
        hidden = set(self.withheld)
        if self._happens(self.plan.stale):
            hidden |= {name for name, old in self._before.items() if old is None}
        while page and not set(page) - hidden:  # a short page would end the listing
            page = await super().list(prefix, page[-1])
        return [name for name in page if name not in hidden]

    async def _around(self, act: Act, call: Callable[[], Awaitable[T]]) -> T:
        plan = self.plan
        if self._happens(plan.hang):
            await trio.sleep_forever()
        self._up.rate = self._down.rate = plan.bandwidth
        if plan.latency:
            await trio.sleep(plan.latency * self._rng.uniform(0.5, 1.5))
        await take([self._up], act.up)
        await take([self._down], act.down or 0)
        failing = self._happens(plan.error)
        if failing and self._rng.random() < 0.5:
            raise ProviderAwayError(self.name, f"{act.doing}: failed on purpose, before")
        answer = await call()
        if act.down is None and isinstance(answer, bytes):
            await take([self._down], len(answer))
        if failing:
            raise ProviderAwayError(self.name, f"{act.doing}: failed on purpose, after")
        return answer

    def _happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability

    def _deny(self, name: str) -> None:
        if name in self.withheld:
            raise ObjectMissingError(self.name, f"no object {name}")

    def _flipped(self, data: bytes) -> bytes:
        if not data:
            return data
        altered = bytearray(data)
        altered[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
        return bytes(altered)

    async def _remember(self, name: str) -> None:
        try:
            old: bytes | None = await self.inner.get(name)
        except ObjectMissingError:
            old = None
        self._before[name] = old
        self._before.move_to_end(name)
        if len(self._before) > REMEMBERED:
            self._before.popitem(last=False)

    async def _old(self, name: str, offset: int, length: int | None) -> bytes:
        await self._around(Act(f"reading {name}", down=length), trio.lowlevel.checkpoint)
        old = self._before[name]
        if old is None:
            raise ObjectMissingError(self.name, f"no object {name}")
        data = old[offset:] if length is None else old[offset : offset + length]
        if length is not None and len(data) != length:
            raise ProviderLiesError(self.name, f"object {name} is cut short")
        return data
