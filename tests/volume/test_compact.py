"""Compaction: segments that are mostly dead are emptied and go, nothing is ever lost by it, and it comes to rest."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import ProviderAwayError
from icnfs.format.records import Location, Table
from icnfs.limits import CHUNK_SIZE, LEAF_SIZE, SEGMENT_SIZE
from icnfs.providers.memory import MemoryProvider
from icnfs.state import loader
from icnfs.state.garbage import Census
from icnfs.volume.compact import READ_MOST, TARGET, Tally, choose, stretches
from icnfs.volume.volume import Volume
from tests.volume.test_collect import collected, notes, recovered
from tests.volume.test_snapshots import chunks_of, make
from tests.volume.world import Machine, World, files_of, flip, get_file, put_file

CHUNKS = 24
NAME = b"data"


@pytest.fixture
def here(world: World) -> Machine:
    return world.machine()


async def overwrite(volume: Volume, contents: list[bytes], places: list[int]) -> None:
    """New contents for these chunks of the file."""
    vfs = files_of(volume)
    handle = vfs.open(vfs.lookup(loader.ROOT_INO, NAME).ino, os.O_RDWR)
    for place in places:
        contents[place] = os.urandom(CHUNK_SIZE)
        await vfs.write(handle.fh, place * CHUNK_SIZE, contents[place])
    vfs.release(handle.fh)


async def sparse(volume: Volume) -> list[bytes]:
    """A published file, three quarters of whose first segment are dead."""
    contents = [os.urandom(CHUNK_SIZE) for _ in range(CHUNKS)]
    await put_file(volume, NAME, b"".join(contents))
    await volume.sync()
    await overwrite(volume, contents, [place for place in range(CHUNKS) if place % 4])
    await volume.sync()
    return contents


def located(volume: Volume) -> dict[int, Location]:
    reader, found = volume.store.reader, {}
    for key, _ in reader.rows(Table.LOCATIONS):
        version = int.from_bytes(key, "big")
        location = reader.location(version)
        assert location is not None
        found[version] = location
    return found


def old_versions(volume: Volume) -> set[int]:
    """Versions of the chunks that were never overwritten."""
    ino = files_of(volume).lookup(loader.ROOT_INO, NAME).ino
    return {r.version for index, r, _ in volume.store.chunk_rows(ino) if r is not None and index % 4 == 0}


def places_of_file(volume: Volume) -> list[Location]:
    ino = files_of(volume).lookup(loader.ROOT_INO, NAME).ino
    records = [record for _, record, _ in volume.store.chunk_rows(ino) if record is not None]
    return [located(volume)[record.version] for record in records]


def held(volume: Volume) -> Tally:
    tally = volume.collector.tally
    assert tally is not None
    return tally


# --- what it does -----------------------------------------------------------------------------------------------------


def test_a_segment_that_is_mostly_dead_is_emptied_and_goes(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    contents: list[bytes] = []

    async def main(volume: Volume) -> None:
        contents[:] = await sparse(volume)
        was = located(volume)
        [old] = {was[version].segment for version in old_versions(volume)}
        await volume.collector.round()
        before = held(volume)
        assert before.held > TARGET * before.live
        now = located(volume)
        assert {version for version in was if now[version] != was[version]} == old_versions(volume)
        lengths = sum(now[version].length for version in old_versions(volume))
        assert lengths <= volume.collector.compactor.read < lengths * 1.2
        assert volume.store.segment(old) is not None, "no head knows of it yet"
        assert volume.store.dirty_bytes == 0
        await volume.sync()

    async def go_on(volume: Volume) -> None:
        for _ in range(3):
            await collected(volume)
        after = held(volume)
        assert after.held <= after.live * TARGET
        assert await get_file(volume, NAME) == b"".join(contents)

    here.run(main)
    assert recovered(world, key, "between") == {NAME: b"".join(contents)}
    world.machine("between").run(go_on)
    assert recovered(world, key) == {NAME: b"".join(contents)}


def test_it_comes_to_rest_and_moves_nothing_that_would_not_pay(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"small", os.urandom(1000))
        await volume.sync()
        await put_file(volume, b"other", os.urandom(CHUNK_SIZE + 1))
        await volume.sync()
        await volume.collector.round()
        tally = held(volume)
        assert tally.held > 2 * tally.live, "a few chunks fill their shares badly, however they are packed"
        assert volume.collector.compactor.stored == 0
        await sparse(volume)
        await volume.collector.round()
        stored = volume.collector.compactor.stored
        assert stored > 0
        for _ in range(4):
            await collected(volume)
        assert volume.collector.compactor.stored == stored

    here.run(main)


def test_a_share_that_lies_poisons_no_new_segment(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    contents: list[bytes] = []

    async def main(volume: Volume) -> None:
        contents[:] = await sparse(volume)
        [old] = {located(volume)[version].segment for version in old_versions(volume)}
        segment = volume.store.segment(old)
        assert segment is not None
        for index in (0, 1):
            objects = world.providers[segment.shares[index].provider].objects
            name = volume.network.names_of(segment)[index]
            for at in range(5000, len(objects[name]), LEAF_SIZE):
                objects[name] = flip(objects[name], at)
        await volume.collector.round()
        assert old not in {located(volume)[version].segment for version in old_versions(volume)}
        await volume.sync()

    here.run(main)
    assert recovered(world, key) == {NAME: b"".join(contents)}


def test_it_waits_while_a_provider_is_away(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await sparse(volume)
        was = located(volume)
        plan = {}
        for version in old_versions(volume):
            plan.setdefault(was[version].segment, []).append((version, was[version]))
        world.away("cat")
        while "cat" not in volume.network.lost():
            with pytest.raises(ProviderAwayError):
                await volume.network.transfer.get_object("cat", "none", deadline=1)
        await volume.collector.compactor.run(plan)
        assert located(volume) == was and not volume.collector.compactor.read

    here.run(main)


def test_a_new_segment_that_is_not_safe_is_condemned_and_named_by_nothing(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.init()
    real = MemoryProvider.put

    async def main(volume: Volume) -> None:
        contents = await sparse(volume)
        was = located(volume)
        objects = {name: set(provider.objects) for name, provider in world.providers.items()}

        async def put(provider: MemoryProvider, name: str, data: bytes) -> None:
            if provider.name == "dog":
                provider.away = True
            await real(provider, name, data)

        monkeypatch.setattr(MemoryProvider, "put", put)
        await volume.collector.round()
        assert located(volume) == was
        monkeypatch.undo()
        world.away()
        new = {
            (name, object)
            for name, provider in world.providers.items()
            for object in provider.objects
            if object not in objects[name]
        }
        assert len(new) == 5 and new <= {place for note in notes(volume) for place in note.objects}
        await volume.sync()
        await collected(volume)
        await collected(volume)
        assert not any(object in world.providers[name].objects for name, object in new)
        assert await get_file(volume, NAME) == b"".join(contents)

    here.run(main)


def test_what_died_and_what_lies_elsewhere_by_now_is_not_moved_back(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    contents: list[bytes] = []

    async def main(volume: Volume) -> None:
        contents[:] = await sparse(volume)
        was = located(volume)
        plan = {}
        for version in old_versions(volume):
            plan.setdefault(was[version].segment, []).append((version, was[version]))
        await volume.collector.round()
        now = located(volume)
        await overwrite(volume, contents, [0, 4])
        await volume.sync()
        await volume.collector.compactor.run(plan)
        assert {version: place for version, place in located(volume).items() if version in now} == now
        for _ in range(3):
            await collected(volume)
        assert held(volume).live == sum(location.length for location in places_of_file(volume))

    here.run(main)
    assert recovered(world, key) == {NAME: b"".join(contents)}


def test_versions_that_only_a_snapshot_keeps_move_like_all_others(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    kept: dict[tuple[bytes, int], bytes] = {}
    contents: list[bytes] = []

    async def main(volume: Volume) -> None:
        contents[:] = await sparse(volume)
        snapshot = await make(volume, "then")
        kept.update(await chunks_of(volume, snapshot))
        assert len(kept) == CHUNKS
        old, was = old_versions(volume), located(volume)
        await overwrite(volume, contents, list(range(CHUNKS)))
        await overwrite(volume, contents, [CHUNKS - 1])
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        now = located(volume)
        assert all(now[version].segment != was[version].segment for version in old)
        assert volume.store.segment(was[min(old)].segment) is None
        assert await chunks_of(volume, snapshot) == kept

    async def look(volume: Volume) -> None:
        assert await chunks_of(volume, volume.snapshots.find("then")) == kept

    here.run(main)
    assert recovered(world, key) == {NAME: b"".join(contents)}
    world.machine("there").run(look)


# --- nothing is lost --------------------------------------------------------------------------------------------------


class Break:
    """Ends a scope at the n-th call of a provider from now on, before or after it takes effect."""

    def __init__(self, calls: int, *, after: bool) -> None:
        self.left = calls
        self.after = after
        self.scope = trio.CancelScope()

    @contextmanager
    def armed(self) -> Iterator[None]:
        real = {name: getattr(MemoryProvider, name) for name in ("put", "get", "delete")}

        def broken(name: str) -> object:
            async def call(provider: MemoryProvider, *args: object) -> object:
                self.left -= 1
                last = self.left == 0
                if last and not self.after:
                    self.scope.cancel()
                answer = await real[name](provider, *args)
                if last:
                    self.scope.cancel()
                return answer

            return call

        for name in real:
            setattr(MemoryProvider, name, broken(name))
        try:
            with self.scope:
                yield
        finally:
            for name, function in real.items():
                setattr(MemoryProvider, name, function)


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_events_loses_a_chunk(
    world: World, here: Machine, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model: a file by chunks, snapshots; overwrite, publish, collect, break off anywhere, open again, recover."""
    monkeypatch.setattr("icnfs.volume.compact.TARGET", 1.0)
    key = here.init().recovery_key
    rng = random.Random(seed)
    contents = [os.urandom(CHUNK_SIZE) for _ in range(16)]
    kept: dict[str, dict[tuple[bytes, int], bytes]] = {}
    machine = here
    moved = 0

    async def stretch(volume: Volume) -> None:
        nonlocal moved
        volume.collector._grace = 0.0
        for _ in range(rng.randrange(3, 8)):
            match rng.choice(["write", "write", "sync", "collect", "break", "break", "snapshot", "delete", "delete"]):
                case "write":
                    await overwrite(volume, contents, rng.sample(range(16), rng.randrange(2, 12)))
                    if rng.random() < 0.5:
                        await volume.sync()
                case "sync":
                    await volume.sync()
                case "collect":
                    await volume.collector.round()
                case "break":
                    end = Break(rng.randrange(1, 60), after=rng.random() < 0.5)
                    with end.armed():
                        await volume.collector.round()
                    if end.scope.cancelled_caught:
                        break
                case "snapshot" if len(kept) < 2:
                    snapshot = await make(volume, f"s{rng.randrange(1 << 30)}")
                    kept[snapshot.name] = await chunks_of(volume, snapshot)
                case "delete" if kept:
                    name = rng.choice(sorted(kept))
                    await volume.snapshots.delete(name)
                    del kept[name]
        moved += volume.collector.compactor.stored

    async def begin(volume: Volume) -> None:
        await put_file(volume, NAME, b"".join(contents))
        await volume.sync()

    async def settled(volume: Volume) -> None:
        volume.collector._grace = 0.0
        assert await get_file(volume, NAME) == b"".join(contents)
        await volume.sync()
        for snapshot in volume.snapshots.list():
            assert await chunks_of(volume, snapshot) == kept[snapshot.name]
        assert len(volume.snapshots.list()) == len(kept)

    machine.run(begin)
    for turn in range(4):
        for _ in range(3):
            machine.run(stretch)
        machine.run(settled)
        assert recovered(world, key, f"look-{seed}-{turn}") == {NAME: b"".join(contents)}
        machine = world.machine(f"next-{seed}-{turn}")
        machine.recover(key)
    assert moved, "it was tried"


