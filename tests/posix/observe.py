"""What a check may look at, in values that compare equal on two file systems when they behave alike.

Times are compared as "changed or not", never by value; sizes of directories, block counts and inode numbers are left
out, since POSIX leaves them to the file system.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import stat
import time
from collections.abc import Callable, Iterable
from typing import Final

import pytest

libc: Final = ctypes.CDLL(None, use_errno=True)

AT_FDCWD: Final = -100
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

NOBODY: Final = 65534
OTHER: Final = 4242
"""Two user ids (and group ids) that own nothing else in the tests."""

_CLOCK_GRAIN_NS: Final = 12_000_000
"""Kernel file times come from a clock that ticks every 4 ms at 250 Hz."""


class Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def outcome(call: Callable[..., object], *args: object, **keywords: object) -> object:
    """What `call` returned, or the name of the errno it raised."""
    try:
        return call(*args, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def done(call: Callable[..., object], *args: object, **keywords: object) -> str:
    """The word ok, or the name of the errno: for calls whose value is of no interest."""
    result = outcome(call, *args, **keywords)
    return result if isinstance(result, str) and result in errno.errorcode.values() else "ok"


def c_call(function: str, *args: object) -> str:
    """A libc call that answers -1 and sets errno: "ok" or the name of the errno."""
    ctypes.set_errno(0)
    if getattr(libc, function)(*args) == -1:
        return errno.errorcode[ctypes.get_errno()]
    return "ok"


def renameat2(old: str, new: str, flags: int) -> str:
    return c_call("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> str:
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    return c_call("utimensat", AT_FDCWD, os.fsencode(path), times, flags)


class FileHandle(ctypes.Structure):
    """struct file_handle of name_to_handle_at(2)."""

    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128))


def handle_of(path: str) -> FileHandle:
    """The handle of a file, by which `open_handle` finds it without a name."""
    handle = FileHandle(128)
    answer = c_call(
        "name_to_handle_at", AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(ctypes.c_int()), 0
    )
    if answer != "ok":
        raise OSError(getattr(errno, answer), "name_to_handle_at", path)
    return handle


def open_handle(mount: str, handle: FileHandle) -> int | str:
    """A descriptor to read from, or the name of the errno."""
    fd = os.open(mount, os.O_RDONLY)
    try:
        ctypes.set_errno(0)
        found: int = libc.open_by_handle_at(fd, ctypes.byref(handle), os.O_RDONLY)
        return found if found >= 0 else errno.errorcode[ctypes.get_errno()]
    finally:
        os.close(fd)


def kind(mode: int) -> str:
    return stat.filemode(mode)[0]


def facts(path: str) -> dict[str, object]:
    """lstat, less what may differ between file systems."""
    st = os.lstat(path)
    found: dict[str, object] = {
        "kind": kind(st.st_mode),
        "mode": oct(stat.S_IMODE(st.st_mode)),
        "nlink": st.st_nlink,
        "uid": st.st_uid,
        "gid": st.st_gid,
    }
    if not stat.S_ISDIR(st.st_mode):
        found["size"] = st.st_size
    if stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        found["rdev"] = st.st_rdev
    return found


def mode(path: str) -> str:
    return oct(stat.S_IMODE(os.lstat(path).st_mode))


def nlink(path: str) -> int:
    return os.lstat(path).st_nlink


def names(path: str) -> list[str]:
    return sorted(os.listdir(path))


def make(path: str, data: bytes = b"", permissions: int = 0o644) -> str:
    """A regular file with exactly these permissions, whatever the umask."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, permissions)
    try:
        os.fchmod(fd, permissions)
        if data:
            os.write(fd, data)
    finally:
        os.close(fd)
    return path


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def touched(paths: str | Iterable[str], call: Callable[[], object]) -> dict[str, object]:
    """Which of atime, mtime and ctime `call` changes, by last name of each path; and what it answered."""
    watched = [paths] if isinstance(paths, str) else list(paths)
    before = {path: os.lstat(path) for path in watched}
    _let_clock_pass(max(st.st_ctime_ns for st in before.values()))
    answer = done(call)
    changed: dict[str, object] = {"answer": answer}
    for path in watched:
        if os.path.lexists(path):
            changed[os.path.basename(path)] = _changes(before[path], os.lstat(path))
    return changed


def _changes(old: os.stat_result, new: os.stat_result) -> list[str]:
    return [
        name for name in ("atime", "mtime", "ctime") if getattr(old, f"st_{name}_ns") != getattr(new, f"st_{name}_ns")
    ]


def _let_clock_pass(moment_ns: int) -> None:
    """Until file times taken from now on differ from `moment_ns`; bounded, since the clock moves."""
    while time.time_ns() < moment_ns + _CLOCK_GRAIN_NS:
        time.sleep(0.001)


def as_user(uid: int, call: Callable[[], object], gid: int | None = None, groups: Iterable[int] = ()) -> object:
    """`call`'s outcome in a forked child that has given up root for `uid`; needs root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.setgroups(list(groups))
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            os.write(writer, pickle.dumps(outcome(call)))
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, ended = os.waitpid(child, 0)
    if ended or not answer:
        raise AssertionError(f"the child that ran as {uid} died (wait status {ended})")
    return pickle.loads(answer)
