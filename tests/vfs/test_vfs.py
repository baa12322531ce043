from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from icnfs.errors import DegradedError, FsError
from icnfs.limits import CHUNK_SIZE, FILE_SIZE_MAX, XATTRS_MAX
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.vfs.attributes import SetAttr
from icnfs.vfs.callers import Known
from icnfs.vfs.rename import RENAME_EXCHANGE, RENAME_NOREPLACE
from icnfs.vfs.times import DAY, Atime
from icnfs.vfs.vfs import Vfs
from tests.state.local import Local, until

Body = Callable[[Vfs, Store], Awaitable[None]]
DIR = 0o755
REG = stat.S_IFREG | 0o644


@pytest.fixture
def mounted(tmp_path: Path) -> Callable[..., None]:
    local = Local(tmp_path / "state")

    def run(body: Body, **options: object) -> None:
        async def main(store: Store) -> None:
            vfs = Vfs(store, lambda: 1 << 40, **options)  # type: ignore[arg-type]
            vfs._clock.now = time.time_ns  # type: ignore[method-assign]  # which differs from call to call
            await body(vfs, store)

        local.run(main)

    return run


def refuses(code: int, call: Callable[..., object], *args: object) -> None:
    with pytest.raises(FsError) as caught:
        call(*args)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


def names(vfs: Vfs, ino: int = ROOT_INO) -> set[bytes]:
    fh = vfs.opendir(ino)
    found = {name for name, _, _ in vfs.readdir(fh, 0)}
    vfs.releasedir(fh)
    assert {b".", b".."} <= found
    return found - {b".", b".."}


async def fill(vfs: Vfs, name: bytes, data: bytes) -> int:
    handle, node = vfs.create(ROOT_INO, name, 0o644, os.O_RDWR, 0, 0)
    await vfs.write(handle.fh, 0, data)
    vfs.release(handle.fh)
    return node.ino


async def content(vfs: Vfs, ino: int) -> bytes:
    handle = vfs.open(ino, os.O_RDONLY)
    data = await vfs.read(handle.fh, 0, 1 << 30)
    vfs.release(handle.fh)
    return data


