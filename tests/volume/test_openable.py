"""A machine that has only its TOML and a secret opens the volume, whoever was replaced and whoever vanishes next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from icnfs.crypto.keys import Secret
from icnfs.crypto.slots import SlotKind
from icnfs.errors import DegradedError, IcnfsError
from icnfs.volume import openable, places
from icnfs.volume.places import Places
from icnfs.volume.volume import Volume
from tests.volume.world import NAMES, World, get_file, put_file

DATA = os.urandom(300_000)
TURNS = (
    NAMES,
    ("cat", "dog", "eel", "fox", "gnu", "hen"),
    ("eel", "fox", "gnu", "hen", "ibi", "jay"),
    ("gnu", "hen", "ibi", "jay", "ada", "bee"),
)
"""Of a volume that may lose two owners: two are replaced at a time, until none of the first is left."""


@pytest.fixture
def wide(tmp_path: Path) -> World:
    return World(tmp_path, more=("gnu", "hen", "ibi", "jay"))


def only(world: World, names: Sequence[str], whole: World) -> None:
    world.config = replace(world.config, providers={name: whole.config.providers[name] for name in names})


def holders(world: World) -> set[str]:
    return {name for name, slots in world.objects("slots/").items() if slots and name in world.config.providers}


def lose_slots(world: World, *names: str) -> None:
    for name in names:
        for slot in world.objects("slots/")[name]:
            del world.providers[name].objects[slot]


async def write(volume: Volume) -> None:
    await put_file(volume, b"f", DATA)
    await volume.sync()
    assert volume.unopenable == ""
    assert not volume.status().degraded


async def read(volume: Volume) -> bytes:
    return await get_file(volume, b"f")


def test_whoever_is_replaced_between_mounts_leaves_slots_to_who_comes(wide: World, tmp_path: Path) -> None:
    whole = World(tmp_path, more=("gnu", "hen", "ibi", "jay"))
    only(wide, NAMES, whole)
    here = wide.machine()
    key = here.init().recovery_key
    for names in TURNS:
        gone = wide.config.providers.keys() - set(names)
        only(wide, names, whole)
        here.run(write)
        assert holders(wide) == set(names)
        wide.lose(*gone)
        wide.away()
    wide.lose("gnu", "hen")
    there = wide.machine("there")
    there.recover(key)
    assert there.run(read) == DATA


def test_disaster_after_disaster_leaves_slots_at_every_owner(wide: World, tmp_path: Path) -> None:
    whole = World(tmp_path, more=("gnu", "hen", "ibi", "jay"))
    only(wide, NAMES, whole)
    machine = wide.machine("0")
    key = machine.init().recovery_key
    machine.run(write)
    for number, names in enumerate(TURNS[1:], 1):
        wide.lose(*(wide.config.providers.keys() - set(names)))
        wide.away()
        only(wide, names, whole)
        machine = wide.machine(str(number))
        machine.recover(key)
        assert machine.run(read) == DATA
        machine.run(write)
        assert holders(wide) == set(names)


def test_sync_waits_until_enough_owners_hold_a_slot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()

    async def nothing(_self: Places, _provider: str) -> None:
        pass

    async def main(volume: Volume) -> None:
        await write(volume)
        await volume.looked.wait()
        with monkeypatch.context() as patch:
            patch.setattr(Places, "deliver", nothing)
            lose_slots(world, "ada", "bee", "cat", "dog")
            await volume.places.verify_all()
            with pytest.raises(DegradedError, match=r"2 owners hold the slot of key .*recovery.*, and 3 are to"):
                await volume.sync(1.0)
            status = volume.status()
            assert status.degraded
            assert "2 owners hold" in status.keys
            assert volume.unsafe_at() == ["ada", "bee", "cat", "dog"]
        await volume.sync()
        assert volume.status().keys == ""
        assert volume.unsafe_at() == []

    here.run(main)


def test_slots_are_looked_at_daily_and_by_a_scrub(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        await volume.looked.wait()
        before = world.objects("slots/")
        lose_slots(world, *NAMES)
        report = await volume.scrub()
        assert (report.bad_slots, report.is_good) == (6, False)
        assert world.objects("slots/") == before
        report = await volume.scrub()
        assert (report.bad_slots, report.is_good) == (0, True)
        lose_slots(world, *NAMES)
        looks = 0

        async def look() -> None:
            nonlocal looks
            looks += 1
            if looks == 1:
                raise IcnfsError("nobody answers")
            if looks == 2:
                await volume.look_at_slots()
                seen.set()

        seen = trio.Event()
        monkeypatch.setattr(places, "SLOTS_SECONDS", 0.001)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.places.watch, look)
            await seen.wait()
            nursery.cancel_scope.cancel()
        assert world.objects("slots/") == before

    here.run(main)


@pytest.mark.parametrize("lost", [NAMES, NAMES[:4]])
def test_heads_that_went_are_put_again_after_a_day(world: World, lost: tuple[str, ...]) -> None:
    """Those of all, or of so many that no recovery could be sure of finding one."""
    here = world.machine()
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        await write(volume)
        await volume.looked.wait()
        for name in lost:
            objects = world.providers[name].objects
            for head in [head for head in objects if head.startswith("heads/")]:
                del objects[head]
        assert volume.publisher.is_idle
        await volume.first_look()
        assert not volume.publisher.is_idle
        await volume.publisher.publish()
        assert all(world.objects("heads/").values())

    here.run(main)
    assert world.machine("there").recover(key)


def test_a_volume_all_of_whose_keys_are_local_is_never_called_safe(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        entry = next(entry for entry in volume.keyring.entries() if entry.kind == "recovery")
        volume.remove_key(entry.id)
        await put_file(volume, b"f", b"new")
        with pytest.raises(DegradedError, match="lost with this machine; add one by `icnfs key add`"):
            await volume.sync()
        assert await volume.drain() == volume.publisher.batch, "it is published all the same"
        assert volume.status().keys == openable.LOCAL_ONLY
        volume.keyring.add(SlotKind.KEYFILE, Secret.random(), volume.network.master, label="new", providers=NAMES)
        volume.keyring.save()
        await write(volume)

    here.run(main)


def test_a_place_that_is_doubted_holds_no_slot_that_counts(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        for name in ("ada", "bee", "cat", "dog"):
            volume.network.doubt(name)
        assert "2 owners hold the slot" in volume.unopenable
        await volume.sync()
        assert volume.unopenable == ""

    here.run(main)
