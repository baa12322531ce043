"""Six memory providers, and machines that mount a volume over them with the real transfer engine in this process.

Each machine is a folder with a local state; `machine.run` opens the volume there, calls back with it, and closes it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from icnfs import config as configs
from icnfs.config import VolumeConfig
from icnfs.crypto.keys import Secret
from icnfs.crypto.slots import Costs, parse_recovery_key
from icnfs.errors import FsError
from icnfs.format.segment import SegmentInfo
from icnfs.limits import OBJECT_MAX
from icnfs.providers.base import Capacity, Provider
from icnfs.providers.guard import Rates
from icnfs.providers.line import Line
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.open import ProviderSpec
from icnfs.state import loader
from icnfs.transfer import bulk
from icnfs.transfer.checks import Looked
from icnfs.transfer.engine import Engine, open_engine
from icnfs.transfer.messages import Limits, Order, ProviderState, ShareEvent
from icnfs.transfer.upload import PutResult
from icnfs.vfs.vfs import Vfs
from icnfs.volume.create import Created, create
from icnfs.volume.keyring import Secrets
from icnfs.volume.recover import Found, recover
from icnfs.volume.status import ChunkPlace
from icnfs.volume.volume import Volume, open_volume

T = TypeVar("T")
BOUND = 60.0
"""Seconds after which a test that waits is a failure."""

CHEAP = Costs(64, 1, 1)
PASSPHRASE = Secret(b"correct horse")
NAMES = ("ada", "bee", "cat", "dog", "eel", "fox")
PLACES = ("AT", "DE", "DE", "FR", "NL", "FI")

TOML = """
[volume]
code = "{code}"
publish_seconds = 1000
publish_mib = 1000
"""
MORE_PLACES = ("CH", "SE", "DK", "ES")


def table(name: str, place: str) -> str:
    return f"""
