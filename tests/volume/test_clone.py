"""What clones share is published once, kept while anything names it, and collected when nothing does."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import ExitStack

import pytest
import trio

from icnfs.format.records import FEATURE_OF, Table
from icnfs.limits import CHUNK_SIZE
from icnfs.state import cut as cuts
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.vfs.attributes import SetAttr
from icnfs.volume.volume import Volume
from tests.volume.test_collect import collected, content, counts, recovered
from tests.volume.world import Machine, World, files_of, get_file, list_files, put_file


@pytest.fixture(autouse=True)
def quickly_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What died is erased soon after."""
    monkeypatch.setattr("icnfs.state.committer.IDLE_SECONDS", 0.01)


@pytest.fixture
def here(world: World) -> Machine:
    return world.machine()


async def clone(volume: Volume, old: bytes, new: bytes) -> None:
    vfs = files_of(volume)
    await vfs.clone(vfs.lookup(ROOT_INO, old).ino, ROOT_INO, new)


def stored(world: World) -> int:
    """Bytes of shares at all providers."""
    return sum(
        len(data) for p in world.providers.values() for name, data in p.objects.items() if name.startswith("shares/")
    )


@pytest.mark.parametrize("published", [True, False])
def test_shared_contents_are_uploaded_once(world: World, here: Machine, published: bool) -> None:
    key = here.init().recovery_key
    data = content(1, 24 * CHUNK_SIZE)

    async def main(volume: Volume) -> None:
        await put_file(volume, b"a", data)
        if published:
            await volume.sync()
        before = stored(world)
        await clone(volume, b"a", b"b")
        await clone(volume, b"b", b"c")
        await volume.sync()
        assert stored(world) - before < (100_000 if published else 1.6 * len(data))
        assert volume.publisher.head is not None
        assert volume.publisher.head.features == FEATURE_OF[Table.SHARED]

    here.run(main)
    assert recovered(world, key) == dict.fromkeys((b"a", b"b", b"c"), data)


