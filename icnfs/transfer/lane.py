"""The way to one provider: so many requests at once, each with a bound in time, and what they show of its health.

Every provider has a lane of its own.  One that hangs fills its own lane and no other; behind a provider that is down,
writes and object requests probe first and fail at once, so that a queue behind it drains in the time of one probe.
A lane adds no retry: the wrappers around the provider do, and above it another share is the better second try.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

from icnfs.errors import (
    NameTakenError,
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderLiesError,
    ProviderRefusedError,
)
from icnfs.limits import KIB, READS_PER_PROVIDER, WRITES_PER_PROVIDER
from icnfs.providers.base import Capacity, Data, Provider, list_all
from icnfs.transfer.estimate import Call, Estimate
from icnfs.transfer.health import Health

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 5.0
"""A provider that has not answered a probe by then is down."""

PROBE_GAP: Final = 1.0
"""While a provider is down so long passes between the end of a probe and the next, however many ask."""

ATTEMPT_SECONDS: Final = 30.0
SLOWEST_BYTES_PER_SECOND: Final = 128 * KIB
"""One request may take ATTEMPT_SECONDS plus its bytes at this rate; past it the provider counts as hanging."""

BULK: Final = 256 * KIB
BULK_READS: Final = 4
"""Reads from BULK bytes on at once: enough for a line to be full while one waits for its answer to begin, and so few
that they come in the order in which they were asked for.  They take no places from small reads."""

_T = TypeVar("_T")
_E = TypeVar("_E", bound=ProviderError)


class Lane:
    """All requests to one provider pass here.  Methods raise ProviderError's subclasses only."""

    def __init__(self, provider: Provider, health: Health) -> None:
        self.name = provider.name
        self.health = health
        self.provider = provider
        self._asked = 0
        self._idle = trio.Event()
        self._reads = trio.CapacityLimiter(READS_PER_PROVIDER)
        self._bulk_reads = trio.CapacityLimiter(BULK_READS)
        self._writes = trio.CapacityLimiter(WRITES_PER_PROVIDER)
        self._probing = trio.Lock()
        self._probed = float("-inf")

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As Provider.get, down or not: whoever reads shares asks `health` where to go."""
        with self._measured(self.health.reads, length or 0) as call:
            data = await self._bounded(self._reads, length or 0, lambda: self.provider.get(name, offset, length))
            if length is not None and len(data) != length:
                lie = ProviderLiesError(self.name, f"it answered {len(data)} bytes where {length} were asked")
                raise self._blamed(lie)
            call.length = len(data)
        self.health.bytes_down += len(data)
        self.health.answered()
        return data

    async def put(self, name: str, data: Data) -> None:
        """As Provider.put; fails at once while the provider is down."""
        with self._measured(self.health.writes, len(data)):
            await self._bounded(self._writes, len(data), lambda: self.provider.put(name, data), probe_first=True)
        self.health.bytes_up += len(data)
        self.health.answered()

    async def put_new(self, name: str, data: Data) -> None:
        """As `put`, but NameTakenError where other bytes have that name already."""
        with self._measured(self.health.writes, len(data)):
            made = await self._bounded(
                self._writes, len(data), lambda: self.provider.put_new(name, data), probe_first=True
            )
        self.health.answered()
        if made:
            self.health.bytes_up += len(data)
        elif await self._there(name) != bytes(data):
            raise NameTakenError(self.name, f"object {name} is there already, and holds something else")

    async def _there(self, name: str) -> bytes:
        try:
            return await self.read_object(name)
        except ObjectMissingError:
            raise ProviderAwayError(self.name, f"object {name} is being stored by somebody else; try again") from None

    async def read_object(self, name: str) -> bytes:
        """The whole object; fails at once while the provider is down."""
        with self._measured(self.health.reads, 0) as call:
            data = await self._bounded(self._reads, 0, lambda: self.provider.get(name), probe_first=True)
            call.length = len(data)
        self.health.bytes_down += len(data)
        self.health.answered()
        return data

    async def list_all(self, prefix: str, after: str = "") -> list[str]:
        """Every name under `prefix` that sorts after `after`, sorted; fails at once while the provider is down."""
        names = await self._bounded(self._reads, 0, lambda: list_all(self.provider, prefix, after), probe_first=True)
        self.health.answered()
        return names

    async def delete(self, name: str) -> None:
        """As Provider.delete; fails at once while the provider is down."""
        await self._bounded(self._writes, 0, lambda: self.provider.delete(name), probe_first=True)
        self.health.answered()

    async def probe(self) -> Capacity:
        """Ask the provider how it is, now; it is up or down afterwards."""
        try:
            with trio.move_on_after(PROBE_SECONDS):
                capacity = await self._mapped(self.provider.probe)
                self.health.told(capacity)
                return capacity
        finally:
            self._probed = trio.current_time()
        raise self._blamed(ProviderAwayError(self.name, f"it did not answer within {PROBE_SECONDS:.0f} s"))

    async def revive(self) -> None:
        """Return if the provider is not down, or no longer; else raise why it is."""
        if self.health.state != "down":
            return
        async with self._probing:
            if self.health.state != "down":
                return
            if trio.current_time() < self._probed + PROBE_GAP:
                raise ProviderAwayError(self.name, self.health.error)
            await self.probe()

    async def retire(self) -> None:
        """Close the provider once nothing is asked of it any more; nobody may begin to."""
        while self._asked:
            self._idle = trio.Event()
            await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        await self.provider.close()

    @contextmanager
    def _measured(self, estimate: Estimate, length: int) -> Iterator[Call]:
        """Tell the estimate of a call of `length` bytes; who learns how many there were sets the call's `length`."""
        call = estimate.begin(length, trio.current_time())
        try:
            yield call
        except BaseException:
            estimate.given_up(call, trio.current_time())
            raise
        estimate.done(call, trio.current_time())

    async def _bounded(
        self,
        limiter: trio.CapacityLimiter,
        size: int,
        request: Callable[[], Awaitable[_T]],
        *,
        probe_first: bool = False,
    ) -> _T:
        with self._counted():
            async with limiter:
                if probe_first:
                    await self.revive()
                seconds = ATTEMPT_SECONDS + size / SLOWEST_BYTES_PER_SECOND
                with trio.move_on_after(seconds):
                    return await self._mapped(request)
                raise self._blamed(ProviderAwayError(self.name, f"it did not answer within {seconds:.0f} s"))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1
            if not self._asked:
                self._idle.set()

    async def _mapped(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """The request's answer, or an error of the closed list, for which the provider is blamed."""
        try:
            return await request()
        except ProviderError as error:
            raise self._blamed(error) from None
        except ValueError as error:
            raise ProviderRefusedError(self.name, f"a request that no provider takes: {error}") from error
        except Exception as error:
            log.exception("provider %s broke its contract", self.name)
            raise self._blamed(ProviderLiesError(self.name, f"it broke its contract: {error!r}")) from error

    def _blamed(self, error: _E) -> _E:
        self.health.failed(error)
        return error
