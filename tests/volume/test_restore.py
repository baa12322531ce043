"""Restoring from a snapshot: what was there is there again, by naming what the snapshot kept."""

from __future__ import annotations

import os

import pytest

from icnfs.errors import SnapshotError
from icnfs.format.records import Table
from icnfs.limits import CHUNK_SIZE
from icnfs.state import garbage
from icnfs.state.loader import ROOT_INO
from icnfs.volume.restoring import find_in, tree_of
from icnfs.volume.volume import Volume
from tests.volume.test_clone import emptied, stored
from tests.volume.test_collect import collected, content, recovered
from tests.volume.test_past import leftovers
from tests.volume.test_snapshots import make
from tests.volume.world import Machine, World, files_of, get_file, put_file

LARGE = 40 * CHUNK_SIZE


@pytest.fixture(autouse=True)
def quickly_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.committer.IDLE_SECONDS", 0.01)


@pytest.fixture
def here(world: World) -> Machine:
    return world.machine()


async def restore(volume: Volume, snapshot: str, path: bytes, name: bytes) -> int:
    async with tree_of(volume, snapshot) as tree:
        source = find_in(tree, path)
        return await files_of(volume).copy_from(tree.reader, source, ROOT_INO, name, 0, lambda _: None)


async def lose(volume: Volume, name: bytes) -> None:
    """Remove a file and have all that is not kept collected, here and at the providers."""
    files_of(volume).unlink(ROOT_INO, name)
    await volume.sync()
    for _ in range(3):
        await collected(volume)


def test_a_removed_file_comes_back_without_being_stored_again(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    data = content(1, LARGE)

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", data)
        await make(volume, "one")
        await lose(volume, b"f")
        assert not volume.store.reader.count(Table.KEYS), "its file key went with it"
        before = stored(world)
        assert await restore(volume, "one", b"f", b"again") == 1
        assert leftovers(here) == []
        await volume.sync()
        assert stored(world) - before < LARGE / 4
        assert await get_file(volume, b"again") == data
        await volume.snapshots.delete("one")
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        assert await get_file(volume, b"again") == data, "the volume needs it now, whatever becomes of the snapshot"

    here.run(main)
    assert recovered(world, key) == {b"again": data}


def test_what_was_changed_since_comes_back_as_it_was_beside_what_it_is(world: World, here: Machine) -> None:
    here.init()
    old, new = content(1, LARGE), content(2, LARGE)

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", old)
        await put_file(volume, b"same", old)
        await make(volume, "one")
        await put_file(volume, b"f", new)
        await make(volume, "two")
        for _ in range(3):
            await collected(volume)
        for snapshot, data in (("one", old), ("two", new)):
            for path in (b"f", b"same"):
                name = path + b" of " + snapshot.encode()
                await restore(volume, snapshot, path, name)
                assert await get_file(volume, name) == (data if path == b"f" else old)
        with pytest.raises(SnapshotError, match="has no nothing"):
            await restore(volume, "one", b"nothing", b"new")
        with pytest.raises(SnapshotError, match="no snapshot three"):
            await restore(volume, "three", b"f", b"new")
        for entry in list(volume.store.entries(ROOT_INO, 0)):
            files_of(volume).unlink(ROOT_INO, entry.name)
        await volume.snapshots.delete("one")
        await volume.snapshots.delete("two")
        await emptied(volume, world)

    here.run(main)


def test_another_machine_restores_what_was_collected_here(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    data = content(1, LARGE)

    async def main(volume: Volume) -> None:
        vfs = files_of(volume)
        top = vfs.mkdir(ROOT_INO, b"top", 0o755, 0, 0).ino
        handle, node = vfs.create(top, b"inner", 0o644, os.O_RDWR, 0, 0)
        for at in range(0, LARGE, CHUNK_SIZE):
            await vfs.write(handle.fh, at, data[at : at + CHUNK_SIZE])
        vfs.release(handle.fh)
        vfs.link(node.ino, top, b"again")
        await make(volume, "one")
        vfs.unlink(top, b"inner")
        vfs.unlink(top, b"again")
        vfs.rmdir(ROOT_INO, b"top")
        await volume.sync()
        for _ in range(3):
            await collected(volume)

    async def back(volume: Volume) -> None:
        for _ in range(3):
            await collected(volume)
        assert await restore(volume, "one", b"/top/", b"top") == 2
        vfs = files_of(volume)
        top = vfs.lookup(ROOT_INO, b"top").ino
        node = vfs.lookup(top, b"inner")
        assert node.ino == vfs.lookup(top, b"again").ino and node.nlink == 2
        assert await volume.store.contents.read(node, 0, LARGE, 1e12) == data
        assert await restore(volume, "one", b"top/inner", b"alone") == 1
        assert await get_file(volume, b"alone") == data
        await volume.sync()

    here.run(main)
    there = world.machine("there")
    there.recover(key)
    there.run(back)
    third = world.machine("third")
    third.recover(key)

    async def look(volume: Volume) -> None:
        assert await get_file(volume, b"alone") == data

    third.run(look)


def test_what_is_restored_while_it_is_about_to_be_collected_stays(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot goes while its tree is open, and collection has counted before the file is back."""
    here.init()
    data = content(1, LARGE)

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", data)
        await make(volume, "one")
        files_of(volume).unlink(ROOT_INO, b"f")
        await volume.sync()
        release, task = garbage.release, volume.store.task
        restored = []

        async with tree_of(volume, "one") as tree:
            await volume.snapshots.delete("one")
            await volume.sync()

            async def restores_first(work: object, *more: object) -> object:
                if getattr(work, "func", None) is release and not restored:
                    restored.append(True)
                    await files_of(volume).copy_from(
                        tree.reader, find_in(tree, b"f"), ROOT_INO, b"f", 0, lambda _: None
                    )
                return await task(work, *more)  # type: ignore[arg-type]

            monkeypatch.setattr(volume.store, "task", restores_first)
            for _ in range(3):
                await collected(volume)
        assert restored
        assert await get_file(volume, b"f") == data
        volume.store.contents._opened.clear()
        for _, record in list(volume.store.reader.chunks(files_of(volume).lookup(ROOT_INO, b"f").ino)):
            location = volume.store.locate(record.version)
            assert location is not None and volume.store.segment(location.segment) is not None

    here.run(main)
