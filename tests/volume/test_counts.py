"""What publishing and cold reads cost in calls and bytes: counts that no machine changes.

Each bound is what was counted when it was written; a fifth more fails.  Less is welcome: lower the figure then.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from icnfs.limits import CHUNK_SIZE, MIB
from icnfs.providers.base import Data
from icnfs.providers.memory import MemoryProvider
from icnfs.volume.volume import Volume
from tests.volume.world import World, get_file, put_file

SLACK = 1.2

PUBLISHED_4_KIB = 43_200
"""Bytes that all six providers are given when one file of 4 KiB is new; most of it is shares' headers and six heads."""

COLD_32_MIB = 56
"""Ranges fetched when a file of 32 MiB is read cold: 256 chunks, a request and an answer for each range."""


class Counted(MemoryProvider):
    """Counts what is asked of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, capacity=1 << 40, pool="one")
        self.puts = self.gets = self.lists = self.bytes_in = self.bytes_out = 0

    async def put(self, name: str, data: Data) -> None:
        self.puts += 1
        self.bytes_in += len(data)
        await super().put(name, data)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(name, offset, length)
        self.gets += 1
        self.bytes_out += len(data)
        return data

    async def list(self, prefix: str, after: str = "") -> list[str]:
        self.lists += 1
        return await super().list(prefix, after)


class Counts(World):
    """A world that is counted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.counted = {name: Counted(name) for name in self.providers}
        self.providers = dict(self.counted)

    def reset(self) -> None:
        self.calls.clear()
        for provider in self.counted.values():
            provider.puts = provider.gets = provider.lists = provider.bytes_in = provider.bytes_out = 0

    def total(self, what: str) -> int:
        return sum(getattr(provider, what) for provider in self.counted.values())


@pytest.fixture
def world(tmp_path: Path) -> Counts:
    return Counts(tmp_path)


def _bounded(count: float, baseline: float) -> None:
    assert count <= baseline * SLACK, f"{count} where {baseline} were counted"


def test_a_small_publish_takes_a_share_of_the_pack_one_of_the_run_and_a_head_at_each_provider(world: Counts) -> None:
    noise = random.Random(1)

    async def body(volume: Volume) -> None:
        await put_file(volume, b"first", noise.randbytes(4096))
        await volume.sync()
        for _ in range(5):
            world.reset()
            await put_file(volume, b"small", noise.randbytes(4096))
            await volume.sync()
            assert world.calls == ["put_segment"] * 2
            assert world.total("puts") <= 3 * 6
            assert world.total("lists") <= 2 * 6, "before the head is put, and after it, for a sync"
            assert world.total("gets") == 0
            _bounded(world.total("bytes_in"), PUBLISHED_4_KIB)

    machine = world.machine()
    machine.init()
    machine.run(body)


def test_a_large_publish_stores_the_code_s_share_and_little_else(world: Counts) -> None:
    size = 40 * MIB
    data = random.Random(2).randbytes(size)

    async def body(volume: Volume) -> None:
        await put_file(volume, b"large", data)
        world.reset()
        await volume.sync()
        _bounded(world.total("bytes_in") / (size * 6 / 4), 1.01)
        _bounded(world.total("puts"), 6 * (3 + 1 + 1))

    machine = world.machine()
    machine.init()
    machine.run(body)


def test_a_cold_file_is_read_in_few_calls_and_each_byte_once(world: Counts) -> None:
    size = 32 * MIB
    data = random.Random(3).randbytes(size)

    async def write(volume: Volume) -> None:
        await put_file(volume, b"large", data)
        await volume.sync()

    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    there = world.machine("there")
    there.recover(key)

    async def read(volume: Volume) -> None:
        await volume.looked.wait()
        world.reset()
        assert await get_file(volume, b"large") == data
        assert world.calls.count("fetch") <= size / CHUNK_SIZE / 4
        _bounded(world.calls.count("fetch"), COLD_32_MIB)
        _bounded(world.total("gets"), COLD_32_MIB)
        _bounded(world.total("bytes_out") / size, 1.01)

    there.run(read)
