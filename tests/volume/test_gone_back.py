"""Providers that went back to an older state under the same url: what they lost is found out, and is stored again."""

from __future__ import annotations

import os
import random

import pytest
import trio

from icnfs.errors import DegradedError, ProviderAwayError
from icnfs.providers.base import Data
from icnfs.volume import gone_back
from icnfs.volume.fence import load_acknowledged
from icnfs.volume.network import SHARES_PREFIX
from icnfs.volume.volume import Volume
from tests.volume.world import Machine, World, believed, get_file, put_file

OLD, NEW = os.urandom(400_000), random.Random(1).randbytes(3_000_000)


async def ready(volume: Volume) -> None:
    await volume.loaded.wait()
    await volume.looked.wait()


def started(world: World) -> tuple[Machine, str, dict[str, bytes]]:
    """A volume in which something is safe, and what `dog` then held."""
    here = world.machine()
    key = here.init().recovery_key

    async def write(volume: Volume) -> None:
        await put_file(volume, b"old", OLD)
        await volume.sync()

    here.run(write)
    return here, key, dict(world.providers["dog"].objects)


async def write_more(volume: Volume) -> None:
    await ready(volume)
    await put_file(volume, b"new", NEW)
    await volume.sync()


def require_whole(world: World, key: str) -> None:
    """Nothing is lost with the machine and two owners that did not go back."""
    world.lose("ada", "bee")
    there = world.machine("there")
    there.recover(key)

    async def read(volume: Volume) -> None:
        assert (await get_file(volume, b"old"), await get_file(volume, b"new")) == (OLD, NEW)

    there.run(read)


def test_one_that_goes_back_while_mounted_is_given_anew_what_it_lost(world: World) -> None:
    here, key, before = started(world)

    async def main(volume: Volume) -> None:
        await write_more(volume)
        world.providers["dog"].objects = before
        await put_file(volume, b"third", b"3")
        await volume.sync()
        assert believed(world, volume) == [] and not volume.network.unsure

    here.run(main)
    require_whole(world, key)


def test_one_that_went_back_between_mounts_is_noticed_with_nothing_to_publish(world: World) -> None:
    here, key, before = started(world)
    here.run(write_more)
    world.providers["dog"].objects = before

    async def main(volume: Volume) -> None:
        await ready(volume)
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)
    require_whole(world, key)


@pytest.mark.parametrize("mounted", [True, False])
def test_one_that_was_down_and_comes_back_older_is_noticed(world: World, mounted: bool) -> None:
    """It never said that it stored the last head, and lacks the one before."""
    here, key, before = started(world)

    async def down(volume: Volume) -> None:
        await write_more(volume)
        world.away("dog")
        await put_file(volume, b"third", b"3")
        await volume.drain()
        world.providers["dog"].objects = dict(before)
        world.away()
        if mounted:
            await after(volume)

    async def after(volume: Volume) -> None:
        await ready(volume)
        await put_file(volume, b"fourth", b"4")
        await volume.sync()
        assert believed(world, volume) == []

    here.run(down)
    if not mounted:
        here.run(after)
    require_whole(world, key)


def test_one_that_lost_nothing_but_a_head_is_sent_nothing_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    here, _, _ = started(world)
    dog = world.providers["dog"]
    put, sent = dog.put, []

    async def counted(name: str, data: Data) -> None:
        sent.append(name)
        await put(name, data)

    async def main(volume: Volume) -> None:
        await write_more(volume)
        dog.put = counted  # type: ignore[method-assign]
        del dog.objects[max(name for name in dog.objects if name.startswith("heads/"))]
        held = {name for name in dog.objects if name.startswith(SHARES_PREFIX)}
        await put_file(volume, b"third", b"3")
        await volume.sync()
        assert "went back to an older state; 0 shares" in caplog.text
        assert not held & set(sent) and not volume.network.unsure

    here.run(main)


def test_one_that_loses_every_head_it_is_given_holds_up_no_sync(world: World) -> None:
    here, _, _ = started(world)
    dog = world.providers["dog"]

    async def main(volume: Volume) -> None:
        await write_more(volume)
        for number in range(5):
            for name in [name for name in dog.objects if name.startswith("heads/")]:
                del dog.objects[name]
            await put_file(volume, b"f", b"%d" % number)
            await volume.sync(30)
        assert believed(world, volume) == []

    here.run(main)


def test_sync_waits_until_it_is_known_what_is_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here, _, before = started(world)
    dog = world.providers["dog"]
    listing, may = dog.list, False
    monkeypatch.setattr(gone_back, "AGAIN_SECONDS", 0.1)

    async def list(prefix: str, after: str = "") -> list[str]:
        if prefix == SHARES_PREFIX and not may:
            raise ProviderAwayError("dog", "not now")
        return await listing(prefix, after)

    async def main(volume: Volume) -> None:
        nonlocal may
        await write_more(volume)
        dog.objects, dog.list = before, list  # type: ignore[method-assign]
        await put_file(volume, b"third", b"3")
        with pytest.raises(DegradedError, match="dog may have lost what it held"):
            await volume.sync(2)
        assert believed(world, volume), "else it would have been safe"
        may = True
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)


def test_a_head_that_was_deleted_as_needless_is_not_missed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """`dog` takes no head any more; the last one that it took is deleted in time."""
    here, _, _ = started(world)
    dog = world.providers["dog"]

    async def refused(name: str, data: Data) -> bool:
        raise ProviderAwayError("dog", "not now")

    async def main(volume: Volume) -> None:
        await ready(volume)
        last = volume.network.acknowledged["dog"]
        volume.collector._grace = 0.0
        dog.put_new = refused  # type: ignore[method-assign]
        for number in range(3):
            await put_file(volume, b"f", b"%d" % number)
            await volume.drain()
            await volume.collector.round()
        assert last not in dog.objects and "dog" not in volume.network.acknowledged

    async def again(volume: Volume) -> None:
        await ready(volume)
        await volume.sync()

    here.run(main)
    here.run(again)
    assert "went back" not in caplog.text


def test_who_stored_the_last_head_is_known_to_the_next_mount(world: World) -> None:
    here, _, _ = started(world)
    heads: dict[str, str] = {}

    async def main(volume: Volume) -> None:
        await write_more(volume)
        while len(set(map(_number, volume.network.acknowledged.values()))) > 1:
            await trio.sleep(0.01)
        heads.update(volume.network.acknowledged)

    async def again(volume: Volume) -> None:
        assert load_acknowledged(volume.store) == volume.network.acknowledged == heads

    here.run(main)
    assert heads.keys() == world.providers.keys()
    assert all(head in world.providers[name].objects for name, head in heads.items())
    here.run(again)


def _number(head: str) -> str:
    return head.rpartition("-")[0]


@pytest.mark.parametrize("emptied", [True, False])
def test_a_sync_with_nothing_to_publish_asks_whether_all_is_there(world: World, emptied: bool) -> None:
    here, key, before = started(world)
    dog = world.providers["dog"]

    async def main(volume: Volume) -> None:
        await write_more(volume)
        dog.objects = {} if emptied else before
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)
    require_whole(world, key)


def test_a_sync_with_nothing_to_publish_succeeds_with_everybody_away(world: World) -> None:
    here, _, _ = started(world)

    async def main(volume: Volume) -> None:
        await write_more(volume)
        world.away(*world.providers)
        await volume.sync()

    here.run(main)