def test_what_one_file_drops_and_another_keeps_stays(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    data = content(1, 8 * CHUNK_SIZE)

    async def main(volume: Volume) -> None:
        await put_file(volume, b"a", data)
        await volume.sync()
        await clone(volume, b"a", b"b")
        files_of(volume).unlink(ROOT_INO, b"a")
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        volume.store.want_upkeep()
        assert await get_file(volume, b"b") == data
        assert volume.store.reader.count(Table.SHARED) == 1, "the file key, whose inode is gone"
        assert counts(world)["shares/"] > 6

    here.run(main)
    assert recovered(world, key) == {b"b": data}


def test_a_recovered_volume_goes_on_sharing(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    data = content(1, 8 * CHUNK_SIZE)

    async def main(volume: Volume) -> None:
        await put_file(volume, b"a", data)
        await clone(volume, b"a", b"b")
        await volume.sync()

    async def drop(volume: Volume) -> None:
        files_of(volume).unlink(ROOT_INO, b"a")
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        assert await get_file(volume, b"b") == data
        files_of(volume).unlink(ROOT_INO, b"b")
        await volume.sync()
        await emptied(volume, world)

    here.run(main)
    there = world.machine("there")
    there.recover(key)
    there.run(drop)


async def emptied(volume: Volume, world: World) -> None:
    """Of a tree without files nothing is left here or at the providers, once it was collected."""
    for _ in range(4):
        await volume.sync()
        await collected(volume)
    reader = volume.store.reader
    for table in (Table.SHARED, Table.KEYS, Table.CHUNKS, Table.SEGMENTS, Table.LOCATIONS):
        assert not reader.count(table), table
    assert not volume.store.dirty_bytes
    with trio.fail_after(10):
        while reader.count(Table.GARBAGE) or int(reader.data.stat(volume.store.env.data_db)["entries"]):
            await volume.store.task(lambda _writer, _generation: None)
            await trio.sleep(0.05)
    assert stored(world) < 400_000, "the tree's records"


class Model:
    """Files by name, and a machine that is changed with them."""

    def __init__(self, world: World, machine: Machine, seed: int) -> None:
        self.world = world
        self.machine = machine
        self.rng = random.Random(seed)
        self.tree: dict[bytes, bytes] = {}
        self.machines = 0

    def name(self) -> bytes:
        return b"f%d" % self.rng.randrange(6)

    def change(self, name: bytes, offset: int, data: bytes) -> None:
        old = self.tree.get(name, b"").ljust(offset, b"\0")
        self.tree[name] = old[:offset] + data + old[offset + len(data) :]

    async def step(self, volume: Volume) -> None:
        rng, vfs, name = self.rng, files_of(volume), self.name()
        match rng.choice(["put", "write", "write", "truncate", "remove", "clone", "clone", "clone", "sync", "collect"]):
            case "put" if name not in self.tree:
                self.tree[name] = rng.randbytes(rng.choice([10, 5_000, 200_000, 5 * CHUNK_SIZE]))
                await put_file(volume, name, self.tree[name])
            case "write" if name in self.tree:
                offset, data = rng.randrange(300_000), rng.randbytes(rng.choice([10, 9_000, CHUNK_SIZE + 1]))
                handle = vfs.open(vfs.lookup(ROOT_INO, name).ino, os.O_RDWR)
                for at in range(0, len(data), CHUNK_SIZE):
                    await vfs.write(handle.fh, offset + at, data[at : at + CHUNK_SIZE])
                vfs.release(handle.fh)
                self.change(name, offset, data)
            case "truncate" if name in self.tree:
                size = rng.randrange(300_000)
                vfs.setattr(vfs.lookup(ROOT_INO, name).ino, SetAttr(size=size))
                self.tree[name] = self.tree[name][:size].ljust(size, b"\0")
            case "remove" if name in self.tree:
                vfs.unlink(ROOT_INO, name)
                del self.tree[name]
            case "clone" if name in self.tree:
                other = self.name()
                if other in self.tree and other != name:
                    vfs.unlink(ROOT_INO, other)
                    del self.tree[other]
                if other not in self.tree:
                    await clone(volume, name, other)
                    self.tree[other] = self.tree[name]
            case "sync":
                await volume.sync()
            case "collect":
                await volume.collector.round()

    async def stretch(self, volume: Volume) -> None:
        volume.collector._grace = 0.0
        await self.check(volume)
        for _ in range(self.rng.randrange(8, 20)):
            await self.step(volume)
        await self.check(volume)

    async def check(self, volume: Volume) -> None:
        assert set(list_files(volume)) == self.tree.keys()
        for name, data in self.tree.items():
            assert await get_file(volume, name) == data

    async def crash(self, volume: Volume) -> None:
        """A copy of the local state as kill -9 would leave it after an fsync."""
        await self.stretch(volume)
        await volume.store.persist()
        env = volume.store.env
        self.machines += 1
        after = self.world.machine(f"crashed-{self.machines}")
        with env.meta.begin(write=True), env.data.begin(write=True):
            ignored = shutil.ignore_patterns("reserve", "lock.mdb")
            shutil.copytree(self.machine.state_dir, after.state_dir, ignore=ignored)
        self.machine = after

    async def publish(self, volume: Volume) -> None:
        await self.stretch(volume)
        await volume.sync()

    async def end(self, volume: Volume) -> None:
        await self.check(volume)
        for name in list(self.tree):
            files_of(volume).unlink(ROOT_INO, name)
        await emptied(volume, self.world)


@pytest.mark.parametrize("seed", range(8))
def test_no_order_of_events_loses_what_is_shared_or_keeps_what_is_not(
    world: World, here: Machine, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.state.copying.ROWS_STEP", 3)
    key = here.init().recovery_key
    model = Model(world, here, seed)
    for turn in range(4):
        match model.rng.choice(["go on", "crash", "recover"]):
            case "go on":
                model.machine.run(model.stretch)
            case "crash":
                model.machine.run(model.crash)
            case "recover":
                model.machine.run(model.publish)
                model.machine = world.machine(f"there-{turn}")
                model.machine.recover(key)
    model.machine.run(model.end)


def test_nothing_is_unmarked_while_a_clone_has_begun_since(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it marks anew may be named by nothing that the cut shows."""

    async def main(volume: Volume) -> None:
        await put_file(volume, b"one", content(1))
        await clone(volume, b"one", b"two")
        await volume.sync()
        files_of(volume).unlink(ROOT_INO, b"one")
        await volume.sync()
        begin_cut = cuts.begin_cut

        async def late(store: Store) -> cuts.PublishCut:
            cut = await begin_cut(store)
            stack.enter_context(store.keeping())
            return cut

        with ExitStack() as stack, monkeypatch.context() as patch:
            patch.setattr(cuts, "begin_cut", late)
            volume.collector._spared = -1
            await volume.collector._unmark()
            assert volume.collector._spared == -1, "it looks again"
        await volume.collector._unmark()
        assert volume.collector._spared >= 0

    here.init()
    here.run(main)