[provider.{name}]
url = "file:///nowhere/{name}"
owner = "{name} inc"
parent_country = "{place}"
country = "{place}"
site = "{name}"
eur_per_tb_month = 5.0
eur_per_tb_read = 0.0
"""


TOML += "".join(map(table, NAMES, PLACES))


class LocalTransfer:
    """The engine in this process, with the calls of `TransferClient`."""

    def __init__(self, engine: Engine, calls: list[str], providers: Mapping[str, Provider]) -> None:
        self._engine = engine
        self._providers = providers
        self._calls = calls
        self.restarts = 0
        self.heard: Callable[[ShareEvent], None] = lambda _: None

    async def put_segment(
        self,
        id: bytes,
        k: int,
        n: int,
        share_len: int,
        size: int,
        names: Sequence[str],
        providers: Sequence[str],
        payload_fd: int,
        only: Sequence[int] | None = None,
        *,
        enough: int | None = None,
        deadline: float = 60.0,
    ) -> PutResult:
        self._calls.append("put_segment")
        bulk.seal(payload_fd)
        payload = bulk.view(payload_fd, k * share_len)
        order = Order(id, k, n, share_len, size, tuple(names), tuple(providers))
        return await self._engine.put_segment(order, payload, only, enough=enough, deadline=deadline)

    async def complete_segment(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        missing: Sequence[int],
        providers: Sequence[str],
        targets: Sequence[str],
        *,
        deadline: float = 60.0,
    ) -> PutResult:
        return await self._engine.complete_segment(segment, names, missing, providers, targets, deadline=deadline)

    async def fetch(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        share: int,
        offset: int,
        length: int,
        *,
        distrust: Collection[int] = (),
        verified: bool = False,
        deadline: float = 60.0,
    ) -> bytes:
        self._calls.append("fetch")
        return await self._engine.fetch(
            segment, names, share, offset, length, distrust=distrust, verified=verified, deadline=deadline
        )

    async def fetch_stripe(
        self, segment: SegmentInfo, names: Sequence[str], offset: int, length: int, *, deadline: float = 60.0
    ) -> memoryview:
        self._calls.append("fetch_stripe")
        parts = await self._engine.fetch_stripe(segment, names, offset, length, deadline=deadline)
        return memoryview(b"".join(parts))

    async def get_segment(self, segment: SegmentInfo, names: Sequence[str], *, deadline: float = 60.0) -> bytes:
        return b"".join(await self._engine.get_segment(segment, names, deadline=deadline))

    async def check(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        index: int,
        leaves: Sequence[int] | None = (),
        *,
        deadline: float = 60.0,
    ) -> Looked:
        return await self._engine.check(segment, names, index, leaves, deadline=deadline)

    async def put_object(
        self, provider: str, name: str, data: bytes, *, new: bool = False, deadline: float = 60.0
    ) -> None:
        await self._engine.put_object(provider, name, data, new=new, deadline=deadline)

    async def get_object(self, provider: str, name: str, *, most: int = OBJECT_MAX, deadline: float = 60.0) -> bytes:
        return await self._engine.get_object(provider, name, most=most, deadline=deadline)

    async def list_objects(
        self, provider: str, prefix: str, after: str = "", *, page: bool = False, deadline: float = 60.0
    ) -> list[str]:
        return await self._engine.list_objects(provider, prefix, after, page=page, deadline=deadline)

    async def peek(self, provider: str, name: str, length: int, *, deadline: float = 60.0) -> tuple[int, bytes]:
        return await self._engine.peek(provider, name, length, deadline=deadline)

    async def delete_object(self, provider: str, name: str, *, deadline: float = 60.0) -> bool:
        return await self._engine.delete_object(provider, name, deadline=deadline)

    async def probe(self, provider: str, *, deadline: float = 60.0) -> Capacity:
        return await self._engine.probe(provider, deadline=deadline)

    async def set_providers(self, specs: Sequence[ProviderSpec], limits: Limits) -> None:
        self._engine.set_providers([self._providers[spec.name] for spec in specs])

    def states(self) -> Mapping[str, ProviderState]:
        return self._engine.states()


class World:
    """The providers, and a root folder for machines."""

    def __init__(self, root: Path, code: str = "4-of-6", more: Sequence[str] = ()) -> None:
        """`more` providers, each in a country of its own, are there beside the six."""
        self.root = root
        self.providers = {name: MemoryProvider(name, capacity=1 << 40, pool="one") for name in (*NAMES, *more)}
        toml = TOML.format(code=code) + "".join(map(table, more, MORE_PLACES))
        self.config = configs.parse("demo", root / "demo.toml", toml.encode())
        self.calls: list[str] = []
        """Segments put and ranges fetched, in order."""

    @asynccontextmanager
    async def start(self, specs: Sequence[ProviderSpec], limits: Limits) -> AsyncIterator[LocalTransfer]:
        def tell(event: ShareEvent) -> None:
            if event.what != "mended":
                transfer.heard(event)

        named = [self.providers[spec.name] for spec in specs]
        up, down = Line(limits.up), Line(limits.down)
        rates = {spec.name: Rates((Line(spec.upload), up), (Line(spec.download), down)) for spec in specs}
        async with open_engine(named, watch=False, notify=tell, rates=rates) as engine:
            transfer = LocalTransfer(engine, self.calls, self.providers)
            yield transfer

    def machine(self, name: str = "here") -> Machine:
        return Machine(self, self.root / name / "demo")

    def objects(self, prefix: str) -> dict[str, list[str]]:
        """Names of objects by provider."""
        return {p: sorted(n for n in m.objects if n.startswith(prefix)) for p, m in self.providers.items()}

    def lose(self, *names: str) -> None:
        """These providers lose everything and answer no more."""
        for name in names:
            self.providers[name].objects.clear()
            self.providers[name].away = True

    def away(self, *names: str) -> None:
        """Exactly these providers do not answer."""
        for name, provider in self.providers.items():
            provider.away = name in names


class Machine:
    """One machine: a local state."""

    def __init__(self, world: World, state_dir: Path) -> None:
        self.world = world
        self.state_dir = state_dir
        self.secrets = Secrets(passphrase=PASSPHRASE)

    def config(self, **changes: Any) -> VolumeConfig:
        return replace(self.world.config, **changes)

    def init(self, **changes: Any) -> Created:
        async def main() -> Created:
            with trio.fail_after(BOUND):
                return await create(
                    self.config(**changes), self.state_dir, self.secrets, costs=CHEAP, start=self.world.start
                )

        return trio.run(main)

    def recover(self, key: str | None = None, **options: Any) -> Found:
        offered = self.secrets if key is None else Secrets(recovery=parse_recovery_key(key))

        async def main() -> Found:
            with trio.fail_after(BOUND):
                return await recover(self.config(), self.state_dir, offered, start=self.world.start, **options)

        found = trio.run(main)
        self.secrets = offered
        return found

    def run(self, body: Callable[[Volume], Awaitable[T]], *, read_only: bool = False, **changes: Any) -> T:
        async def main() -> T:
            with trio.fail_after(BOUND):
                async with open_volume(
                    self.config(**changes),
                    self.state_dir,
                    self.secrets,
                    read_only=read_only,
                    start=self.world.start,
                ) as volume:
                    return await body(volume)

        return trio.run(main)


def files_of(volume: Volume) -> Vfs:
    return Vfs(volume.store, volume.free_bytes)


async def put_file(volume: Volume, name: bytes, data: bytes) -> int:
    """A file in the root directory; its inode."""
    vfs = files_of(volume)
    try:
        node = vfs.lookup(loader.ROOT_INO, name)
        handle = vfs.open(node.ino, os.O_RDWR)
    except FsError:
        handle, node = vfs.create(loader.ROOT_INO, name, 0o100644, os.O_RDWR, 0, 0)
    for at in range(0, len(data), 1 << 17):
        await vfs.write(handle.fh, at, data[at : at + (1 << 17)])
    vfs.release(handle.fh)
    return node.ino


async def get_file(volume: Volume, name: bytes) -> bytes:
    """The contents of a file in the root directory."""
    vfs = files_of(volume)
    node = vfs.lookup(loader.ROOT_INO, name)
    handle = vfs.open(node.ino, 0)
    parts = []
    at = 0
    while part := await vfs.read(handle.fh, at, 1 << 17):
        parts.append(part)
        at += len(part)
    vfs.release(handle.fh)
    return b"".join(parts)


async def chunks_of(volume: Volume, ino: int) -> list[ChunkPlace]:
    """Where each chunk of a file lies."""
    found: list[ChunkPlace] = []
    await volume.info(ino, found.append)
    return found


async def describe(volume: Volume, *segments: SegmentInfo) -> None:
    """From now on these segments are as described here, as after a repair."""
    await volume.publisher.mend({segment.id: lambda _, segment=segment: segment for segment in segments})  # type: ignore[misc]


def list_files(volume: Volume) -> list[bytes]:
    return sorted(entry.name for entry in volume.store.entries(loader.ROOT_INO, 0))


def believed(world: World, volume: Volume) -> list[str]:
    """Providers that are said to hold a share and do not."""
    found = []
    for id in volume.repair.ids():
        segment = volume._segment(id)
        assert segment is not None
        for share, name in zip(segment.shares, volume.network.names_of(segment), strict=True):
            if share.stored and name not in world.providers[share.provider].objects:
                found.append(share.provider)
    return found


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
