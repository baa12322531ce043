"""Collection: what no tree needs goes from the providers after its grace, and nothing else ever does."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio

from icnfs.errors import DamagedError, DegradedError, FencedError, IcnfsError, TooFewProvidersError
from icnfs.format.records import Table
from icnfs.state.apply import Writer
from icnfs.state.loader import ROOT_INO
from icnfs.volume import collect, condemned
from icnfs.volume.recover import Bound
from icnfs.volume.restoring import find_in, tree_of
from icnfs.volume.volume import Volume
from tests.volume.world import Machine, World, describe, files_of, flip, get_file, list_files, put_file

SMALL = 300_000


def content(seed: int, size: int = SMALL) -> bytes:
    return random.Random(seed).randbytes(size)


def counts(world: World) -> dict[str, int]:
    return {prefix: sum(map(len, world.objects(prefix).values())) for prefix in ("shares/", "heads/")}


def notes(volume: Volume) -> list[condemned.Condemned]:
    reader = volume.store.reader
    return [condemned.decode(reader.get(Table.CONDEMNED, key) or b"") for key, _ in reader.rows(Table.CONDEMNED)]


async def collected(volume: Volume) -> None:
    """As after a day: what is condemned goes, once a head knows."""
    volume.collector._grace = 0.0
    await volume.collector.round()
    await volume.drain()
    await volume.collector.round()


def recovered(world: World, key: str, name: str = "there", bound: Bound | None = None) -> dict[bytes, bytes]:
    there = world.machine(name)
    there.recover(key, bound=bound)

    async def read(volume: Volume) -> dict[bytes, bytes]:
        return {name: await get_file(volume, name) for name in list_files(volume)}

    return there.run(read)


@pytest.fixture
def here(world: World) -> Machine:
    return world.machine()


def test_what_was_overwritten_goes_and_what_is_there_stays(world: World, here: Machine) -> None:
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        await put_file(volume, b"kept", content(0))
        await volume.sync()
        for seed in range(1, 6):
            await put_file(volume, b"changed", content(seed))
            await volume.sync()
        before = counts(world)
        await collected(volume)
        await collected(volume)
        after = counts(world)
        assert after["heads/"] <= 6 * 2 < before["heads/"], "the last head, and the one that collection published"
        assert after["shares/"] < before["shares/"] * 0.6
        assert await get_file(volume, b"changed") == content(5)
        volume.store.want_upkeep()

    here.run(main)
    assert recovered(world, key) == {b"kept": content(0), b"changed": content(5)}


def test_a_removed_file_leaves_nothing_but_the_tree(world: World, here: Machine) -> None:
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        empty = volume.holdings()["ada"].bytes
        await put_file(volume, b"f", content(1, 2_000_000))
        await volume.sync()
        assert volume.holdings()["ada"].bytes > empty + 400_000
        vfs = files_of(volume)
        vfs.unlink(1, b"f")
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        assert volume.holdings()["ada"].bytes < empty + 10_000
        assert sum(len(data) for data in world.providers["ada"].objects.values()) < 60_000

    here.run(main)
    assert recovered(world, key) == {}


def test_nothing_goes_within_its_grace_nor_before_a_head_knows(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        await volume.sync()
        await put_file(volume, b"f", content(2))
        await volume.sync()
        before = {name: dict(provider.objects) for name, provider in world.providers.items()}
        await volume.collector.round()
        assert notes(volume), "condemned"
        await volume.sync()
        await volume.collector.round()
        for name, objects in before.items():
            assert objects.items() <= world.providers[name].objects.items(), "a day has not passed"
        volume.collector._grace = 0.0
        await put_file(volume, b"f", content(3))
        await volume.sync()
        ids = {note.segment for note in notes(volume)}
        await volume.collector.round()
        for note in notes(volume):
            if note.segment not in ids:
                assert all(name in world.providers[provider].objects for provider, name in note.objects), (
                    "condemned just now, and no head knows of it"
                )

    here.run(main)


def test_the_grace_begins_when_a_head_without_it_is_published(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long ago it was condemned: another machine may be recovering from the head that named it until then."""
    here.init()
    hours = 0.0
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(hours * 3600e9))

    async def main(volume: Volume) -> None:
        nonlocal hours
        volume.collector._grace = 24 * 3600.0
        await put_file(volume, b"f", content(1, 1_000_000))
        await volume.sync()
        files_of(volume).unlink(1, b"f")
        await volume.sync()
        early = {note.segment for note in notes(volume)}
        await volume.collector.round()
        held = [note for note in notes(volume) if note.segment not in early]
        assert held, "condemned, and no head knows of it"

        def there() -> int:
            return sum(name in world.providers[provider].objects for note in held for provider, name in note.objects)

        hours = 40.0
        await volume.sync()
        count = there()
        assert count
        await volume.collector.round()
        assert there() == count
        hours = 60.0
        await volume.collector.round()
        assert there() == count
        hours = 70.0
        await volume.collector.round()
        assert there() == 0

    here.run(main)


