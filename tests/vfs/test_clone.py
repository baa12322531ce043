"""A clone is what `cp -a` makes, as of one moment, whole or not there, and its contents are not copied."""

from __future__ import annotations

import errno
import os
import random
import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from icnfs.errors import FsError
from icnfs.format.records import Table
from icnfs.limits import CHUNK_SIZE
from icnfs.state.cut import PublishCut, begin_cut
from icnfs.state.loader import ROOT_INO
from icnfs.state.marks import Count, unmark
from icnfs.state.store import Store
from icnfs.vfs.acl import ACCESS, GROUP_OBJ, MASK, NO_ID, OTHER, USER_OBJ, Acl, Entry
from icnfs.vfs.attributes import SetAttr
from icnfs.vfs.vfs import Vfs
from tests.state.local import Local, deadline, until
from tests.state.tree import check_accounts, check_marks, recount, settle

LIST = Acl(Entry(tag, perm, NO_ID) for tag, perm in ((USER_OBJ, 7), (GROUP_OBJ, 0), (MASK, 5), (OTHER, 5)))


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path / "state")


def opened(store: Store) -> Vfs:
    return Vfs(store, lambda: 1 << 40)


async def fill(vfs: Vfs, parent: int, name: bytes, data: bytes, offset: int = 0) -> int:
    handle, node = vfs.create(parent, name, 0o644, os.O_RDWR, 0, 0)
    await write(vfs, node.ino, offset, data)
    vfs.release(handle.fh)
    return node.ino


async def write(vfs: Vfs, ino: int, offset: int, data: bytes) -> None:
    handle = vfs.open(ino, os.O_RDWR)
    for at in range(0, len(data), CHUNK_SIZE):
        await vfs.write(handle.fh, offset + at, data[at : at + CHUNK_SIZE])
    vfs.release(handle.fh)


async def content(vfs: Vfs, store: Store, parent: int, name: bytes) -> bytes:
    return await store.contents.read(vfs.lookup(parent, name), 0, 1 << 40, deadline())


def held(store: Store) -> int:
    """Sealed chunks on this machine."""
    return int(store.reader.data.stat(store.env.data_db)["entries"])


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


async def conclude(store: Store) -> None:
    await settle(store)
    await recount(store)
    await settle(store)
    check_accounts(store)
    check_marks(store)


