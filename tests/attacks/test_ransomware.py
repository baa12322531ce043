"""An intruder who has the mount, the machine and all its keys: last week is got back all the same.

Four of six providers take what is new and let nothing be deleted or replaced; so four shares of everything are left.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import trio

from icnfs.errors import ProviderRefusedError, SnapshotError
from icnfs.volume.recover import Bound
from icnfs.volume.volume import Volume
from tests.volume.test_collect import collected
from tests.volume.test_locks import AppendOnly, until, with_providers
from tests.volume.test_snapshots import make
from tests.volume.world import World, get_file, list_files, put_file

CONTENTS = {b"small": b"hello", b"large": os.urandom(700_000), b"chunk": os.urandom(1 << 17)}


async def work(volume: Volume) -> int:
    """A week's work, and its snapshot."""
    for name, data in CONTENTS.items():
        await put_file(volume, name, data)
    assert (await make(volume, "last-week", until())).enforced
    return time.time_ns()


async def ruin(volume: Volume) -> None:
    """Every file is made unreadable, published, and collected without a grace."""
    try:
        await volume.snapshots.delete("last-week")
    except SnapshotError:
        pass  # the verb refuses; the intruder goes on without it
    for name in list_files(volume):
        await put_file(volume, name, b"pay")
    await volume.sync()
    await collected(volume)


async def erase(world: World) -> None:
    """All that the credentials allow, at every provider, by hand."""
    for provider in world.providers.values():
        for name in list(provider.objects):
            for act in (lambda p=provider, n=name: p.delete(n), lambda p=provider, n=name: p.put(n, b"pay")):
                try:
                    await act()
                except ProviderRefusedError:
                    pass


def test_what_an_intruder_with_everything_did_is_gone_back_behind(tmp_path: Path) -> None:
    world = with_providers(World(tmp_path), AppendOnly, "ada", "bee", "cat", "dog")
    here = world.machine()
    key = here.init().recovery_key
    before = here.run(work)
    here.run(ruin)
    trio.run(erase, world)
    assert all(set(world.providers[name].objects.values()) == {b"pay"} for name in ("eel", "fox"))
    world.lose("eel", "fox")
    there = world.machine("there")
    there.recover(key, bound=Bound(time_ns=before))

    async def look(volume: Volume) -> None:
        assert {name: await get_file(volume, name) for name in list_files(volume)} == CONTENTS
        assert volume.snapshots.find("last-week").enforced

    there.run(look, read_only=True)