def test_a_machine_that_was_overtaken_deletes_nothing(world: World, here: Machine) -> None:
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        for seed in range(3):
            await put_file(volume, b"f", content(seed))
            await volume.sync()
        await volume.collector.round()
        await volume.sync()
        await trio.to_thread.run_sync(world.machine("there").recover, key)
        before = {name: dict(provider.objects) for name, provider in world.providers.items()}
        volume.collector._grace = 0.0
        with pytest.raises(FencedError):
            await volume.collector._carry_out(2**62)
        assert before == {name: dict(provider.objects) for name, provider in world.providers.items()}

    here.run(main)


def test_a_provider_that_is_away_is_asked_when_it_is_back(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        for seed in range(3):
            await put_file(volume, b"f", content(seed))
            await volume.sync()
        world.away("cat")
        before = len(world.providers["cat"].objects)
        await collected(volume)
        left = {provider for note in notes(volume) for provider, _ in note.objects}
        assert "cat" in left
        world.away()
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        assert len(world.providers["cat"].objects) < before

    here.run(main)


def test_a_safe_state_outlives_one_that_is_not_safe_yet(world: World, here: Machine) -> None:
    """Two providers are away while another state is published; it is they that are left when two others are lost."""
    key = here.init().recovery_key
    safe: list[tuple[int, int]] = []

    async def main(volume: Volume) -> None:
        await put_file(volume, b"one", content(1))
        await volume.sync()
        safe.append(volume.fence.number)
        world.away("eel", "fox")
        for name in ("eel", "fox"):
            with pytest.raises(IcnfsError):
                await volume.network.transfer.probe(name, deadline=1)
        for seed in range(2, 5):
            await put_file(volume, b"two", content(seed))
            await volume.drain(10)
            await collected(volume)
        assert volume.repair.unsafe
        assert volume.collector.deleted == 0

    here.run(main)
    world.away()
    world.lose("ada", "bee")
    with pytest.raises(TooFewProvidersError, match=f"--at-most {safe[0][0]}-{safe[0][1]}"):
        world.machine("elsewhere").recover(key)
    assert recovered(world, key, bound=Bound(number=safe[0])) == {b"one": content(1)}


def test_what_a_safe_state_did_without_goes_while_a_later_one_is_not_safe(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        for seed in range(3):
            await put_file(volume, b"f", content(seed))
            await volume.sync()
        volume.collector._grace = 0.0
        await volume.collector.round()
        await volume.sync()
        await volume.collector.round()
        before = volume.collector.deleted
        for seed in range(3, 5):
            await put_file(volume, b"f", content(seed))
            await volume.sync()
        await volume.collector.round()
        await volume.sync()
        volume.collector._grace = 3600.0
        await volume.collector.round()
        volume.collector._grace = 0.0
        before = volume.collector.deleted
        world.away("cat")
        await put_file(volume, b"f", content(5))
        await volume.drain(10)
        assert volume.repair.unsafe
        await volume.collector.round()
        assert volume.collector.deleted > before

    here.run(main)


def test_contents_that_are_lost_stop_no_collection(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"lost", content(9))
        await volume.sync()
        lost = next(segment for id in volume.repair.ids() if (segment := volume.store.segment(id)) is not None)
        volume.repair.note(
            [
                msgspec.structs.replace(
                    lost,
                    shares=tuple(
                        msgspec.structs.replace(share, stored=index < 2) for index, share in enumerate(lost.shares)
                    ),
                )
            ]
        )
        assert volume.repair.unsafe and volume.collector._kept()
        volume.repair.hopeless.add(lost.id)
        assert volume.repair.unsafe and not volume.collector._kept()

    here.run(main)


def test_room_is_made_where_it_is_wanted_though_the_volume_is_not_safe(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        for seed in range(4):
            await put_file(volume, b"file", content(seed))
            await volume.sync()
        full = world.providers["bee"]
        full.capacity = sum(map(len, full.objects.values()))
        await put_file(volume, b"another", content(9))
        with suppress(DegradedError):
            await volume.sync(deadline=5)
        assert volume.repair.unsafe
        before = world.objects("shares/")
        await collected(volume)
        await collected(volume)
        after = world.objects("shares/")
        assert set(before["bee"]) - set(after["bee"])
        assert all(set(before[name]) <= set(after[name]) for name in before if name != "bee")

    here.run(main)


def test_a_recovered_volume_finds_what_was_dead_before(world: World, here: Machine) -> None:
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        for seed in range(4):
            await put_file(volume, b"f", content(seed, 1_000_000))
            await volume.sync()

    here.run(main)
    there = world.machine("there")
    there.recover(key)

    async def collect(volume: Volume) -> None:
        held = volume.holdings
        await volume.loaded.wait()
        before = held()["ada"].bytes
        for _ in range(3):
            await collected(volume)
        assert held()["ada"].bytes < before / 2
        assert await get_file(volume, b"f") == content(3, 1_000_000)

    there.run(collect)


def test_a_share_that_came_back_to_its_old_place_is_not_deleted(tmp_path: Path) -> None:
    world = World(tmp_path, more=("gnu",))
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        await volume.sync()
        await volume.loaded.wait()
        segment = next(s for id in list(volume.repair._held) if (s := volume.store.segment(id)) is not None)
        index = next(i for i, share in enumerate(segment.shares) if share.provider != "gnu")
        home = segment.shares[index].provider
        spare = next(name for name in world.providers if name not in {share.provider for share in segment.shares})
        moved = await volume.repair._restore(segment, {index: spare})
        await describe(volume, moved)
        back = await volume.repair._restore(moved, {index: home})
        await describe(volume, back)
        await volume.sync()
        await collected(volume)
        assert volume.network.names_of(back)[index] in world.providers[home].objects
        assert volume.network.share_name(back.id, index, spare) not in world.providers[spare].objects

    here.run(main)


@pytest.mark.parametrize("seed", range(12))
def test_no_order_of_events_deletes_what_is_needed(world: World, here: Machine, seed: int) -> None:
    """A model: files by name; publish, change, remove, crash, collect and recover in random order."""
    key = here.init().recovery_key
    rng = random.Random(seed)
    tree: dict[bytes, bytes] = {}
    machine = here

    async def stretch(volume: Volume) -> None:
        volume.collector._grace = 0.0
        for _ in range(rng.randrange(4, 10)):
            match rng.choice(["put", "put", "remove", "sync", "collect", "collect"]):
                case "put":
                    name, data = b"f%d" % rng.randrange(4), os.urandom(rng.choice([10, 5_000, 200_000, 700_000]))
                    if name in tree:
                        files_of(volume).unlink(1, name)
                    await put_file(volume, name, data)
                    tree[name] = data
                case "remove" if tree:
                    name = rng.choice(sorted(tree))
                    files_of(volume).unlink(1, name)
                    del tree[name]
                case "sync":
                    await volume.sync()
                case "collect":
                    await volume.collector.round()
        await volume.sync()
        for name, data in tree.items():
            assert await get_file(volume, name) == data

    for turn in range(4):
        machine.run(stretch)
        assert recovered(world, key, f"look-{seed}-{turn}") == tree
        machine = world.machine(f"next-{seed}-{turn}")
        machine.recover(key)


def test_what_is_restored_while_unnamed_versions_are_searched_stays(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = here.init().recovery_key
    data = content(1)

    async def keep(volume: Volume) -> None:
        await put_file(volume, b"f", data)
        await volume.snapshots.create("one", 30.0)
        files_of(volume).unlink(ROOT_INO, b"f")
        await volume.sync()

    here.run(keep)
    there = world.machine("there")
    there.recover(key)
    walk = collect.walk

    async def restore(volume: Volume) -> None:
        await volume.looked.wait()

        async def walked(steps: Iterator[None]) -> None:
            await walk(steps)
            monkeypatch.undo()
            async with tree_of(volume, "one") as tree:
                found = find_in(tree, b"f")
                await files_of(volume).copy_from(tree.reader, found, ROOT_INO, b"again", 0, lambda _: None)

        monkeypatch.setattr(collect, "walk", walked)
        await volume.collector.round()
        await volume.sync()
        await volume.snapshots.delete("one")
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        await volume.sync()

    there.run(restore)
    assert recovered(world, key, "third") == {b"again": data}


@pytest.mark.parametrize("table", [Table.LOCATIONS, Table.SEGMENTS])
def test_a_local_record_that_is_damaged_has_nothing_deleted(world: World, here: Machine, table: Table) -> None:
    """What it says is not known here, and stands in the published records: a recovery reads the file."""
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1, 300_000))
        await volume.sync()
        await put_file(volume, b"other", content(2))
        await volume.sync()
        ino = files_of(volume).lookup(ROOT_INO, b"f").ino

        def damage(writer: Writer, generation: int) -> None:
            versions = [record.version for _, record in writer.reader.chunks(ino)]
            location = writer.reader.location(versions[0])
            assert location is not None
            located = [version.to_bytes(8, "big") for version in versions]
            for at in located if table == Table.LOCATIONS else [location.segment]:
                raw = bytes(writer.reader.raw(table, at) or b"")
                writer._meta.put(at, flip(raw, len(raw) - 1), db=volume.store.env.meta_dbs[table])

        await volume.store.task(damage)

    async def later(volume: Volume) -> None:
        await volume.loaded.wait()
        for _ in range(2):
            await collected(volume)
            await volume.sync()
        now = time.time()
        with suppress(DamagedError):
            for days in (0, 10):
                volume.orphans._now = lambda days=days: now + days * 86400  # type: ignore[misc]
                await volume.orphans.run(delete=True)

    here.run(main)
    here.run(later)
    assert recovered(world, key) == {b"f": content(1, 300_000), b"other": content(2)}
