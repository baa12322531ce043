"""The providers of a simulated world: what really lies there, what goes wrong there, and each machine's line to it.

    machine  -->  Line  -->  Faults  -->  Vault
             a call may outlive     seeded      the objects; tells
             its caller             faults      the world what lands

A put that its caller gave up (a deadline, a crash) may still land, later: the bytes were on the wire.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import trio

from icnfs.errors import ProviderError
from icnfs.providers.base import Capacity, Data, Pieces, Provider
from icnfs.providers.faults import FaultPlan, Faults
from icnfs.providers.memory import MemoryProvider

T = TypeVar("T")

QUIET: Final = FaultPlan()


class Watcher(Protocol):
    """Who hears what becomes of objects."""

    def note(self, text: str) -> None: ...
    def landed(self, site: str, name: str, before: bytes | None, data: bytes) -> None: ...
    def deleting(self) -> None: ...
    def deleted(self, site: str, name: str) -> None: ...


class Vault(MemoryProvider):
    """The objects that a provider really holds."""

    def __init__(self, name: str, watcher: Watcher) -> None:
        super().__init__(name, capacity=1 << 40, pool=name)
        self._watcher = watcher

    async def put(self, name: str, data: Data) -> None:
        before = self.objects.get(name)
        await super().put(name, data)
        self._watcher.landed(self.name, name, before, self.objects[name])

    async def put_new(self, name: str, data: Data) -> bool:
        added = await super().put_new(name, data)
        if added:
            self._watcher.landed(self.name, name, None, self.objects[name])
        return added

    async def delete(self, name: str) -> bool:
        there = name in self.objects
        kept = await super().delete(name)
        if there:
            self._watcher.deleted(self.name, name)
        return kept


class Site:
    """One provider of the world, the same for every machine."""

    def __init__(self, name: str, watcher: Watcher, seed: int) -> None:
        self.name = name
        self.vault = Vault(name, watcher)
        self.faults = Faults(self.vault, FaultPlan(seed=seed))

    @property
    def objects(self) -> dict[str, bytes]:
        return self.vault.objects

    @property
    def is_down(self) -> bool:
        return self.vault.away or self.faults.plan.hang > 0

    def plan(self, **changes: float) -> None:
        """From now on exactly these faults, and the usual latency."""
        self.faults.plan = FaultPlan(**changes)  # type: ignore[arg-type]

    def lose(self) -> None:
        """Everything is gone, in silence."""
        self.vault.objects.clear()


class Line(Provider):
    """One machine's way to a site; `is_cut` tells whether the machine is no more."""

    def __init__(
        self,
        site: Site,
        watcher: Watcher,
        wire: trio.Nursery,
        rng: random.Random,
        who: str,
        is_cut: Callable[[], bool],
        calling: Callable[[str, str, bytes], None],
    ) -> None:
        super().__init__(site.name)
        self._site = site
        self._watcher = watcher
        self._wire = wire
        self._rng = rng
        self._who = who
        self._is_cut = is_cut
        self._calling = calling

    async def put(self, name: str, data: Data) -> None:
        raw = self._sent(name, data)
        await self._call(f"put {name} {len(raw)}", lambda: self._site.faults.put(name, raw), outlives=True)

    async def put_new(self, name: str, data: Data) -> bool:
        raw = self._sent(name, data)
        what = f"put new {name} {len(raw)}"
        return await self._call(what, lambda: self._site.faults.put_new(name, raw), outlives=True)

    def _sent(self, name: str, data: Data) -> bytes:
        raw = b"".join(map(bytes, data.parts)) if isinstance(data, Pieces) else bytes(data)
        if not self._is_cut():
            self._calling(self.name, name, raw)
        return raw

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return await self._call(f"get {name} {offset}", lambda: self._site.faults.get(name, offset, length))

    async def size(self, name: str) -> int:
        return await self._call(f"size {name}", lambda: self._site.faults.size(name))

    async def delete(self, name: str) -> bool:
        self._watcher.deleting()
        return await self._call(f"delete {name}", lambda: self._site.faults.delete(name))

    async def list(self, prefix: str, after: str = "") -> list[str]:
        return await self._call(f"list {prefix}", lambda: self._site.faults.list(prefix, after))

    async def probe(self) -> Capacity:
        return await self._call("probe", self._site.faults.probe)

    async def close(self) -> None:
        """Nothing to close."""

    async def _call(self, what: str, call: Callable[[], Awaitable[T]], *, outlives: bool = False) -> T:
        if self._is_cut():
            await trio.sleep_forever()
        try:
            answer = await (self._on_the_wire(call) if outlives else call())
        except ProviderError as error:
            self._say(what, type(error).__name__)
            raise
        except trio.Cancelled:
            self._say(what, "given up")
            raise
        self._say(what, "ok")
        return answer

    def _say(self, what: str, outcome: str) -> None:
        if not self._is_cut():
            self._watcher.note(f"{self._who} {self.name} {what}: {outcome}")

    async def _on_the_wire(self, call: Callable[[], Awaitable[T]]) -> T:
        """The call in a task of the world's, so that it may go on without its caller."""
        done = trio.Event()
        answers: list[Any] = []
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                try:
                    answers.append((True, await call()))
                except ProviderError as error:
                    answers.append((False, error))
                done.set()

        self._wire.start_soon(run)
        try:
            await done.wait()
        except trio.Cancelled:
            if self._rng.random() < 0.5:
                scope.cancel()
            raise
        fine, value = answers[0]
        if not fine:
            raise value
        if self._is_cut():
            await trio.sleep_forever()
        return value  # type: ignore[no-any-return]
