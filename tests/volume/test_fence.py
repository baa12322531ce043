"""One machine writes; whoever was overtaken stops, says so, and keeps what it has."""

from __future__ import annotations

import os
import shutil

import pytest
import trio

from icnfs.errors import FencedError, FsError, TooFewProvidersError
from icnfs.format.head import Head
from icnfs.state import cut as cuts
from icnfs.volume.heads import Stored
from icnfs.volume.volume import Volume
from tests.volume.world import World, get_file, list_files, put_file


async def write(volume: Volume) -> None:
    await put_file(volume, b"file-%d" % len(list_files(volume)), os.urandom(1000))
    await volume.sync()


async def names(volume: Volume) -> list[bytes]:
    return list_files(volume)


async def until_read_only(volume: Volume) -> str:
    while not volume.store.read_only:
        await trio.sleep(0.01)
    return volume.status().fenced


def test_a_mount_after_a_recovery_elsewhere_is_read_only_and_keeps_its_data(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    world.machine("there").recover(key)

    async def look(volume: Volume) -> None:
        assert "another machine" in await until_read_only(volume)
        assert len(await get_file(volume, b"file-0")) == 1000
        with pytest.raises(FsError):
            await put_file(volume, b"new", b"x")

    here.run(look)
    world.away(*world.providers)
    assert "icnfs recover" in here.run(until_read_only), "it is fenced for good, providers or not"


def test_a_fenced_mount_removes_no_key_for_its_slots_would_stay(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    world.machine("there").recover(key)

    async def remove(volume: Volume) -> None:
        await until_read_only(volume)
        entry = next(entry for entry in volume.keyring.entries() if entry.kind == "recovery")
        with pytest.raises(FencedError, match="remove the key there"):
            volume.remove_key(entry.id)
        assert entry in volume.keyring.entries()

    here.run(remove)


def test_a_running_mount_stops_publishing_once_overtaken(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    before = None

    async def overtaken(volume: Volume) -> None:
        await write(volume)
        await trio.to_thread.run_sync(world.machine("there").recover, key)
        nonlocal before
        before = world.objects("heads/")
        await put_file(volume, b"late", b"kept here")
        with pytest.raises(FencedError):
            await volume.sync()
        assert volume.store.read_only
        assert await get_file(volume, b"late") == b"kept here"
        with pytest.raises(FencedError):
            await volume.publisher.publish()

    here.run(overtaken)
    assert world.objects("heads/") == before, "a fenced mount puts no head"


def test_nobody_is_told_that_it_is_safe_beside_a_machine_that_took_over_meanwhile(world: World) -> None:
    """Between the look for others and the head."""
    here = world.machine()
    key = here.init().recovery_key
    there = world.machine("there")

    async def overtaken(volume: Volume) -> None:
        await write(volume)
        store = volume.heads.store

        async def late(head: Head, spare: trio.Nursery) -> Stored:
            await trio.to_thread.run_sync(there.recover, key)
            return await store(head, spare)

        volume.heads.store = late  # type: ignore[method-assign]
        await put_file(volume, b"late", b"kept here")
        with pytest.raises(FencedError):
            await volume.sync()
        assert await get_file(volume, b"late") == b"kept here"

    here.run(overtaken)


def test_two_machines_that_claim_the_same_epoch_do_not_both_go_on(world: World) -> None:
    here = world.machine()
    here.init()
    shutil.copytree(here.state_dir, world.root / "copy" / "demo")
    copy = world.machine("copy")
    copy.secrets = here.secrets
    here.run(write)
    with pytest.raises(FencedError):
        copy.run(write)
    here.run(write)
    assert here.run(names) == [b"file-0", b"file-1"]


def test_an_old_copy_of_this_machines_own_state_is_fenced(world: World) -> None:
    here = world.machine()
    here.init()
    here.run(write)
    shutil.copytree(here.state_dir, world.root / "backup")
    here.run(write)
    shutil.rmtree(here.state_dir)
    shutil.copytree(world.root / "backup", here.state_dir)
    with pytest.raises(FencedError):
        here.run(write)


def test_a_head_that_was_put_just_before_a_crash_is_our_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()
    here.run(write)

    async def dies(*_: object) -> None:
        raise TooFewProvidersError("the machine stops between the head and the local commit")

    async def crash(volume: Volume) -> None:
        await put_file(volume, b"crash", b"c" * 100)
        await volume.store.flush()
        with pytest.raises(TooFewProvidersError):
            await volume.publisher.publish()

    with monkeypatch.context() as patch:
        patch.setattr(cuts, "finish_publish", dies)
        here.run(crash)
    heads = sum(map(len, world.objects("heads/").values()))
    here.run(write)
    here.run(write)
    assert sum(map(len, world.objects("heads/").values())) > heads
    assert here.run(names) == [b"crash", b"file-0", b"file-2", b"file-3"]


def test_mounts_without_providers_do_not_fence_themselves(world: World) -> None:
    here = world.machine()
    here.init()
    here.run(write)

    async def offline(volume: Volume) -> None:
        await put_file(volume, b"offline-%d" % len(list_files(volume)), b"x")
        await volume.store.flush()
        with pytest.raises(TooFewProvidersError):
            await volume.publisher.publish()

    for _ in range(3):
        world.away(*world.providers)
        here.run(offline)
    world.away()
    here.run(write)
    assert len(here.run(names)) == 5


def test_a_provider_that_shows_made_up_heads_fences_nobody(world: World) -> None:
    here = world.machine()
    here.init()
    own = [n for n in world.providers["ada"].objects if n.startswith("heads/")]
    world.providers["ada"].objects["heads/" + "f" * 16 + own[0][22:]] = world.providers["ada"].objects[own[0]]
    here.run(write)
    here.run(write)

    async def status(volume: Volume) -> str:
        await volume.first_look()
        return next(p.error for p in volume.status().providers if p.name == "ada")

    assert "head" in here.run(status)
