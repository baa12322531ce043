"""Slow-loris providers: they take a request and never answer it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import trio

from icnfs.format.head import Head
from icnfs.limits import HEDGE_SECONDS, OBJECT_MAX
from icnfs.providers.memory import MemoryProvider
from icnfs.volume import heads
from icnfs.volume.volume import Volume
from tests.volume.world import World, get_file, put_file

DATA = os.urandom(500_000)


@pytest.mark.parametrize("loris", [("ada",), ("bee", "eel")])
def test_reading_waits_for_a_silent_provider_once_and_not_with_every_chunk(
    world: World, loris: tuple[str, ...]
) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def write(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()

    here.run(write)
    there = world.machine("there")
    there.recover(key)

    async def read(volume: Volume) -> float:
        await volume.first_look()
        for name in loris:
            world.providers[name]._turn = hang  # type: ignore[method-assign]
        begun = trio.current_time()
        assert await get_file(volume, b"f") == DATA
        return trio.current_time() - begun

    assert there.run(read) < 2 * len(loris) * HEDGE_SECONDS + 2


def test_heads_made_up_and_handed_out_slowly_take_their_provider_s_time_and_no_more(world: World) -> None:
    here = world.machine()
    here.init()

    async def look(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        assert volume.fence.base is not None
        false = FalseHeads(world.providers["fox"], 0.2)
        survey = await volume.heads.survey()
        assert len(survey.listed["fox"]) > 16
        found = await volume.heads.newest(survey, 0.5)
        assert found is not None and found.number == volume.fence.number
        assert 1 <= len(false.read) <= 3
        assert survey.unread == {"fox"}, "it has as good as not answered"

    here.run(look)


def of_nobody(_: Head) -> bool:
    return False


class FalseHeads:
    """Has a provider list sixteen new heads above all others each time, of `size` bytes each, in `seconds` each."""

    def __init__(self, provider: MemoryProvider, seconds: float, size: int = 7) -> None:
        self._list, self._get, self._size = provider.list, provider.get, provider.size
        self.seconds = seconds
        self.bytes = size
        self.looked_at: list[str] = []
        self.read: list[str] = []
        provider.list, provider.get, provider.size = self.list, self.get, self.size  # type: ignore[method-assign]

    async def list(self, prefix: str, after: str = "") -> list[str]:
        made = sorted(f"heads/{1 << 62 | i:016x}-{5:016x}-{os.urandom(16).hex()}" for i in range(16))
        return [*await self._list(prefix, after), *(made if prefix == "heads/" else ())]

    async def size(self, name: str) -> int:
        if not name.startswith("heads/4"):
            return await self._size(name)
        self.looked_at.append(name)
        return self.bytes

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if not name.startswith("heads/4"):
            return await self._get(name, offset, length)
        self.read.append(name)
        await trio.sleep(self.seconds)
        return bytes(self.bytes)


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_who_shows_false_heads_delays_one_look_and_no_later_one(
    world: World, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "DOUBTED_SECONDS", 0.3)
    here = world.machine()
    here.init()

    async def look(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        false = FalseHeads(world.providers["fox"], seconds)
        assert await volume.heads.newest(await volume.heads.survey(volume.fence.number), 0.5, accept=of_nobody) is None
        assert {one.name for one in volume.status().providers if "head" in one.error} == {"fox"}
        for _ in range(3):
            false.read.clear()
            begun = trio.current_time()
            survey = await volume.heads.survey()
            await volume.fence.pass_by(survey)
            assert trio.current_time() - begun < 2
            assert len(false.read) == heads.DOUBTED_CANDIDATES
            assert survey.unread == {"fox"}, "it has as good as not answered"
        await put_file(volume, b"g", DATA)
        await volume.sync()

    here.run(look)


def test_a_doubted_provider_has_all_its_time_where_the_others_are_too_few(world: World) -> None:
    here = world.machine()
    here.init()

    async def look(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        false = FalseHeads(world.providers["fox"], 0.0)
        volume.heads.doubted["fox"] = "it was slow"
        survey = await volume.heads.survey()
        few = replace(survey, listed={name: survey.listed[name] for name in ("ada", "bee", "cat", "fox")})
        await volume.fence.check(few)
        assert len(false.read) > heads.DOUBTED_CANDIDATES

    here.run(look)


def test_a_doubted_provider_that_shows_a_real_head_in_time_is_doubted_no_more(world: World) -> None:
    here = world.machine()
    here.init()

    async def look(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        volume.heads.doubted["fox"] = "it was slow"
        survey = await volume.heads.survey()
        assert await volume.heads.newest(replace(survey, listed={"fox": survey.listed["fox"]})) is not None
        assert not volume.heads.doubted

    here.run(look)


def test_of_what_is_no_head_by_its_size_nothing_is_read(world: World) -> None:
    here = world.machine()
    here.init()

    async def look(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        false = FalseHeads(world.providers["fox"], 0.0, OBJECT_MAX)
        survey = await volume.heads.survey()
        await volume.fence.pass_by(survey)
        assert false.looked_at and not false.read
        assert survey.unread == {"fox"}

    here.run(look)


async def hang(*, changes: bool = False) -> None:
    await trio.sleep_forever()
