"""What differs between two trees is what a comparison of all that they show says."""

from __future__ import annotations

import os
import random
from contextlib import suppress
from dataclasses import dataclass

import pytest
import trio

from icnfs.errors import FsError
from icnfs.vfs.attributes import SetAttr
from icnfs.volume.difference import ATTRIBUTES, CONTENTS, TIMES, Difference, Differences
from icnfs.volume.past import open_trees
from icnfs.volume.volume import Volume
from tests.volume.test_past import leftovers
from tests.volume.test_snapshots import make
from tests.volume.world import BOUND, Machine, World, files_of, put_file


@dataclass(frozen=True)
class Shown:
    """What a tree shows of one path."""

    ino: int
    mode: int
    mtime: int
    contents: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


async def shown(volume: Volume) -> dict[bytes, Shown]:
    vfs = files_of(volume)
    found: dict[bytes, Shown] = {}
    waiting = [(1, b"")]
    while waiting:
        ino, path = waiting.pop()
        for entry in list(volume.store.entries(ino, 0)):
            here = path + b"/" + entry.name
            node = volume.store.inode(entry.ino)
            data = b""
            if node.is_dir:
                waiting.append((entry.ino, here))
            else:
                handle = vfs.open(entry.ino, os.O_RDONLY)
                data = await vfs.read(handle.fh, 0, 1 << 20)
                vfs.release(handle.fh)
            names = tuple((name, vfs.getxattr(entry.ino, name)) for name in vfs.listxattr(entry.ino))
            found[here] = Shown(entry.ino, node.mode, 0 if node.is_dir else node.mtime, data, names)
    return found


def expected(before: dict[bytes, Shown], after: dict[bytes, Shown]) -> set[Difference]:
    """For trees without hard links."""
    was = {each.ino: path for path, each in before.items()}
    found = set()
    for path, now in after.items():
        old_path = was.get(now.ino)
        if old_path is None:
            found.add(Difference("added", path))
            continue
        old = before[old_path]
        what = []
        if old.contents != now.contents:
            what.append(CONTENTS)
        if (old.mode, old.xattrs) != (now.mode, now.xattrs):
            what.append(ATTRIBUTES)
        if old.mtime != now.mtime and CONTENTS not in what:
            what.append(TIMES)
        is_moved = os.path.basename(old_path) != os.path.basename(path) or (
            was_parent(before, old_path) != was_parent(after, path)
        )
        if is_moved:
            found.add(Difference("renamed", path, old_path, tuple(what)))
        elif what:
            found.add(Difference("changed", path, what=tuple(what)))
    inodes = {each.ino for each in after.values()}
    return found | {Difference("removed", path) for path, old in before.items() if old.ino not in inodes}


def was_parent(tree: dict[bytes, Shown], path: bytes) -> int:
    parent = os.path.dirname(path)
    return 1 if parent == b"/" else tree[parent].ino


async def compared(machine: Machine, before: str, after: str) -> list[Difference]:
    with trio.fail_after(BOUND):
        async with open_trees(
            machine.config(), [before, after], machine.state_dir, machine.secrets, start=machine.world.start
        ) as (old, new):
            return [each for each in Differences(old, new) if each.path != b"/"]


async def disturb(volume: Volume, rng: random.Random, tree: dict[bytes, Shown]) -> None:
    """One change somewhere."""
    vfs = files_of(volume)
    directories = [(1, b""), *((each.ino, path) for path, each in tree.items() if each.mode & 0o040000)]
    parent, base = rng.choice(directories)
    name = rng.choice([b"a", b"b", b"c", b"d"])
    place = tree.get(base + b"/" + name)
    match rng.choice(["file", "file", "dir", "remove", "rename", "mode", "time", "xattr", "write", "cut"]):
        case "file" if place is None:
            handle, _ = vfs.create(parent, name, 0o100644, os.O_RDWR, 0, 0)
            await vfs.write(handle.fh, 0, rng.randbytes(rng.choice([0, 10, 300_000])))
            vfs.release(handle.fh)
        case "dir" if place is None:
            vfs.mkdir(parent, name, 0o755, 0, 0)
        case "remove" if place is not None:
            if not place.mode & 0o040000:
                vfs.unlink(parent, name)
            elif not volume.store.inode(place.ino).count:
                vfs.rmdir(parent, name)
        case "rename" if place is not None:
            target, _ = rng.choice(directories)
            with suppress(FsError):  # what POSIX refuses is no change
                vfs.rename(parent, name, target, rng.choice([b"a", b"b", b"c", b"d"]))
        case "mode" if place is not None:
            vfs.setattr(place.ino, SetAttr(mode=rng.choice([0o600, 0o755])))
        case "time" if place is not None:
            vfs.setattr(place.ino, SetAttr(mtime=rng.randrange(10**9)))
        case "xattr" if place is not None:
            vfs.setxattr(place.ino, b"user.x", rng.randbytes(3))
        case "write" if place is not None and not place.mode & 0o040000:
            handle = vfs.open(place.ino, os.O_RDWR)
            await vfs.write(handle.fh, rng.randrange(200_000), rng.randbytes(10))
            vfs.release(handle.fh)
        case "cut" if place is not None and not place.mode & 0o040000:
            vfs.setattr(place.ino, SetAttr(size=rng.choice([0, 5, 200_000])))


@pytest.mark.parametrize("seed", range(10))
def test_random_changes_are_told_as_they_are(world: World, seed: int) -> None:
    here = world.machine()
    here.init()
    rng = random.Random(seed)

    async def main(volume: Volume) -> None:
        for _ in range(25):
            await disturb(volume, rng, await shown(volume))
        before = await shown(volume)
        await make(volume, "before")
        for _ in range(rng.choice([0, 1, 5, 25])):
            await disturb(volume, rng, await shown(volume))
        after = await shown(volume)
        await make(volume, "after")
        await disturb(volume, rng, after)
        now = await shown(volume)
        await volume.sync()
        found = await compared(here, "before", "after")
        assert set(found) == expected(before, after) and len(set(found)) == len(found)
        assert set(await compared(here, "after", "before")) == expected(after, before)
        assert set(await compared(here, "before", "")) == expected(before, now)
        assert await compared(here, "after", "after") == []
        assert leftovers(here) == []

    here.run(main)


def test_each_name_of_a_file_counts(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        ino = await put_file(volume, b"one", b"x")
        vfs = files_of(volume)
        vfs.link(ino, 1, b"two")
        await make(volume, "a")
        vfs.link(ino, 1, b"three")
        vfs.unlink(1, b"one")
        vfs.link(ino, 1, b"four")
        await put_file(volume, b"two", b"y")
        await make(volume, "b")
        found = await compared(here, "a", "b")
        kinds = sorted(each.kind for each in found)
        assert kinds == ["added", "changed", "renamed"]
        assert {each.path for each in found} == {b"/two", b"/three", b"/four"}
        (renamed,) = (each for each in found if each.kind == "renamed")
        assert renamed.before == b"/one" and renamed.what == (CONTENTS,)

    here.run(main)
