"""Deadlines, retries and limits as providers around a provider; none knows what it wraps.

None looks at what it passes on.  All waiting is trio's, so tests run it in virtual time.  Which order is right is
written once, in `guard`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from icnfs.errors import ProviderAwayError
from icnfs.limits import KIB
from icnfs.providers.base import Capacity, Data, Provider
from icnfs.providers.line import Line, take

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Act:
    """One call, as a wrapper sees it."""

    doing: str
    """In an error's words, as in "storing shares/ab/cd"."""
    up: int = 0
    """Bytes that it sends."""
    down: int | None = 0
    """Bytes that it fetches; None: nobody knows before they are there."""
    changes: bool = False
    """Whether it changes what is stored."""

    @property
    def size(self) -> int:
        return self.up + (self.down or 0)


class Wrapper(Provider):
    """Passes everything on through `_around`, the one place where a wrapper does its work."""

    def __init__(self, inner: Provider) -> None:
        super().__init__(inner.name)
        self.inner = inner

    async def _around(self, act: Act, call: Callable[[], Awaitable[T]]) -> T:
        """Do `call`, of which `act` says what it is."""
        return await call()

    async def put(self, name: str, data: Data) -> None:
        act = Act(f"storing {name}", up=len(data), changes=True)
        await self._around(act, lambda: self.inner.put(name, data))

    async def put_new(self, name: str, data: Data) -> bool:
        act = Act(f"storing {name}", up=len(data), changes=True)
        return await self._around(act, lambda: self.inner.put_new(name, data))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        act = Act(f"reading {name}", down=length)
        return await self._around(act, lambda: self.inner.get(name, offset, length))

    async def size(self, name: str) -> int:
        return await self._around(Act(f"looking up {name}"), lambda: self.inner.size(name))

    async def delete(self, name: str) -> bool:
        return await self._around(Act(f"deleting {name}", changes=True), lambda: self.inner.delete(name))

    async def list(self, prefix: str, after: str = "") -> list[str]:
        return await self._around(Act("listing"), lambda: self.inner.list(prefix, after))

    async def probe(self) -> Capacity:
        return await self._around(Act("a probe"), self.inner.probe)

    def moved(self) -> bool:
        return self.inner.moved()

    async def close(self) -> None:
        await self.inner.close()


class Deadline(Wrapper):
    """A call that takes longer than `seconds`, and `size / bytes_per_second` on top, raises ProviderAwayError."""

    def __init__(self, inner: Provider, seconds: float, bytes_per_second: float = 256 * KIB) -> None:
        super().__init__(inner)
        self.seconds = seconds
        self.bytes_per_second = bytes_per_second

    async def _around(self, act: Act, call: Callable[[], Awaitable[T]]) -> T:
        allowed = self.seconds + act.size / self.bytes_per_second
        with trio.move_on_after(allowed):
            return await call()
        raise ProviderAwayError(self.name, f"{act.doing} took longer than {allowed:.1f} s")


class Retry(Wrapper):
    """What raises ProviderAwayError is tried again, `tries` times in all; every other answer is final.

    Between tries it waits `pause * 2**i` seconds, at most `longest`, times a random part between a half and one, so
    that a provider that comes back is not met by all its callers at once.  While `hopeless` says so there is no other
    try.
    """

    def __init__(
        self,
        inner: Provider,
        tries: int = 3,
        pause: float = 0.5,
        longest: float = 5.0,
        rng: random.Random | None = None,
        hopeless: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(inner)
        self._hopeless = hopeless
        self.tries = tries
        self.pause = pause
        self.longest = longest
        self._rng = rng if rng is not None else random.Random()

    async def _around(self, act: Act, call: Callable[[], Awaitable[T]]) -> T:
        for failed in range(self.tries - 1):
            try:
                return await call()
            except ProviderAwayError:
                if self._hopeless():
                    raise
                await trio.sleep(self._rng.uniform(0.5, 1.0) * min(self.longest, self.pause * 2**failed))
        return await call()


class Limit(Wrapper):
    """So many calls at a time that change nothing, and so many that do; the rest wait, in order.  Probes do not."""

    def __init__(self, inner: Provider, reads: int, writes: int) -> None:
        super().__init__(inner)
        self._reads = trio.CapacityLimiter(reads)
        self._writes = trio.CapacityLimiter(writes)

    async def _around(self, act: Act, call: Callable[[], Awaitable[T]]) -> T:
        async with self._writes if act.changes else self._reads:
            return await call()

    async def probe(self) -> Capacity:
        return await self.inner.probe()


class Pace(Wrapper):
    """No more bytes a second than all of the lines let through: its own, and those that it shares with others.

    A put waits until its bytes could have gone, a get until they could have come: then they go at once.  Over a second
    or two the rate holds; within an object it does not.
    """

    def __init__(self, inner: Provider, up: Sequence[Line] = (), down: Sequence[Line] = ()) -> None:
        super().__init__(inner)
        self._up = up
        self._down = down

    async def _around(self, act: Act, call: Callable[[], Awaitable[T]]) -> T:
        await take(self._up, act.up)
        await take(self._down, act.down or 0)
        answer = await call()
        if act.down is None and isinstance(answer, bytes):  # as long as it is: who reads next waits for it
            await take(self._down, len(answer))
        return answer