# --- what is chosen ---------------------------------------------------------------------------------------------------


def census(segments: dict[bytes, tuple[int, int]]) -> Census:
    """Of segments by id: (bytes held, bytes live)."""
    made = object.__new__(Census)
    made.size = Counter({id: size for id, (size, _) in segments.items()})
    made.live = Counter({id: live for id, (_, live) in segments.items()})
    made.held = Counter(dict.fromkeys(segments, 128))
    made.dead = Counter()
    return made


SIZES = st.tuples(st.integers(1, SEGMENT_SIZE), st.floats(0, 1)).map(lambda pair: (pair[0], int(pair[0] * pair[1])))


@given(segments=st.dictionaries(st.binary(min_size=16, max_size=16), SIZES, max_size=40), k=st.integers(1, 8))
def test_what_is_chosen_frees_more_than_it_moves_and_no_more_than_it_must(
    segments: dict[bytes, tuple[int, int]], k: int
) -> None:
    chosen = choose(census(segments), k)
    held, live = (sum(pair[i] for pair in segments.values() if pair[1]) for i in (0, 1))
    freed = sum(segments[id][0] - segments[id][1] for id in chosen)
    assert all(2 * segments[id][1] < segments[id][0] and segments[id][1] for id in chosen)
    assert freed >= sum(segments[id][1] for id in chosen)
    if held <= TARGET * live:
        assert not chosen
    if chosen:
        last = chosen[-1]
        left = held - freed + segments[last][0] - segments[last][1]
        assert left > TARGET * live, "without the last one it was not enough"
        share = segments[last][1] / segments[last][0]
        others = [id for id in segments if id not in chosen and segments[id][1]]
        assert all(segments[id][1] / segments[id][0] >= share for id in others), "the emptiest first"


PLACES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 80), st.integers(1, 2)).map(
        lambda place: Location(bytes(16), place[0], place[1] * 70_000, place[2] * 35_000)
    ),
    unique_by=lambda location: (location.share, location.offset),
    max_size=60,
)


@given(places=PLACES)
def test_every_chunk_is_in_one_stretch_and_little_is_read_beside(places: list[Location]) -> None:
    found = list(stretches(list(enumerate(places))))
    assert sorted(version for stretch in found for version, _ in stretch.places) == list(range(len(places)))
    for stretch in found:
        assert stretch.end - stretch.offset <= READ_MOST
        for _, place in stretch.places:
            assert place.share == stretch.share
            assert stretch.offset <= place.offset and place.offset + place.length <= stretch.end
        idle = stretch.end - stretch.offset - sum(place.length for _, place in stretch.places)
        assert idle < LEAF_SIZE * len(stretch.places)
