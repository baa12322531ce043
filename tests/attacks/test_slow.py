"""Slow-loris providers: they take a request and never answer it."""

from __future__ import annotations

import os

import pytest
import trio

from icnfs.limits import HEDGE_SECONDS
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
    liar = world.providers["fox"]
    real_list, real_get, asked = liar.list, liar.get, []
    invented = sorted(f"heads/{1 << 62 | i:016x}-{5:016x}-{os.urandom(16).hex()}" for i in range(16))

    async def show(prefix: str, after: str = "") -> list[str]:
        return [*await real_list(prefix, after), *(invented if prefix == "heads/" else ())]

    async def drip(name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name not in invented:
            return await real_get(name, offset, length)
        asked.append(name)
        await trio.sleep(0.2)
        return b"no head"

    async def look(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        assert volume.fence.base is not None
        liar.list, liar.get = show, drip  # type: ignore[method-assign]
        survey = await volume.heads.survey()
        assert len(survey.listed["fox"]) > 16
        found = await volume.heads.newest(survey, 0.5)
        assert found is not None and found.number == volume.fence.number
        assert 1 <= len(asked) <= 3
        assert survey.unread == {"fox"}, "it has as good as not answered"

    here.run(look)


async def hang(*, changes: bool = False) -> None:
    await trio.sleep_forever()
