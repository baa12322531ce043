"""A volume publishes itself, comes back from its providers, and never pretends."""

from __future__ import annotations

import os

from tests.volume.world import World, get_file, list_files, put_file


def test_what_was_synced_comes_back_on_an_empty_machine_without_two_providers(world: World) -> None:
    contents = {b"small": b"hello", b"empty": b"", b"large": os.urandom(3_000_000), b"chunk": os.urandom(1 << 17)}
    here = world.machine()
    key = here.init().recovery_key

    async def write(volume) -> int:  # noqa: ANN001
        for name, data in contents.items():
            await put_file(volume, name, data)
        return await volume.sync()

    here.run(write)
    world.lose("ada", "dog")
    there = world.machine("there")
    there.recover(key)

    async def read(volume) -> dict[bytes, bytes]:  # noqa: ANN001
        return {name: await get_file(volume, name) for name in list_files(volume)}

    assert there.run(read) == contents
