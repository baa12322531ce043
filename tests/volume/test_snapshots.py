"""Snapshots: nothing that one keeps is ever deleted, and once it is gone all that only it kept goes."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

import pytest
import trio

from icnfs.errors import DegradedError, FormatError, SnapshotError
from icnfs.format.records import FEATURE_OF, Table, unpack_chunk
from icnfs.format.run import RunReader
from icnfs.format.segment import SegmentInfo
from icnfs.format.snapshot import Snapshot
from icnfs.state import snapshots as records
from icnfs.volume.volume import Volume
from tests.volume.test_collect import collected, content, counts, recovered
from tests.volume.world import Machine, World, files_of, get_file, put_file

SECONDS = 30.0


@pytest.fixture
def here(world: World) -> Machine:
    return world.machine()


async def make(volume: Volume, name: str, until: int = 0) -> Snapshot:
    return await volume.snapshots.create(name, SECONDS, until=until)


async def chunks_of(volume: Volume, snapshot: Snapshot) -> dict[tuple[bytes, int], bytes]:
    """Every chunk of a snapshot's tree, opened, by inode and index: read from the providers alone."""
    rows: dict[tuple[int, bytes], bytes | None] = {}
    network, store = volume.network, volume.store

    async def fetch(segment: SegmentInfo) -> bytes:
        return await network.transfer.get_segment(segment, network.names_of(segment))

    for run in snapshot.runs:
        reader = RunReader(network.open_run, run.id)
        for id in run.parts:
            part = volume._segment(id)
            assert part is not None, "the record of a part"
            rows.update(((row.table, row.key), row.value) for row in reader.feed((await fetch(part))[: part.size]))
        reader.close()
    found: dict[tuple[bytes, int], bytes] = {}
    for (table, key), sealed in rows.items():
        if table == Table.CHUNKS and sealed is not None:
            record = unpack_chunk(store.records.open(Table.CHUNKS, key, sealed))
            place = store.locate(record.version)
            assert place is not None, "a kept version lies somewhere"
            segment = store.segment(place.segment)
            assert segment is not None
            payload = await fetch(segment)
            at = place.share * segment.share_len + place.offset
            assert len(payload[at : at + place.length]) == record.length
            found[key[:8], record.version] = bytes(payload[at : at + place.length])
    return found