def test_a_clone_has_the_contents_and_takes_no_room_for_them(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs, data = opened(store), noise(40 * CHUNK_SIZE)
        ino = await fill(vfs, ROOT_INO, b"a", data)
        await settle(store)
        before, dirty = held(store), store.dirty_bytes
        assert await vfs.clone(ino, ROOT_INO, b"b") == 1
        await settle(store)
        assert (held(store), store.dirty_bytes) == (before, dirty)
        assert await content(vfs, store, ROOT_INO, b"b") == data
        await write(vfs, vfs.lookup(ROOT_INO, b"b").ino, 3 * CHUNK_SIZE, b"clone")
        await write(vfs, ino, 9 * CHUNK_SIZE, b"original")
        await settle(store)
        changed = bytearray(data)
        changed[3 * CHUNK_SIZE : 3 * CHUNK_SIZE + 5] = b"clone"
        assert await content(vfs, store, ROOT_INO, b"b") == changed
        changed = bytearray(data)
        changed[9 * CHUNK_SIZE : 9 * CHUNK_SIZE + 8] = b"original"
        assert await content(vfs, store, ROOT_INO, b"a") == changed
        await conclude(store)

    local.run(body)


@pytest.mark.parametrize("first", [b"a", b"b"])
def test_whichever_goes_first_the_other_keeps_everything_and_in_the_end_nothing_is_left(
    local: Local, first: bytes
) -> None:
    data = noise(20 * CHUNK_SIZE)

    async def make(store: Store) -> None:
        vfs = opened(store)
        ino = await fill(vfs, ROOT_INO, b"a", data)
        await vfs.clone(ino, ROOT_INO, b"b")
        vfs.unlink(ROOT_INO, first)
        await conclude(store)
        assert not store.reader.count(Table.SHARED) or first == b"a", "of a clone that went, nothing is left"

    async def look(store: Store) -> None:
        vfs, (other,) = opened(store), {b"a", b"b"} - {first}
        assert await content(vfs, store, ROOT_INO, other) == data
        vfs.unlink(ROOT_INO, other)
        await conclude(store)
        assert not any(map(store.reader.count, (Table.SHARED, Table.KEYS, Table.CHUNKS, Table.GARBAGE)))
        assert not held(store)
        assert not store.dirty_bytes

    local.run(make)
    local.run(look)


def test_a_tree_comes_with_everything_that_cp_a_takes(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        top = vfs.mkdir(ROOT_INO, b"top", 0o2751, 5, 6).ino
        deep = vfs.mkdir(top, b"deep", 0o700, 7, 8).ino
        ino = await fill(vfs, deep, b"sparse", b"end", 10 * CHUNK_SIZE + 5)
        vfs.setattr(ino, SetAttr(uid=3, gid=4))
        vfs.setattr(ino, SetAttr(mode=0o6755))
        vfs.setxattr(ino, b"user.colour", b"blue")
        vfs.setxattr(ino, b"trusted.x", b"1")
        vfs.link(ino, top, b"other name")
        vfs.link(ino, ROOT_INO, b"outside")
        vfs.symlink(top, b"link", b"/no/where", 1, 2)
        vfs.mknod(top, b"device", stat.S_IFCHR | 0o600, 0x103, 0, 0)
        vfs.setattr(ino, SetAttr(atime=10**18, mtime=2 * 10**18))
        for directory in (deep, top):
            vfs.setattr(directory, SetAttr(atime=3 * 10**18, mtime=10**17 + directory))
        before = store.files
        assert await vfs.clone(top, ROOT_INO, b"copy") == 5
        assert store.files == before + 5
        new = vfs.lookup(ROOT_INO, b"copy")
        again = vfs.lookup(vfs.lookup(new.ino, b"deep").ino, b"sparse")
        pairs = [
            (vfs.getattr(top), new),
            (vfs.getattr(deep), vfs.lookup(new.ino, b"deep")),
            (vfs.getattr(ino), again),
            (vfs.lookup(top, b"link"), vfs.lookup(new.ino, b"link")),
            (vfs.lookup(top, b"device"), vfs.lookup(new.ino, b"device")),
        ]
        for old, now in pairs:
            for name in ("mode", "uid", "gid", "size", "atime", "mtime", "rdev", "target", "blocks", "count"):
                assert getattr(old, name) == getattr(now, name), name
        assert vfs.lookup(new.ino, b"other name").ino == again.ino
        assert (again.nlink, vfs.getattr(ino).nlink) == (2, 3)
        assert (new.nlink, new.parent) == (3, ROOT_INO)
        assert store.xattrs(again.ino) == {b"user.colour": b"blue", b"trusted.x": b"1"}
        assert await store.contents.read(again, 0, 1 << 30, deadline()) == bytes(10 * CHUNK_SIZE + 5) + b"end"
        await conclude(store)

    local.run(body)


def test_who_is_not_root_gets_what_cp_would_give_him(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        ino = await fill(vfs, ROOT_INO, b"a", b"text")
        vfs.setattr(ino, SetAttr(mode=0o6755))
        vfs.setxattr(ino, b"user.colour", b"blue")
        vfs.setxattr(ino, b"trusted.x", b"1")
        kept = {b"user.colour": b"blue", ACCESS: LIST.pack()}
        vfs.setxattr(ino, ACCESS, kept[ACCESS])
        await vfs.clone(ino, ROOT_INO, b"b", 1000)
        node = vfs.lookup(ROOT_INO, b"b")
        assert (node.uid, stat.S_IMODE(node.mode), store.xattrs(node.ino)) == (1000, 0o755, kept)
        vfs.setattr(node.ino, SetAttr(mode=0o4700))
        await vfs.clone(node.ino, ROOT_INO, b"c", 1000)
        assert stat.S_IMODE(vfs.lookup(ROOT_INO, b"c").mode) == 0o4700, "his own"
        vfs.mknod(ROOT_INO, b"device", stat.S_IFBLK | 0o666, 0x800, 0, 0)
        with pytest.raises(FsError):
            await vfs.clone(vfs.lookup(ROOT_INO, b"device").ino, ROOT_INO, b"d", 1000)

    local.run(body)


def test_what_cannot_be_is_refused_and_leaves_nothing(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        top = vfs.mkdir(ROOT_INO, b"top", 0o755, 0, 0).ino
        deep = vfs.mkdir(top, b"deep", 0o755, 0, 0).ino
        ino = await fill(vfs, top, b"f", noise(100_000))
        await settle(store)
        files, used = store.files, store.bytes_used
        for source, parent, name, code in (
            (ino, top, b"f", errno.EEXIST),
            (top, deep, b"new", errno.EINVAL),
            (top, top, b"new", errno.EINVAL),
            (99999, top, b"new", errno.ESTALE),
            (ino, ino, b"new", errno.ENOTDIR),
            (ino, top, b"n" * 256, errno.ENAMETOOLONG),
        ):
            with pytest.raises(FsError) as caught:
                await vfs.clone(source, parent, name)
            assert caught.value.errno == code
        assert (store.files, store.bytes_used) == (files, used)
        await conclude(store)

    local.run(body)


def test_a_name_that_is_taken_meanwhile_is_kept(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        ino = await fill(vfs, ROOT_INO, b"a", noise(100_000))

        def progress(_: int) -> None:
            vfs.mknod(ROOT_INO, b"b", 0o100600, 0, 0, 0)

        with pytest.raises(FsError) as caught:
            await vfs.clone(ino, ROOT_INO, b"b", 0, progress)
        assert caught.value.errno == errno.EEXIST
        assert not vfs.lookup(ROOT_INO, b"b").size
        await conclude(store)
        assert store.files == 3

    local.run(body)


def test_each_file_is_as_of_one_moment_while_it_is_written(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer counts up through a file, over and over: a clone must show no number above one that comes later."""
    monkeypatch.setattr("icnfs.state.copying.ROWS_STEP", 5)
    monkeypatch.setattr("icnfs.state.copying.INLINE_MAX", 1)
    count = 24

    async def body(store: Store) -> None:
        vfs = opened(store)
        ino = await fill(vfs, ROOT_INO, b"a", bytes(count * CHUNK_SIZE))
        stop = trio.Event()

        async def scribble() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                for index in range(count):
                    whole = number.to_bytes(8, "big") + noise(CHUNK_SIZE - 8, index)
                    await write(vfs, ino, index * CHUNK_SIZE, whole if index % 2 else whole[:100])
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scribble)
            for turn in range(4):
                await trio.sleep(0.05)
                await vfs.clone(ino, ROOT_INO, b"c%d" % turn)
            stop.set()
        for turn in range(4):
            data = await content(vfs, store, ROOT_INO, b"c%d" % turn)
            numbers = [int.from_bytes(data[i * CHUNK_SIZE : i * CHUNK_SIZE + 8], "big") for i in range(count)]
            assert numbers == sorted(numbers, reverse=True)
            assert numbers[0] - numbers[-1] <= 1
        await conclude(store)

    local.run(body)


def test_a_clone_that_is_given_up_leaves_nothing(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        top = vfs.mkdir(ROOT_INO, b"top", 0o755, 0, 0).ino
        for number in range(300):
            directory = vfs.mkdir(top, b"d%d" % number, 0o755, 0, 0).ino
            ino = await fill(vfs, directory, b"f", noise(10_000, number))
            vfs.link(ino, top, b"l%d" % number)
        await settle(store)
        files, used = store.files, store.bytes_used
        with trio.CancelScope() as scope:
            await vfs.clone(top, ROOT_INO, b"copy", 0, lambda done: done < 400 or scope.cancel())
        assert scope.cancelled_caught
        await conclude(store)
        assert (store.files, store.bytes_used) == (files, used)
        assert not store.reader.count(Table.SHARED)
        assert await vfs.clone(top, ROOT_INO, b"copy") == 601

    local.run(body)


def test_a_crash_on_the_way_leaves_what_the_next_mount_removes(local: Local) -> None:
    data = noise(30 * CHUNK_SIZE)

    class CrashError(Exception):
        pass

    async def crash(store: Store) -> None:
        vfs = opened(store)
        top = vfs.mkdir(ROOT_INO, b"top", 0o755, 0, 0).ino
        for number in range(20):
            await fill(vfs, top, b"f%d" % number, data)
        await settle(store)
        task = store.task
        left = 3

        async def fails(*args: object) -> object:
            nonlocal left
            left -= 1
            if not left:
                raise CrashError
            return await task(*args)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
            patch.setattr("icnfs.state.copying.ROWS_STEP", 100)
            patch.setattr(store, "task", fails)
            patch.setattr(store, "abandon", lambda ino: None)
            await vfs.clone(top, ROOT_INO, b"copy")
        await store.flush()
        assert store.reader.count(Table.SHARED)

    async def look(store: Store) -> None:
        vfs = opened(store)
        assert store.files > 22
        await until(store, lambda: not store.abandoned)
        assert store.files == 22
        assert {entry.name for entry in store.entries(ROOT_INO, 0)} == {b"top"}
        await conclude(store)
        assert not store.reader.count(Table.SHARED)
        assert await content(vfs, store, vfs.lookup(ROOT_INO, b"top").ino, b"f7") == data

    local.run(crash, upkeep=False)
    local.run(look)


def test_what_changes_while_marks_are_counted_is_left_to_the_next_count(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        ino = await fill(vfs, ROOT_INO, b"a", noise(4 * CHUNK_SIZE))
        await vfs.clone(ino, ROOT_INO, b"b")
        vfs.unlink(ROOT_INO, b"b")
        await settle(store)
        cut = await begin_cut(store)
        count = Count(cut)
        assert list(count.steps())
        cut.close()
        findings = list(count.findings())
        assert len(findings) == 5, "four versions and their key, each named once"
        vfs.unlink(ROOT_INO, b"a")
        await settle(store)
        await store.task(partial(unmark, findings, cut.generation))
        assert store.reader.count(Table.SHARED) == 5
        await conclude(store)
        assert not store.reader.count(Table.SHARED)
        assert not held(store)

    local.run(body)


def test_what_is_marked_again_after_a_count_stays_marked(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        ino = await fill(vfs, ROOT_INO, b"a", noise(4 * CHUNK_SIZE))
        await vfs.clone(ino, ROOT_INO, b"b")
        vfs.unlink(ROOT_INO, b"b")
        await settle(store)
        cut = await begin_cut(store)
        count = Count(cut)
        assert list(count.steps())
        cut.close()
        await vfs.clone(ino, ROOT_INO, b"c")
        await store.task(partial(unmark, list(count.findings()), cut.generation))
        assert store.reader.count(Table.SHARED) == 5
        await conclude(store)

    local.run(body)


def test_a_source_that_loses_its_last_name_meanwhile_is_gone_and_not_damaged(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: Store) -> None:
        vfs = opened(store)
        ino = await fill(vfs, ROOT_INO, b"a", noise(100_000))

        async def too_late(store: Store) -> PublishCut:
            vfs.unlink(ROOT_INO, b"a")
            await settle(store)
            return await begin_cut(store)

        monkeypatch.setattr("icnfs.vfs.clone.begin_cut", too_late)
        with pytest.raises(FsError) as caught:
            await vfs.clone(ino, ROOT_INO, b"b")
        assert caught.value.errno == errno.ESTALE

    local.run(body)
