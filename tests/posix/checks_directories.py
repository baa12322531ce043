"""Directories: link counts, listings, positions in listings, and what happens to them meanwhile.

Each check takes a fresh directory and returns what it saw.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections import Counter
from collections.abc import Callable
from functools import partial

from tests.posix.observe import done, facts, kind, libc, make, names, nlink

MANY = 700


class Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_ulong),
        ("off", ctypes.c_long),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


libc.opendir.restype = libc.fdopendir.restype = ctypes.c_void_p
libc.opendir.argtypes = (ctypes.c_char_p,)
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.readdir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = libc.rewinddir.argtypes = (ctypes.c_void_p,)
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Listing:
    """A libc directory stream, for the calls that Python does not have."""

    def __init__(self, path: str) -> None:
        self._stream = libc.opendir(os.fsencode(path))
        assert self._stream

    def next(self) -> bytes | None:
        entry = libc.readdir(self._stream)
        return bytes(entry.contents.name) if entry else None

    def rest(self) -> list[bytes]:
        found = []
        while (name := self.next()) is not None:
            found.append(name)
        return found

    def tell(self) -> int:
        return int(libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        libc.rewinddir(self._stream)

    def close(self) -> None:
        libc.closedir(self._stream)


def check_a_directory_has_a_size(d: str) -> object:
    os.mkdir(f"{d}/sub")
    fd = os.open(f"{d}/sub", os.O_RDONLY)
    seen = os.stat(f"{d}/sub").st_size > 0, os.fstat(fd).st_blocks > 0, os.lseek(fd, 0, os.SEEK_END) > 0
    os.close(fd)
    return seen


def check_link_counts(d: str) -> object:
    seen = [nlink(d)]
    for name in "abc":
        os.mkdir(f"{d}/{name}")
        seen += [nlink(d), nlink(f"{d}/{name}")]
    make(f"{d}/f")
    os.rename(f"{d}/a", f"{d}/b/a")
    seen += [nlink(d), nlink(f"{d}/b")]
    os.rmdir(f"{d}/c")
    os.rename(f"{d}/b/a", f"{d}/a")
    os.mkdir(f"{d}/b/x")
    os.rename(f"{d}/b/x", f"{d}/a")
    return [*seen, nlink(d), nlink(f"{d}/b"), nlink(f"{d}/a")]


def check_rmdir(d: str) -> object:
    os.makedirs(f"{d}/full/sub")
    make(f"{d}/file")
    seen = [done(os.rmdir, f"{d}/{n}") for n in ("full", "none", "file", "full/sub", "full")]
    return seen, names(d)


def check_rmdir_of_an_open_directory(d: str) -> object:
    os.mkdir(f"{d}/sub")
    fd = os.open(f"{d}/sub", os.O_RDONLY)
    os.rmdir(f"{d}/sub")
    seen = [
        os.fstat(fd).st_nlink,
        os.listdir(fd),
        done(os.open, "f", os.O_CREAT | os.O_WRONLY, dir_fd=fd),
        done(os.mkdir, "g", dir_fd=fd),
        done(os.fsync, fd),
    ]
    os.close(fd)
    return seen


def check_working_in_a_removed_directory(d: str) -> object:
    here = os.getcwd()
    os.mkdir(f"{d}/sub")
    os.chdir(f"{d}/sub")
    try:
        os.rmdir(f"{d}/sub")
        return done(os.getcwd), done(make, "f"), done(os.mkdir, "g"), done(os.listdir, "."), done(os.stat, "..")
    finally:
        os.chdir(here)


def check_dot_and_dotdot(d: str) -> object:
    os.makedirs(f"{d}/a/b")
    listing = Listing(f"{d}/a")
    found = sorted(listing.rest())
    listing.close()
    same = os.stat(f"{d}/a/b/..").st_ino == os.stat(f"{d}/a").st_ino == os.stat(f"{d}/a/.").st_ino
    return found, same


def check_entry_types(d: str) -> object:
    make(f"{d}/f")
    os.mkdir(f"{d}/sub")
    os.symlink("x", f"{d}/l")
    os.mkfifo(f"{d}/p")
    os.mknod(f"{d}/s", stat.S_IFSOCK)
    with os.scandir(d) as entries:
        return sorted(
            (e.name, e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries
        )


def check_entry_inodes_agree_with_stat(d: str) -> object:
    for i in range(20):
        make(f"{d}/{i}")
    with os.scandir(d) as entries:
        return all(e.inode() == os.lstat(e.path).st_ino for e in entries)


def check_large_listing_is_exact(d: str) -> object:
    for i in range(MANY):
        make(f"{d}/{i:04}-{'x' * (i % 200)}")
    found = os.listdir(d)
    return len(found), len(set(found)), sorted(found)[0], sorted(found)[-1]


def check_listing_while_deleting(d: str) -> object:
    """rm -r's pattern: what stays is returned once, what goes at most once."""
    for i in range(MANY):
        make(f"{d}/{i}")
    counts: Counter[bytes] = Counter()
    listing = Listing(d)
    while (name := listing.next()) is not None:
        counts[name] += 1
        if name.isdigit() and int(name) % 3:
            os.unlink(f"{d}/{name.decode()}")
    listing.close()
    stayed = all(counts[str(i).encode()] == 1 for i in range(0, MANY, 3))
    return stayed, max(counts.values()), len(os.listdir(d))


