"""Objects in a dictionary, for tests: the contract of `base.py` with nothing underneath.

It sleeps nowhere, so it runs in trio's virtual time.  `objects` may be read and altered by tests at will.
"""

from __future__ import annotations

from heapq import nsmallest

import trio

from icnfs.errors import ObjectMissingError, ProviderAwayError, ProviderFullError, ProviderRefusedError
from icnfs.limits import LIST_PAGE
from icnfs.providers.base import (
    Capacity,
    Data,
    Provider,
    check_name,
    check_prefix,
    check_range,
    check_size,
    exact_length,
)


class MemoryProvider(Provider):
    """A provider that forgets everything when it is dropped."""

    def __init__(self, name: str, *, capacity: int | None = None, pool: str = "") -> None:
        """`capacity`: bytes of all objects together, beyond which puts find it full."""
        super().__init__(name)
        self.objects: dict[str, bytes] = {}
        self.capacity = capacity
        self.pool = pool or f"memory:{id(self):x}"
        self.away = False
        """True: every call raises ProviderAwayError."""
        self.read_only = False
        """True: puts and deletes raise ProviderRefusedError."""

    async def put(self, name: str, data: Data) -> None:
        check_name(name)
        check_size(data)
        await self._turn(changes=True)
        self._check_place(name)
        self._store(name, data)

    def _store(self, name: str, data: Data) -> None:
        used = sum(map(len, self.objects.values())) - len(self.objects.get(name, b""))
        if self.capacity is not None and used + len(data) > self.capacity:
            raise ProviderFullError(self.name, f"no room for {len(data)} bytes")
        self.objects[name] = bytes(data)

    async def put_new(self, name: str, data: Data) -> bool:
        check_name(name)
        check_size(data)
        await self._turn(changes=True)
        self._check_place(name)
        if name in self.objects:
            return False
        self._store(name, data)
        return True

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        data = await self._find(name)
        count = exact_length(self.name, name, len(data), offset, length)
        return data[offset : offset + count]

    async def size(self, name: str) -> int:
        return len(await self._find(name))

    async def delete(self, name: str) -> bool:
        check_name(name)
        await self._turn(changes=True)
        self.objects.pop(name, None)
        return False

    async def list(self, prefix: str, after: str = "") -> list[str]:
        check_prefix(prefix)
        await self._turn()
        return nsmallest(LIST_PAGE, (name for name in self.objects if name.startswith(prefix) and name > after))

    async def probe(self) -> Capacity:
        await self._turn()
        used = sum(map(len, self.objects.values()))
        return Capacity(None if self.capacity is None else self.capacity - used, self.capacity, self.pool)

    async def _find(self, name: str) -> bytes:
        check_name(name)
        await self._turn()
        try:
            return self.objects[name]
        except KeyError:
            raise ObjectMissingError(self.name, f"no object {name}") from None

    async def _turn(self, *, changes: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise ProviderAwayError(self.name, "it does not answer")
        if changes and self.read_only:
            raise ProviderRefusedError(self.name, "it is read-only")

    def _check_place(self, name: str) -> None:
        """A directory cannot hold an object and names below it; neither do we, so that tests do not rely on it."""
        parts = name.split("/")
        above = any("/".join(parts[:depth]) in self.objects for depth in range(1, len(parts)))
        if above or any(other.startswith(f"{name}/") for other in self.objects):
            raise ProviderRefusedError(self.name, f"{name} lies above or below another object")
