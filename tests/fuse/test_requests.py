"""Requests through a real mount reach the file system as the contract says, and its answers reach the caller."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.mounting import Mount, mounted

pytestmark = pytest.mark.mount


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path / "mnt") as mount:
        yield mount


def test_every_kind_of_file_is_made_and_told(mount: Mount) -> None:
    here = mount.path
    (here / "file").write_bytes(b"data")
    (here / "dir").mkdir(mode=0o750)
    os.symlink(b"target \xff", here / "link")
    os.mkfifo(here / "fifo", 0o600)
    os.mknod(here / "socket", stat.S_IFSOCK | 0o600)
    if os.geteuid() == 0:
        os.mknod(here / "device", stat.S_IFCHR | 0o600, os.makedev(5, 7))
        assert (here / "device").lstat().st_rdev == os.makedev(5, 7)
    assert (here / "file").read_bytes() == b"data"
    assert stat.S_IMODE((here / "dir").stat().st_mode) == 0o750
    assert os.readlink(os.fsencode(here / "link")) == b"target \xff"
    assert stat.S_ISFIFO((here / "fifo").lstat().st_mode)
    assert stat.S_ISSOCK((here / "socket").lstat().st_mode)


def test_attributes_are_those_of_the_inode(mount: Mount) -> None:
    path = mount.path / "file"
    path.write_bytes(bytes(200_000))
    os.utime(path, ns=(1_234_567_890_123_456_789, -1))
    os.chmod(path, 0o4711)
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_234_567_890_123_456_789, -1)
    assert stat.S_IMODE(found.st_mode) == 0o4711
    assert (found.st_size, found.st_blocks, found.st_blksize) == (200_000, 391, 131_072)


def test_now_arrives_as_a_time(mount: Mount) -> None:
    path = mount.path / "file"
    path.touch()
    os.utime(path, ns=(1, 1))
    os.utime(path)
    assert path.stat().st_mtime_ns > 10**18


def test_truncate_and_open_with_truncation(mount: Mount) -> None:
    path = mount.path / "file"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    with open(path, "r+b") as file:
        file.truncate(2)
    assert path.read_bytes() == b"01"
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0


def test_append_lands_at_the_end(mount: Mount) -> None:
    path = mount.path / "file"
    path.write_bytes(b"one ")
    fds = [os.open(path, os.O_WRONLY | os.O_APPEND) for _ in range(2)]
    os.write(fds[0], b"two ")
    os.write(fds[1], b"three")
    for fd in fds:
        os.close(fd)
    assert path.read_bytes() == b"one two three"


@pytest.mark.parametrize("make", ["create", "mkdir", "mknod", "symlink", "link", "rename", "exchange"])
def test_a_remembered_absence_ends_when_the_name_is_made(mount: Mount, make: str) -> None:
    here = mount.path
    (here / "other").write_bytes(b"x")
    name = here / "name"
    for _ in range(3):
        assert not name.exists()
    assert mount.fs.calls.count("lookup") <= 3, "the kernel asks once for each name"
    match make:
        case "create":
            name.write_bytes(b"")
        case "mkdir":
            name.mkdir()
        case "mknod":
            os.mkfifo(name)
        case "symlink":
            name.symlink_to("other")
        case "link":
            os.link(here / "other", name)
        case "rename":
            os.rename(here / "other", name)
            assert not (here / "other").exists()
        case "exchange":
            name.write_bytes(b"new")
            assert renameat2(here / "other", name, 2) == 0
            assert name.read_bytes() == b"x"
    assert name.lstat().st_ino
    assert "name" in os.listdir(here)
    os.rename(name, here / "gone")
    assert not name.exists()


def renameat2(old: Path, new: Path, flags: int) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return 0 if done == 0 else ctypes.get_errno()


def test_rename_refuses_to_replace_when_asked(mount: Mount) -> None:
    (mount.path / "a").write_bytes(b"a")
    (mount.path / "b").write_bytes(b"b")
    assert renameat2(mount.path / "a", mount.path / "b", 1) == errno.EEXIST
    assert renameat2(mount.path / "a", mount.path / "c", 1) == 0


def test_trusted_caches_save_requests(mount: Mount) -> None:
    path = mount.path / "file"
    path.write_bytes(b"data")
    assert path.read_bytes() == b"data"
    path.stat()
    calls = len(mount.fs.calls)
    for _ in range(5):
        path.stat()
        assert not (mount.path / "absent").exists()
    assert Counter(mount.fs.calls[calls:]) == {"lookup": 1}


def test_a_listing_gives_each_entry_once_and_counts_references(mount: Mount) -> None:
    names = [f"entry-{number:04}" for number in range(3000)]
    for name in names:
        (mount.path / name).touch()
    assert sorted(os.listdir(mount.path)) == names
    with os.scandir(mount.path) as entries:
        assert sum(entry.stat().st_nlink for entry in entries) == len(names)


def test_references_come_back_to_zero(tmp_path: Path) -> None:
    """Every reference that a reply gave is forgotten, so none was counted that the kernel does not hold."""
    with mounted(tmp_path / "mnt") as mount:
        (mount.path / "dir").mkdir()
        (mount.path / "dir/file").write_bytes(b"x")
        os.link(mount.path / "dir/file", mount.path / "dir/again")
        os.symlink("x", mount.path / "link")
        os.listdir(mount.path)
        os.listdir(mount.path / "dir")
        for path in ("dir/file", "dir/again", "dir", "link"):
            target = mount.path / path
            target.rmdir() if target.is_dir() else target.unlink()
        drop = Path("/proc/sys/vm/drop_caches")
        if os.access(drop, os.W_OK):
            drop.write_text("2")
        inos = [ino for ino in mount.fs.references if ino != 1]
        for _ in range(1000):
            if not any(mount.fs.references[ino] for ino in inos):
                break
            os.statvfs(mount.path)
        assert {ino: mount.fs.references[ino] for ino in inos} == dict.fromkeys(inos, 0)


def test_extended_attributes_and_their_flags(mount: Mount) -> None:
    path = mount.path / "file"
    path.touch()
    with pytest.raises(OSError) as caught:
        os.getxattr(path, "user.none")
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.key", b"v", os.XATTR_REPLACE)
    assert caught.value.errno == errno.ENODATA
    os.setxattr(path, "user.key", b"v1", os.XATTR_CREATE)
    with pytest.raises(OSError) as caught:
        os.setxattr(path, "user.key", b"v2", os.XATTR_CREATE)
    assert caught.value.errno == errno.EEXIST
    os.setxattr(path, "user.key", b"v2", os.XATTR_REPLACE)
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.key") == b"v2"
    assert os.getxattr(path, "user.empty") == b""
    assert sorted(os.listxattr(path)) == ["user.empty", "user.key"]
    os.removexattr(path, "user.key")
    assert os.listxattr(path) == ["user.empty"]


def test_the_kernel_judges_by_lists_and_asks_for_each_once(mount: Mount) -> None:
    path = mount.path / "file"
    path.touch(0o600)
    acl = bytes.fromhex("02000000 01000600ffffffff 0200040092100000 04000000ffffffff 10000400ffffffff 20000000ffffffff")
    os.setxattr(path, "system.posix_acl_access", acl)
    asked = mount.fs.calls.count("getxattr")
    for _ in range(5):
        assert os.getxattr(path, "system.posix_acl_access") == acl
    assert mount.fs.calls.count("getxattr") == asked + 1


def test_modes_come_before_the_umask_and_it_beside_them(mount: Mount) -> None:
    old = os.umask(0o027)
    try:
        os.mkdir(mount.path / "folder", 0o777)
        os.close(os.open(mount.path / "file", os.O_CREAT, 0o666))
        os.mkfifo(mount.path / "fifo", 0o666)
    finally:
        os.umask(old)
    assert mount.fs.asked == [(0o777, 0o027), (0o666, 0o027), (0o666, 0o027)]


def test_fsync_is_asked_each_time_and_flush_only_once(mount: Mount) -> None:
    for number in range(3):
        fd = os.open(mount.path / f"file{number}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)
    fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
    counts = Counter(mount.fs.calls)
    assert (counts["fsync"], counts["fsyncdir"]) == (6, 1)


def test_statfs_counts_in_one_unit(mount: Mount) -> None:
    found = os.statvfs(mount.path)
    assert (found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail) == (
        4096,
        4096,
        1000,
        900,
        800,
    )
    assert (found.f_files, found.f_ffree, found.f_namemax) == (70, 60, 255)


def test_names_and_offsets_at_their_bounds(mount: Mount) -> None:
    longest = bytes(range(1, 256)).replace(b"/", b"x")[:255].ljust(255, b"y")
    path = os.path.join(os.fsencode(mount.path), longest)
    with open(path, "wb") as file:
        file.write(b"x")
    assert os.listdir(os.fsencode(mount.path)) == [longest]
    with pytest.raises(OSError) as caught:
        os.stat(path + b"z")
    assert caught.value.errno == errno.ENAMETOOLONG


def test_writers_wait_for_room(mount: Mount) -> None:
    mount.fs.congested = True
    (mount.path / "dir").mkdir()
    (mount.path / "dir").rmdir()
    assert mount.fs.calls.count("wait_room") == 2