def test_directories_count_links_and_entries(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        a = vfs.mkdir(ROOT_INO, b"a", DIR, 1, 2).ino
        b = vfs.mkdir(a, b"b", DIR, 1, 2).ino
        vfs.mknod(a, b"f", REG, 0, 1, 2)
        assert (vfs.getattr(a).nlink, vfs.getattr(ROOT_INO).nlink) == (3, 3)
        refuses(errno.ENOTEMPTY, vfs.rmdir, ROOT_INO, b"a")
        refuses(errno.EISDIR, vfs.unlink, a, b"b")
        refuses(errno.ENOTDIR, vfs.rmdir, a, b"f")
        assert vfs.lookup(b, b"..").ino == a
        vfs.rmdir(a, b"b")
        vfs.unlink(a, b"f")
        assert vfs.getattr(a).nlink == 2
        vfs.rmdir(ROOT_INO, b"a")
        assert vfs.getattr(ROOT_INO).nlink == 2
        assert names(vfs) == set()

    mounted(body)


def test_errors_of_making(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        vfs.mknod(ROOT_INO, b"f", REG, 0, 0, 0)
        ino = vfs.lookup(ROOT_INO, b"f").ino
        refuses(errno.EEXIST, vfs.mkdir, ROOT_INO, b"f", DIR, 0, 0)
        refuses(errno.ENOTDIR, vfs.mkdir, ino, b"x", DIR, 0, 0)
        refuses(errno.ENAMETOOLONG, vfs.mkdir, ROOT_INO, b"n" * 256, DIR, 0, 0)
        refuses(errno.ENAMETOOLONG, vfs.lookup, ROOT_INO, b"n" * 256)
        refuses(errno.ENOENT, vfs.lookup, ROOT_INO, b"nothing")
        refuses(errno.ENAMETOOLONG, vfs.symlink, ROOT_INO, b"l", b"t" * 4096, 0, 0)
        vfs.mkdir(ROOT_INO, b"n" * 255, DIR, 0, 0)
        vfs.symlink(ROOT_INO, b"l", b"t" * 4095, 0, 0)
        assert vfs.readlink(vfs.lookup(ROOT_INO, b"l").ino) == b"t" * 4095
        refuses(errno.EINVAL, vfs.readlink, ino)

    mounted(body)


def test_a_set_group_id_directory_passes_its_group_on(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        d = vfs.mkdir(ROOT_INO, b"d", 0o2775, 5, 7).ino
        assert vfs.mknod(d, b"f", REG, 0, 1, 2).gid == 7
        sub = vfs.mkdir(d, b"s", DIR, 1, 2)
        assert sub.gid == 7
        assert sub.mode & stat.S_ISGID

    mounted(body)


def test_hard_links(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"one", b"data")
        before = vfs.getattr(ino).ctime
        assert vfs.link(ino, ROOT_INO, b"two").nlink == 2
        assert vfs.getattr(ino).ctime > before
        refuses(errno.EEXIST, vfs.link, ino, ROOT_INO, b"two")
        refuses(errno.EPERM, vfs.link, ROOT_INO, ROOT_INO, b"root")
        vfs.unlink(ROOT_INO, b"one")
        assert vfs.getattr(ino).nlink == 1
        assert await content(vfs, vfs.lookup(ROOT_INO, b"two").ino) == b"data"

    mounted(body)


def test_an_open_file_outlives_its_name_and_goes_with_its_last_user(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        handle, node = vfs.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        vfs.remember(node.ino)
        await vfs.write(handle.fh, 0, b"still here")
        vfs.unlink(ROOT_INO, b"f")
        assert vfs.getattr(node.ino).nlink == 0
        assert await vfs.read(handle.fh, 0, 100) == b"still here"
        refuses(errno.ENOENT, vfs.link, node.ino, ROOT_INO, b"again")
        vfs.release(handle.fh)
        assert vfs.getattr(node.ino).nlink == 0
        vfs.forget(node.ino, 1)
        refuses(errno.ESTALE, vfs.getattr, node.ino)
        assert store.files == 1
        assert store.bytes_used == 0

    mounted(body)


def test_a_removed_directory_takes_no_entries(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        d = vfs.mkdir(ROOT_INO, b"d", DIR, 0, 0).ino
        vfs.remember(d)
        vfs.rmdir(ROOT_INO, b"d")
        refuses(errno.ENOENT, vfs.mknod, d, b"f", REG, 0, 0, 0)
        assert names(vfs, d) == set()

    mounted(body)


# --- rename --------------------------------------------------------------------------------------------------------


def test_rename_over_a_file_replaces_it(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        old = await fill(vfs, b"old", b"old")
        new = await fill(vfs, b"new", b"new")
        vfs.rename(ROOT_INO, b"new", ROOT_INO, b"old")
        assert names(vfs) == {b"old"}
        assert vfs.lookup(ROOT_INO, b"old").ino == new
        refuses(errno.ESTALE, vfs.getattr, old)
        assert vfs.getattr(ROOT_INO).count == 1

    mounted(body)


def test_rename_between_links_of_one_file_does_nothing(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"a", b"x")
        vfs.link(ino, ROOT_INO, b"b")
        vfs.rename(ROOT_INO, b"a", ROOT_INO, b"b")
        assert names(vfs) == {b"a", b"b"}

    mounted(body)


def test_rename_refusals(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        await fill(vfs, b"f", b"x")
        d = vfs.mkdir(ROOT_INO, b"d", DIR, 0, 0).ino
        e = vfs.mkdir(d, b"e", DIR, 0, 0).ino
        full = vfs.mkdir(ROOT_INO, b"full", DIR, 0, 0).ino
        vfs.mknod(full, b"x", REG, 0, 0, 0)
        refuses(errno.ENOENT, vfs.rename, ROOT_INO, b"no", ROOT_INO, b"f")
        refuses(errno.EISDIR, vfs.rename, ROOT_INO, b"f", ROOT_INO, b"d")
        refuses(errno.ENOTDIR, vfs.rename, ROOT_INO, b"d", ROOT_INO, b"f")
        refuses(errno.ENOTEMPTY, vfs.rename, ROOT_INO, b"d", ROOT_INO, b"full")
        refuses(errno.EINVAL, vfs.rename, ROOT_INO, b"d", e, b"x")
        refuses(errno.EINVAL, vfs.rename, ROOT_INO, b"d", d, b"x")
        refuses(errno.EEXIST, vfs.rename, ROOT_INO, b"f", ROOT_INO, b"d", RENAME_NOREPLACE)
        refuses(errno.ENOENT, vfs.rename, ROOT_INO, b"f", ROOT_INO, b"no", RENAME_EXCHANGE)
        refuses(errno.EINVAL, vfs.rename, ROOT_INO, b"f", ROOT_INO, b"d", 8)
        refuses(errno.EINVAL, vfs.rename, ROOT_INO, b"d", e, b"x", RENAME_EXCHANGE | RENAME_NOREPLACE)

    mounted(body)


def test_moving_a_directory_moves_its_dotdot_and_its_link(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        a = vfs.mkdir(ROOT_INO, b"a", DIR, 0, 0).ino
        b = vfs.mkdir(ROOT_INO, b"b", DIR, 0, 0).ino
        sub = vfs.mkdir(a, b"sub", DIR, 0, 0).ino
        vfs.rename(a, b"sub", b, b"moved")
        assert vfs.lookup(sub, b"..").ino == b
        assert (vfs.getattr(a).nlink, vfs.getattr(b).nlink) == (2, 3)
        empty = vfs.mkdir(a, b"empty", DIR, 0, 0).ino
        vfs.rename(b, b"moved", a, b"empty")
        refuses(errno.ESTALE, vfs.getattr, empty)
        assert (vfs.getattr(a).nlink, vfs.getattr(b).nlink) == (3, 2)
        assert (vfs.getattr(a).count, vfs.getattr(b).count) == (1, 0)

    mounted(body)


def test_exchange_swaps_a_file_and_a_directory(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        a = vfs.mkdir(ROOT_INO, b"a", DIR, 0, 0).ino
        b = vfs.mkdir(ROOT_INO, b"b", DIR, 0, 0).ino
        sub = vfs.mkdir(a, b"sub", DIR, 0, 0).ino
        f = vfs.mknod(b, b"f", REG, 0, 0, 0).ino
        vfs.rename(a, b"sub", b, b"f", RENAME_EXCHANGE)
        assert vfs.lookup(a, b"sub").ino == f
        assert vfs.lookup(b, b"f").ino == sub
        assert vfs.lookup(sub, b"..").ino == b
        assert (vfs.getattr(a).nlink, vfs.getattr(b).nlink) == (2, 3)
        await store.flush()
        assert [e.kind for e in store.entries(a, 0)] == [8]

    mounted(body)


# --- attributes and times ------------------------------------------------------------------------------------------


def test_setattr_changes_what_it_is_told_and_the_change_time(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"f", b"12345")
        before = vfs.getattr(ino).ctime
        node = vfs.setattr(ino, SetAttr(mode=0o4755, uid=3, gid=4, atime=5, mtime=-6))
        assert (node.mode, node.uid, node.gid, node.atime, node.mtime) == (stat.S_IFREG | 0o4755, 3, 4, 5, -6)
        assert node.ctime > before
        assert vfs.setattr(ino, SetAttr(size=2)).size == 2
        assert await content(vfs, ino) == b"12"
        refuses(errno.EFBIG, vfs.setattr, ino, SetAttr(size=FILE_SIZE_MAX + 1))
        refuses(errno.EISDIR, vfs.setattr, ROOT_INO, SetAttr(size=0))
        vfs.setattr(ino, SetAttr(size=FILE_SIZE_MAX))
        assert vfs.getattr(ino).blocks <= CHUNK_SIZE >> 9

    mounted(body)


def test_a_file_handle_finds_no_file_without_a_name(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"f", b"x")
        vfs.remember(ino)
        assert vfs.lookup(ino, b".").ino == ino
        vfs.unlink(ROOT_INO, b"f")
        refuses(errno.ENOENT, vfs.lookup, ino, b".")

    mounted(body)


def test_truncating_clears_set_id_bits_of_others(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"f", b"x")
        vfs.setattr(ino, SetAttr(mode=0o6755))
        vfs.setattr(ino, SetAttr(size=0))
        assert stat.S_IMODE(vfs.getattr(ino).mode) == 0o6755
        vfs.setattr(ino, SetAttr(size=0), Known(1000, 1000))
        assert stat.S_IMODE(vfs.getattr(ino).mode) == 0o755
        assert vfs.getattr(ino).size == 0

    mounted(body)


def test_relatime_moves_the_access_time_when_it_must(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"f", b"x")
        vfs.setattr(ino, SetAttr(atime=1, mtime=2))
        assert not vfs.open(ino, os.O_RDONLY).keep_cache
        await content(vfs, ino)
        first = vfs.getattr(ino).atime
        assert first > 2
        assert vfs.open(ino, os.O_RDONLY).keep_cache
        await content(vfs, ino)
        assert vfs.getattr(ino).atime == first
        store.edit(ino).atime = first - 2 * DAY
        await content(vfs, ino)
        assert vfs.getattr(ino).atime > first

    mounted(body)


def test_noatime_never_moves_it(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"f", b"x")
        vfs.setattr(ino, SetAttr(atime=1, mtime=2))
        await content(vfs, ino)
        assert vfs.getattr(ino).atime == 1

    mounted(body, atime=Atime.NEVER)


def test_xattrs(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"f", b"x")
        refuses(errno.ENODATA, vfs.getxattr, ino, b"user.a")
        refuses(errno.EOPNOTSUPP, vfs.getxattr, ino, b"system.other")
        refuses(errno.EOPNOTSUPP, vfs.setxattr, ino, b"other.a", b"")
        refuses(errno.EINVAL, vfs.setxattr, ino, b"user.", b"")
        vfs.setxattr(ino, b"user.a", b"1")
        vfs.setxattr(ino, b"trusted.b", b"")
        assert sorted(vfs.listxattr(ino)) == [b"trusted.b", b"user.a"]
        await store.flush()
        assert vfs.getxattr(ino, b"trusted.b") == b""
        vfs.removexattr(ino, b"user.a")
        refuses(errno.ENODATA, vfs.removexattr, ino, b"user.a")
        refuses(errno.E2BIG, vfs.setxattr, ino, b"user.big", b"x" * 65537)
        for i in range(XATTRS_MAX // 65000 - 1):
            vfs.setxattr(ino, b"user.%d" % i, b"x" * 65000)
        vfs.setxattr(ino, b"user.last", b"x" * 60000)
        refuses(errno.ENOSPC, vfs.setxattr, ino, b"user.over", b"x" * 65000)

    mounted(body)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_write_past_the_largest_size_is_efbig(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        handle, node = vfs.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        with pytest.raises(FsError) as caught:
            await vfs.write(handle.fh, FILE_SIZE_MAX - 1, b"xx")
        assert caught.value.errno == errno.EFBIG
        assert await vfs.write(handle.fh, FILE_SIZE_MAX - 2, b"xx") == 2
        assert await vfs.read(handle.fh, FILE_SIZE_MAX - 3, 10) == b"\0xx"
        assert vfs.getattr(node.ino).blocks == CHUNK_SIZE >> 9

    mounted(body)


def test_fsync_waits_for_a_publish_where_it_is_to(mounted: Callable[..., None]) -> None:
    published: list[int] = []

    async def publish() -> None:
        if len(published) == 2:
            raise DegradedError("fewer than 6 owners")
        published.append(1)

    async def body(vfs: Vfs, store: Store) -> None:
        handle, _ = vfs.create(ROOT_INO, b"a", 0o644, os.O_RDWR, 0, 0)
        await vfs.fsync(handle.fh, False)
        await vfs.fsyncdir(vfs.opendir(ROOT_INO), False)
        assert len(published) == 2
        with pytest.raises(DegradedError):
            await vfs.fsync(handle.fh, False)

    mounted(body, publish=publish)


def test_fsync_and_synchronous_handles_commit(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        handle, node = vfs.create(ROOT_INO, b"f", 0o600, os.O_RDWR, 0, 0)
        await vfs.fsync(handle.fh, False)
        assert store.durable >= node.batch
        closed = store.batch.number
        await vfs.fsync(handle.fh, False)
        assert store.batch.number == closed
        synced = vfs.open(node.ino, os.O_WRONLY | os.O_SYNC)
        await vfs.write(synced.fh, 0, b"now")
        assert store.durable >= store.inode(node.ino).batch > node.batch

    mounted(body)


def test_a_read_only_mount_changes_nothing(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        refuses(errno.EROFS, vfs.mkdir, ROOT_INO, b"d", DIR, 0, 0)
        refuses(errno.EROFS, vfs.setattr, ROOT_INO, SetAttr(mode=0))
        refuses(errno.EROFS, vfs.setxattr, ROOT_INO, b"user.a", b"")
        assert names(vfs) == set()

    mounted(body, read_only=True)


def test_a_bad_handle_is_ebadf(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        refuses(errno.EBADF, vfs.release, 99)

    mounted(body)


# --- listing -------------------------------------------------------------------------------------------------------


def test_entries_that_stay_are_listed_exactly_once_while_others_come_and_go(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        for i in range(300):
            vfs.mknod(ROOT_INO, b"stay-%d" % i, REG, 0, 0, 0)
        await store.flush()
        for i in range(300):
            vfs.mknod(ROOT_INO, b"go-%d" % i, REG, 0, 0, 0)
        fh = vfs.opendir(ROOT_INO)
        seen: list[bytes] = []
        cookie = after = step = 0
        while True:
            taken = 0
            for name, _, next_cookie in vfs.readdir(fh, cookie):
                seen.append(name)
                after = next_cookie
                taken += 1
                if taken == 17:
                    break
            cookie = after
            if not taken:
                break
            vfs.unlink(ROOT_INO, b"go-%d" % step)
            vfs.mknod(ROOT_INO, b"come-%d" % step, REG, 0, 0, 0)
            step += 1
            if step % 5 == 0:
                await store.flush()
        assert sorted(n for n in seen if n.startswith(b"stay")) == sorted(b"stay-%d" % i for i in range(300))
        assert len(seen) == len(set(seen))

    mounted(body)


def test_counters_follow_the_tree(mounted: Callable[..., None]) -> None:
    async def body(vfs: Vfs, store: Store) -> None:
        ino = await fill(vfs, b"f", b"x" * 10000)
        vfs.mkdir(ROOT_INO, b"d", DIR, 0, 0)
        numbers = vfs.statfs()
        assert numbers.bsize == numbers.frsize
        assert numbers.files - numbers.ffree == 3
        assert (numbers.blocks - numbers.bfree) * numbers.frsize == 12288
        assert vfs.getattr(ino).blocks == 20
        vfs.unlink(ROOT_INO, b"f")
        vfs.rmdir(ROOT_INO, b"d")
        vfs.symlink(ROOT_INO, b"l", b"target", 0, 0)
        vfs.unlink(ROOT_INO, b"l")
        await until(store, lambda: store.bytes_used == 0)
        assert store.files == 1
        assert vfs.statfs().blocks == vfs.statfs().bfree

    mounted(body)
