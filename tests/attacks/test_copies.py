"""Two machines from one state (a cloned machine, a restored backup), or a recovery beside a mount that goes on."""

from __future__ import annotations

import os
import shutil
import threading
from dataclasses import replace

import pytest
import trio

from icnfs.errors import FencedError, TooFewProvidersError
from icnfs.format.head import Head
from icnfs.format.records import U64, Table
from icnfs.providers.memory import MemoryProvider
from icnfs.volume import recover as recovering
from icnfs.volume.heads import Heads, Survey
from icnfs.volume.network import Network
from icnfs.volume.recover import Bound, Found
from icnfs.volume.volume import Volume
from tests.volume.world import Machine, World, get_file, list_files, put_file


def copied(world: World, here: Machine, name: str) -> Machine:
    """A machine with a copy of another's local state, and the same secret."""
    shutil.copytree(here.state_dir, world.root / name / "demo")
    copy = world.machine(name)
    copy.secrets = here.secrets
    return copy


async def salts(volume: Volume) -> dict[int, bytes]:
    return dict(volume.store.salts)


async def read_all(volume: Volume) -> dict[bytes, bytes]:
    return {name: await get_file(volume, name) for name in list_files(volume)}


def test_two_mounts_of_one_copied_state_seal_under_different_salts(world: World) -> None:
    here = world.machine()
    here.init()
    copy = copied(world, here, "copy")
    sealed: list[tuple[bytes, int, int]] = []

    async def write(volume: Volume) -> None:
        ino = await put_file(volume, b"same name", b"same bytes" * 20_000)
        await volume.store.flush()
        for _, record, _ in volume.store.chunk_rows(ino):
            if record is not None:
                sealed.append((volume.store.salts.get(record.salt_id), record.salt_id, record.version))

    world.away(*world.providers)
    here.run(write)
    copy.run(write)
    ours, theirs = here.run(salts), copy.run(salts)
    assert {v for _, _, v in sealed[: len(sealed) // 2]} == {v for _, _, v in sealed[len(sealed) // 2 :]}, "worst case"
    used = [salt for salt, _, _ in sealed]
    assert used[0] != used[-1], "equal versions and salt numbers, and yet other keys"
    new = {salt_id for salt_id in ours.keys() & theirs.keys() if ours[salt_id] != theirs[salt_id]}
    assert {salt_id for _, salt_id, _ in sealed} <= new


def test_the_second_of_two_copies_to_publish_is_stopped_and_overwrites_nothing(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    copy = copied(world, here, "copy")
    data = os.urandom(200_000)

    async def first(volume: Volume) -> None:
        await put_file(volume, b"first", data)
        await volume.sync()

    async def second(volume: Volume) -> None:
        await put_file(volume, b"second", b"kept here")
        await volume.store.flush()
        with pytest.raises(FencedError):
            await volume.publisher.publish()
        assert volume.store.read_only
        assert await get_file(volume, b"second") == b"kept here"

    async def again(volume: Volume) -> dict[bytes, bytes]:
        assert volume.store.read_only, "fenced for good"
        return await read_all(volume)

    here.run(first)
    before = {name: dict(provider.objects) for name, provider in world.providers.items()}
    world.away(*world.providers)  # so that its first look does not already tell it

    async def offline_then_second(volume: Volume) -> None:
        world.away()
        await second(volume)

    copy.run(offline_then_second)
    for name, objects in before.items():
        now = world.providers[name].objects
        assert {n: now.get(n) for n in objects} == objects, "nothing published is changed or gone"
        assert not [n for n in now if n.startswith("heads/") and n not in objects], "it put no head"
    assert copy.run(again) == {b"second": b"kept here"}
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all) == {b"first": data}


def test_numbers_reserved_by_a_copy_are_its_own_after_a_recovery(world: World) -> None:
    """Inodes made on a recovered machine never take the number of one that the old machine published."""
    here = world.machine()
    key = here.init().recovery_key

    async def make(volume: Volume) -> set[int]:
        await put_file(volume, b"f%d" % len(list_files(volume)), b"x" * 200_000)
        await volume.sync()
        return {U64.unpack(row)[0] for row, _ in volume.store.reader.rows(Table.LOCATIONS)}

    old = here.run(make)
    there = world.machine("there")
    there.recover(key)
    assert len(there.run(make)) == 2 * len(old)


def test_what_is_published_while_a_recovery_loads_is_not_lost(world: World) -> None:
    """The old machine knew of nobody and said "published and safe": the recovery looks again once it took over."""
    here = world.machine()
    key = here.init().recovery_key

    async def early(volume: Volume) -> None:
        await put_file(volume, b"early", b"1")
        await volume.sync()

    async def late(volume: Volume) -> None:
        await put_file(volume, b"late", b"2")
        await volume.sync()

    here.run(early)
    told: list[Found] = []

    def found(what: Found) -> None:
        told.append(what)
        if len(told) == 1:
            mount = threading.Thread(target=here.run, args=(late,))
            mount.start()
            mount.join()

    there = world.machine("there")
    what = there.recover(key, found=found)
    assert [t.sequence for t in told] == sorted({t.sequence for t in told})
    assert len(told) == 2
    assert what == told[-1]
    assert there.run(read_all) == {b"early": b"1", b"late": b"2"}
    with pytest.raises(FencedError):
        here.run(late)


def test_an_owner_has_answered_only_with_every_provider_of_theirs(world: World) -> None:
    """A durable head lies with one provider of each of n - k + 1 owners; it may be just the one that is silent."""
    here = world.machine()
    here.init()

    async def look(volume: Volume) -> None:
        await volume.first_look()
        network = volume.network
        owners = {"ada": "x", "bee": "x", "cat": "y", "dog": "y", "eel": "z", "fox": "z"}
        facts = {name: replace(network.facts[name], owner=owner) for name, owner in owners.items()}
        shared = replace(network, facts=facts)
        assert shared.owners({"ada", "cat", "eel"}) == 3
        assert shared.silent({"ada", "cat", "eel"}) == 3
        assert shared.silent({"ada", "bee", "cat"}) == 2
        assert shared.silent(set(owners)) == 0
        volume.fence._network = shared
        listed = dict.fromkeys(("ada", "cat", "eel"), ())
        with pytest.raises(TooFewProvidersError):
            await volume.fence.pass_by(Survey(listed, {}))

    here.run(look)


class PowerCut(BaseException):
    """Nothing after it runs, as far as the code can tell."""


@pytest.mark.parametrize("puts", range(6))
def test_a_recovery_that_ends_at_any_put_of_its_head_is_started_over(world: World, puts: int) -> None:
    """Some copies of its head may lie at the providers; the next try goes on above them."""
    here = world.machine()
    key = here.init().recovery_key

    async def write(volume: Volume) -> None:
        await put_file(volume, b"f", b"x" * 200_000)
        await volume.sync()

    here.run(write)
    there = world.machine("there")
    left = puts
    real = MemoryProvider.put_new

    async def put_new(self: MemoryProvider, name: str, data: bytes) -> bool:
        nonlocal left
        if left == 0:
            raise PowerCut
        left -= 1
        return await real(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryProvider, "put_new", put_new)
        with pytest.raises((PowerCut, BaseExceptionGroup)):
            there.recover(key)
    assert not there.state_dir.exists()
    there.recover(key)
    assert there.run(read_all) == {b"f": b"x" * 200_000}


def test_a_recovery_that_broke_off_hides_nothing_that_was_published_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head it left holds what it had found; the old machine, which never saw it, had gone on and said "safe"."""
    here = world.machine()
    key = here.init().recovery_key
    take_over = recovering._take_over
    seen, published = threading.Event(), threading.Event()

    def found(_: Found) -> None:
        seen.set()
        assert published.wait(30)

    async def at_one_alone(network: Network, heads: Heads, head: Head) -> None:
        world.away(*(name for name in world.providers if name != "fox"))
        try:
            await take_over(network, heads, head)
        finally:
            world.away()

    def broken(name: str) -> None:
        with monkeypatch.context() as patch, pytest.raises(TooFewProvidersError, match="takes the volume over"):
            patch.setattr(recovering, "_take_over", at_one_alone)
            world.machine(name).recover(key, found=found)

    async def write(volume: Volume) -> None:
        await put_file(volume, b"early", b"1")
        await volume.sync()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, broken, "once")
            await trio.to_thread.run_sync(seen.wait)
            await put_file(volume, b"late", b"2")
            await volume.sync()
            published.set()

    here.run(write)
    broken("twice")
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all) == {b"early": b"1", b"late": b"2"}


def test_what_a_recovery_went_back_from_is_not_brought_back_by_the_next(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def write(volume: Volume) -> list[tuple[int, int]]:
        numbers = []
        for name in (b"one", b"two", b"three"):
            await put_file(volume, name, b"x")
            await volume.sync()
            numbers.append(volume.fence.number)
        return numbers

    numbers = here.run(write)
    world.machine("back").recover(key, bound=Bound(number=numbers[0]))
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all) == {b"one": b"x"}
