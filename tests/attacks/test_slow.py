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


async def hang(*, changes: bool = False) -> None:
    await trio.sleep_forever()
