"""The way to one provider, within all its wrappers, and what its answers show of how fast it is.

Every provider has a lane of its own: one that hangs fills its own lane and no other.  Behind a provider that is down
writes and object requests fail at once; a read of a share, which comes here while it is down only because there is no
other way, waits for the next probe.
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
from icnfs.limits import OBJECT_MAX
from icnfs.providers.base import Capacity, Data, Provider, list_all, list_page
from icnfs.providers.guard import Rates, guard
from icnfs.transfer.estimate import Call, Estimate
from icnfs.transfer.health import Health
from icnfs.transfer.turns import Turns

log = logging.getLogger(__name__)

RETIRE_SECONDS: Final = 600.0
"""What is still asked of a provider that is not to be used any more has so long."""

_T = TypeVar("_T")
_E = TypeVar("_E", bound=ProviderError)


class Lane:
    """All requests to one provider pass here.  Methods raise ProviderError's subclasses only."""

    def __init__(self, provider: Provider, health: Health, rates: Rates | None = None) -> None:
        self.name = provider.name
        self.health = health
        self.provider = provider
        self._guarded = guard(provider, health, rates)
        self._reads, self._writes = Turns(health.reads.holds), Turns(health.writes.holds)
        self._asked = 0
        self.retired = False
        """Whether it is replaced, or used no more: what it still stores lies where nobody will look for it."""
        self._idle = trio.Event()

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """As Provider.get, once and without retries: whoever reads shares asks `health` where to go."""
        with self._measured(self.health.reads, length or 0) as call:
            await self._guarded.breaker.patiently()
            async with self._reads.of(length or 0):
                data = await self._mapped(lambda: self._guarded.once.get(name, offset, length))
            if length is not None and len(data) != length:
                lie = ProviderLiesError(self.name, f"it answered {len(data)} bytes where {length} were asked")
                raise self._blamed(lie)
            call.length = len(data)
        self.health.bytes_down += len(data)
        return data

    async def put(self, name: str, data: Data) -> None:
        """As Provider.put; fails at once while the provider is down."""
        self._require_in_use(name)
        with self._measured(self.health.writes, len(data)):
            async with self._writes.of(len(data)):
                await self._mapped(lambda: self._guarded.again.put(name, data))
        self._require_in_use(name)
        self.health.bytes_up += len(data)

    async def put_new(self, name: str, data: Data) -> None:
        """As `put`, but NameTakenError where other bytes have that name already."""
        with self._measured(self.health.writes, len(data)):
            made = await self._mapped(lambda: self._guarded.again.put_new(name, data))
        self._require_in_use(name)
        if made:
            self.health.bytes_up += len(data)
        elif await self._there(name) != bytes(data):
            raise NameTakenError(self.name, f"object {name} is there already, and holds something else")

    def _require_in_use(self, name: str) -> None:
        if self.retired:
            raise ProviderAwayError(self.name, f"it was replaced while {name} was being stored")

    async def _there(self, name: str) -> bytes:
        try:
            return await self.read_object(name)
        except ObjectMissingError:
            raise ProviderAwayError(self.name, f"object {name} is being stored by somebody else; try again") from None

    async def read_object(self, name: str, most: int = OBJECT_MAX) -> bytes:
        """The whole object; fails at once while the provider is down.

        Where fewer bytes than any object may have are wanted, its size is asked for first: a larger one is not read.
        """
        length = None
        if most < OBJECT_MAX:
            length = await self._mapped(lambda: self._guarded.again.size(name))
            if length > most:
                raise ProviderLiesError(self.name, f"object {name} is of {length} bytes, and can have {most} at most")
        with self._measured(self.health.reads, 0) as call:
            data = await self._mapped(lambda: self._guarded.again.get(name, 0, length))
            call.length = len(data)
        self.health.bytes_down += len(data)
        return data

    async def size(self, name: str) -> int:
        """As Provider.size, once and without retries."""
        return await self._mapped(lambda: self._guarded.once.size(name))

    async def list_all(self, prefix: str, after: str = "") -> list[str]:
        """Every name under `prefix` that sorts after `after`, sorted; fails at once while the provider is down."""
        return await self._mapped(lambda: list_all(self._guarded.again, prefix, after))

    async def list_page(self, prefix: str, after: str = "") -> list[str]:
        """The first LIST_PAGE of these names, sorted; fewer are the last."""
        return await self._mapped(lambda: list_page(self._guarded.again, prefix, after))

    async def peek(self, name: str, length: int) -> tuple[int, bytes]:
        """The object's size, and up to `length` bytes of its beginning."""
        size = await self._mapped(lambda: self._guarded.again.size(name))
        return size, await self._mapped(lambda: self._guarded.again.get(name, 0, min(size, length)))

    async def delete(self, name: str) -> bool:
        """As Provider.delete; fails at once while the provider is down."""
        return await self._mapped(lambda: self._guarded.again.delete(name))

    async def probe(self) -> Capacity:
        """Ask the provider how it is, now; it is up or down afterwards."""
        return await self._mapped(self._guarded.breaker.probe)

    async def watch(self) -> None:
        """Probe it when that is due, until cancelled."""
        while True:
            try:
                await self._mapped(self._guarded.breaker.watch)
            except ProviderError as error:  # one that breaks its contract
                log.debug("%s", error)
                await trio.sleep(1.0)

    async def retire(self) -> None:
        """Close the provider once nothing is asked of it any more; nobody may begin to."""
        with trio.move_on_after(RETIRE_SECONDS):
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

    async def _mapped(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """The request's answer, or an error of the closed list: a bug in a provider's code is its own trouble."""
        self._asked += 1
        try:
            return await request()
        except ProviderError as error:
            raise error from None
        except ValueError as error:
            raise ProviderRefusedError(self.name, f"a request that no provider takes: {error}") from error
        except Exception as error:
            log.exception("provider %s broke its contract", self.name)
            raise self._blamed(ProviderLiesError(self.name, f"it broke its contract: {error!r}")) from error
        finally:
            self._asked -= 1
            if not self._asked:
                self._idle.set()

    def _blamed(self, error: _E) -> _E:
        self.health.failed(error)
        return error