def check_listing_while_creating(d: str) -> object:
    for i in range(MANY):
        make(f"{d}/{i}")
    counts: Counter[bytes] = Counter()
    listing = Listing(d)
    made = 0
    while (name := listing.next()) is not None:
        counts[name] += 1
        if made < 200:
            make(f"{d}/new{made}")
            made += 1
    listing.close()
    return all(counts[str(i).encode()] == 1 for i in range(MANY)), max(counts.values()), len(os.listdir(d))


def check_listing_while_renaming(d: str) -> object:
    for i in range(MANY):
        make(f"{d}/{i}")
    make(f"{d}/mover")
    counts: Counter[bytes] = Counter()
    listing = Listing(d)
    turn = 0
    while (name := listing.next()) is not None:
        counts[name] += 1
        old = "mover" if turn == 0 else f"mover{turn}"
        turn += 1
        os.rename(f"{d}/{old}", f"{d}/mover{turn}")
    listing.close()
    return all(counts[str(i).encode()] == 1 for i in range(MANY)), sorted(os.listdir(d))[-1].startswith("mover")


def check_positions_can_be_returned_to(d: str) -> object:
    for i in range(300):
        make(f"{d}/{i}")
    listing = Listing(d)
    order, positions = [], []
    while True:
        positions.append(listing.tell())
        if (name := listing.next()) is None:
            break
        order.append(name)
    good = []
    for at in (0, 1, 2, 57, 150, 299, 301):
        listing.seek(positions[at])
        good.append(listing.next() == order[at])
    listing.seek(positions[-1])
    end = listing.next()
    listing.rewind()
    again = listing.rest() == order
    listing.close()
    return good, end, again, len(order), len(set(positions)) == len(positions)


def check_positions_survive_deletions(d: str) -> object:
    for i in range(300):
        make(f"{d}/{i}")
    listing = Listing(d)
    for _ in range(100):
        listing.next()
    position = listing.tell()
    expected = listing.next()
    for name in os.listdir(d):
        if name.encode() != expected:
            os.unlink(f"{d}/{name}")
    listing.seek(position)
    found = [name for name in listing.rest() if name not in (b".", b"..")]
    listing.close()
    return found == [expected]


def check_rewind_sees_new_entries(d: str) -> object:
    make(f"{d}/a")
    listing = Listing(d)
    listing.rest()
    make(f"{d}/b")
    listing.rewind()
    found = sorted(listing.rest())
    listing.close()
    return found


def check_a_recreated_directory_is_empty(d: str) -> object:
    os.mkdir(f"{d}/sub")
    make(f"{d}/sub/f")
    os.unlink(f"{d}/sub/f")
    os.rmdir(f"{d}/sub")
    os.mkdir(f"{d}/sub")
    return names(f"{d}/sub"), facts(f"{d}/sub")


def check_negative_entries_do_not_linger(d: str) -> object:
    makers: list[Callable[[str], object]] = [os.mknod, os.mkdir, partial(os.symlink, "x")]
    seen: list[object] = []
    for i, maker in enumerate(makers):
        path = f"{d}/{i}"
        seen.append((done(os.lstat, path), done(maker, path), kind(os.lstat(path).st_mode)))
    os.rename(f"{d}/0", f"{d}/moved")
    return seen, done(os.lstat, f"{d}/0"), done(os.lstat, f"{d}/moved")


def check_listing_by_descriptor(d: str) -> object:
    os.mkdir(f"{d}/sub")
    make(f"{d}/sub/f", b"via")
    fd = os.open(f"{d}/sub", os.O_RDONLY | os.O_DIRECTORY)
    os.rename(f"{d}/sub", f"{d}/moved")
    inner = os.open("f", os.O_RDONLY, dir_fd=fd)
    seen = os.listdir(fd), os.read(inner, 10)
    os.close(inner)
    os.close(fd)
    return seen