def test_a_deadline_that_passes_while_it_is_committed_denies_no_snapshot(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        task = volume.store.task

        async def slow(work: Any, committed: Any = lambda: None) -> Any:
            result = await task(work, committed)
            if getattr(work, "func", None) is records.add:
                await trio.sleep(1.0)
            return result

        await put_file(volume, b"f", content(1))
        await volume.sync()
        monkeypatch.setattr(volume.store, "task", slow)
        try:
            await volume.snapshots.create("late", 0.8)
        except DegradedError as error:
            assert "late is made" in str(error)
        assert volume.snapshots.find("late").name == "late"

    here.run(main)


def test_a_snapshot_keeps_what_was_there_and_its_deletion_lets_it_go(world: World, here: Machine) -> None:
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await put_file(volume, b"f", content(1, 2_000_000))
        snapshot = await make(volume, "before")
        then = await chunks_of(volume, snapshot)
        assert len(then) == 16
        held = volume.holdings()["ada"].bytes
        files_of(volume).unlink(1, b"f")
        for seed in range(3):
            await put_file(volume, b"g", content(seed))
            await volume.sync()
            await collected(volume)
        assert await chunks_of(volume, snapshot) == then
        assert volume.holdings()["ada"].bytes >= held
        await volume.snapshots.delete("before")
        assert volume.snapshots.list() == []
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        assert volume.holdings()["ada"].bytes < held / 3
        assert volume.store.reader.count(Table.SEGMENTS) < 6, "no record of a run's part is left behind"
        assert volume.publisher.parts() <= set(volume.repair.ids())

    here.run(main)
    assert recovered(world, key) == {b"g": content(2)}


def test_a_deletion_that_no_head_knows_of_lets_nothing_go(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        await make(volume, "a")
        await put_file(volume, b"f", content(2))
        await volume.sync()
        await volume.collector.round()
        segments = volume.store.reader.count(Table.SEGMENTS)
        await volume.snapshots.delete("a")
        await volume.collector.round()
        assert volume.store.reader.count(Table.SEGMENTS) == segments
        await volume.drain()
        await volume.collector.round()
        assert volume.store.reader.count(Table.SEGMENTS) < segments

    here.run(main)


def test_names_are_checked_and_taken_once(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await make(volume, "a")
        for bad in ("", ".", "a/b", "a b", "-a", "x" * 65, "é", "a\n"):
            with pytest.raises(SnapshotError, match="cannot name"):
                await make(volume, bad)
        with pytest.raises(SnapshotError, match="already"):
            await make(volume, "a")
        with pytest.raises(SnapshotError, match="no snapshot b"):
            await volume.snapshots.delete("b")
        await make(volume, "b")
        assert [snapshot.name for snapshot in volume.snapshots.list()] == ["a", "b"]

    here.run(main)


def test_a_snapshot_of_an_unchanged_tree_is_one_too(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        one, two = await make(volume, "one"), await make(volume, "two")
        assert one.generation < two.generation and one.time_ns < two.time_ns
        assert (await chunks_of(volume, one)) == (await chunks_of(volume, two))

    here.run(main)


def test_without_enough_providers_no_snapshot_is_said_to_be_safe(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await volume.sync()
        world.away("ada", "bee", "cat")
        await put_file(volume, b"f", content(1))
        with pytest.raises(DegradedError, match="no snapshot was made"):
            await volume.snapshots.create("a", 1.0)
        assert volume.snapshots.list() == []
        world.away("ada")
        await volume.network.wake()
        with pytest.raises(DegradedError, match="not safe yet"):
            await volume.snapshots.create("b", 2.0)
        assert [snapshot.name for snapshot in volume.snapshots.list()] == ["b"]
        world.away()
        await volume.sync()

    here.run(main)


def test_parts_of_a_snapshot_are_repaired_and_move_like_any_segment(world: World, here: Machine) -> None:
    """A part that the last head names too has one place, in its record and in the head."""
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await put_file(volume, b"f", content(1))
        snapshot = await make(volume, "a")
        ids = volume.repair.ids()
        assert len(ids) == len(set(ids)) and set(snapshot.parts) <= set(ids)
        world.providers["cat"].objects.clear()
        volume.network.taken.discard("cat")
        volume.network.free.add("cat")
        await volume.publisher.publish()
        for part in snapshot.parts:
            record, named = volume.store.segment(part), volume.publisher.part(part)
            assert record is not None and not (named is not None and named != record)
        await volume.sync()
        for part in snapshot.parts:
            record, named = volume.store.segment(part), volume.publisher.part(part)
            assert record is not None and not record.missing()
            assert named is None or named == record
        world.away("ada", "bee")
        assert len(await chunks_of(volume, snapshot)) == 3
        world.away()

    here.run(main)
    assert recovered(world, key) == {b"f": content(1)}


def test_only_volumes_with_snapshots_require_the_feature(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        await volume.sync()
        assert volume.publisher.head is not None and volume.publisher.head.features == 0
        assert volume.store.reader.identity()[2:10] == bytes(8)
        await make(volume, "a")
        assert volume.publisher.head.features == FEATURE_OF[Table.SNAPSHOTS]
        assert volume.store.reader.identity()[9] == FEATURE_OF[Table.SNAPSHOTS]
        await volume.snapshots.delete("a")
        await volume.sync()
        assert volume.publisher.head.features == FEATURE_OF[Table.SNAPSHOTS], "older runs hold its record"
        volume.publisher._runs = ()
        volume.publisher._news = True
        await volume.publisher.publish()
        assert volume.publisher.head.features == 0, "a checkpoint holds none"

    here.run(main)


def test_a_recovery_brings_snapshots_back(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    kept: list[tuple[Snapshot, Mapping[tuple[bytes, int], bytes]]] = []

    async def main(volume: Volume) -> None:
        for seed in range(4):
            await put_file(volume, b"f", content(seed))
            snapshot = await make(volume, f"s{seed}")
            kept.append((snapshot, await chunks_of(volume, snapshot)))
        await put_file(volume, b"f", content(9))
        await volume.sync()

    here.run(main)
    there = world.machine("there")
    there.recover(key)

    async def look(volume: Volume) -> None:
        assert volume.snapshots.list() == [snapshot for snapshot, _ in kept]
        assert volume.store.reader.identity()[9] == FEATURE_OF[Table.SNAPSHOTS]
        for _ in range(3):
            await collected(volume)
        for snapshot, chunks in kept:
            assert await chunks_of(volume, snapshot) == chunks
        before = counts(world)["shares/"]
        for snapshot, _ in kept:
            await volume.snapshots.delete(snapshot.name)
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        assert counts(world)["shares/"] < before * 0.6
        assert await get_file(volume, b"f") == content(9)

    there.run(look)


def test_a_record_that_cannot_be_read_stops_collection(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        snapshot = await make(volume, "a")
        await volume.store.task(
            lambda writer, generation: writer.put_sealed(
                Table.SNAPSHOTS, snapshot.generation.to_bytes(8, "big"), bytes(80), generation
            )
        )
        await put_file(volume, b"f", content(2))
        await volume.sync()
        before = counts(world)["shares/"]
        await collected(volume)
        assert counts(world)["shares/"] >= before
        with pytest.raises(FormatError, match="nothing is collected"):
            volume.snapshots.list()

    here.run(main)


@pytest.mark.parametrize("seed", range(12))
def test_no_order_of_events_deletes_what_a_snapshot_keeps(world: World, here: Machine, seed: int) -> None:
    """A model: put, remove, publish, snapshot, delete snapshots, collect and recover in random order.

    Notes of what is condemned are local: only where no machine was lost is it known that nothing is left behind.
    """
    key = here.init().recovery_key
    rng, recovers = random.Random(seed), seed % 2 == 1
    tree: dict[bytes, bytes] = {}
    kept: dict[str, Mapping[tuple[bytes, int], bytes]] = {}
    machine = here

    async def check(volume: Volume) -> None:
        assert {snapshot.name for snapshot in volume.snapshots.list()} == kept.keys()
        for snapshot in volume.snapshots.list():
            assert await chunks_of(volume, snapshot) == kept[snapshot.name], snapshot.name
        for name, data in tree.items():
            assert await get_file(volume, name) == data

    async def stretch(volume: Volume) -> None:
        volume.collector._grace = 0.0
        for step in range(rng.randrange(6, 12)):
            match rng.choice(["put", "put", "remove", "sync", "collect", "collect", "snapshot", "delete"]):
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
                case "snapshot":
                    snapshot = await make(volume, f"s{turn}-{step}")
                    kept[snapshot.name] = await chunks_of(volume, snapshot)
                case "delete" if kept:
                    gone = rng.choice(sorted(kept))
                    await volume.snapshots.delete(gone)
                    del kept[gone]
        await volume.sync()
        await check(volume)

    for turn in range(4):
        machine.run(stretch)
        machine.run(check)
        if recovers:
            machine = world.machine(f"next-{seed}-{turn}")
            machine.recover(key)
            machine.run(check)

    async def clear(volume: Volume) -> None:
        for name in sorted(kept):
            await volume.snapshots.delete(name)
        kept.clear()
        for name in sorted(tree):
            files_of(volume).unlink(1, name)
        tree.clear()
        await volume.sync()
        for _ in range(4):
            await collected(volume)
        await check(volume)
        mine = {name for part in volume.publisher.parts() for name in volume.network.names_of(volume._segment(part))}  # type: ignore[arg-type]
        for provider, names in world.objects("shares/").items():
            orphans = [name for name in names if name not in mine]
            assert recovers or not orphans, f"{provider} still holds {len(orphans)} shares that nothing needs"

    machine.run(clear)
