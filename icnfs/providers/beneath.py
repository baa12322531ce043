"""Files beneath one directory, reached without ever leaving it, and written so that they last.

Every component is opened relative to the directory before it, and none through a symbolic link: whatever somebody
planted inside, nothing outside is touched.  All functions block, take descriptors, and raise OSError: ELOOP stands
for a symbolic link, ENOTDIR for a file among the directories.  They know nothing of providers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from icnfs.mountinfo import FS_TYPE, MOUNTINFO, parse_mountinfo
from icnfs.providers import pace
from icnfs.providers.base import COMPONENT

STALE_AFTER: Final = 24 * 3600
"""Seconds after which a temporary file belongs to nobody: no put lasts so long."""

TEMPORARY: Final = ".put-"
"""How temporary files' names begin: with a dot, as no object's name does."""

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What link(2) says on file systems that have none, FAT for one; those know RENAME_NOREPLACE."""

_RENAME_NOREPLACE: Final = 1  # renameat2(2)
_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo must not hold us
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def open_root(path: Path) -> int:
    """The descriptor of the directory itself, which the operator may have put behind symbolic links."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def own_mount(fd: int) -> bool:
    """Whether an open directory lies on a volume of icnfs's that is mounted here, as far as the kernel tells."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = parse_mountinfo(MOUNTINFO.read_bytes())
    except OSError:
        return False
    return any(mount.device == wanted and mount.fs_type == FS_TYPE for mount in mounts)


def make_root(path: Path) -> None:
    """Make `path`, 0700 and durable in its parent, which must be there: FileNotFoundError otherwise."""
    if path.is_dir():
        return
    with contextlib.suppress(FileExistsError):  # made by another process meanwhile
        path.mkdir(mode=0o700)
    fd = open_root(path.parent)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_directory(component: str, parent: int, *, create: bool) -> int:
    """The descriptor of a directory in `parent`, made (0700) where it is missing and `create` is set."""
    try:
        return _open_directory(component, parent)
    except FileNotFoundError:
        if not create:
            raise
    with contextlib.suppress(FileExistsError):  # made by another thread meanwhile
        os.mkdir(component, 0o700, dir_fd=parent)
    return _open_directory(component, parent)


def _open_directory(component: str, parent: int) -> int:
    try:
        return os.open(component, _DIRECTORY, dir_fd=parent)
    except NotADirectoryError as error:  # which Linux says of symbolic links too
        if stat.S_ISLNK(os.lstat(component, dir_fd=parent).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
        raise


def open_file(leaf: str, parent: int) -> tuple[int, int]:
    """Descriptor and size of a regular file in `parent`; anything else there counts as missing."""
    fd = os.open(leaf, _READ, dir_fd=parent)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def read_fully(fd: int, offset: int, count: int) -> bytes:
    """`count` bytes from `offset`, or fewer where the file ends before."""
    data = os.pread(fd, count, offset)
    while len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
        data += more
    return data


def replace_file(leaf: str, parent: int, parts: Sequence[bytes | memoryview]) -> None:
    """Put the parts, one after the other, under `leaf` in `parent` (0600).

    All or nothing at every instant, and for good once this returns.
    """
    temporary = TEMPORARY + secrets.token_hex(8)
    try:
        _write_new(temporary, parent, parts)
        os.rename(temporary, leaf, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report; what stays is swept later
            os.unlink(temporary, dir_fd=parent)
        raise
    os.fsync(parent)


def add_file(leaf: str, parent: int, parts: Sequence[bytes | memoryview]) -> bool:
    """As `replace_file`, but only where nothing bears the name: False where something does, durably by then."""
    temporary = TEMPORARY + secrets.token_hex(8)
    added = True
    try:
        _write_new(temporary, parent, parts)
        _rename_new(temporary, leaf, parent)
    except FileExistsError:
        added = False
    finally:
        with contextlib.suppress(OSError):  # what stays is swept later
            os.unlink(temporary, dir_fd=parent)
    if not added and stat.S_ISDIR(os.lstat(leaf, dir_fd=parent).st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    os.fsync(parent)
    return added


def _rename_new(temporary: str, leaf: str, parent: int) -> None:
    """Give a file its name, if that is free; FileExistsError otherwise."""
    try:
        os.link(temporary, leaf, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if _renameat2(parent, os.fsencode(temporary), parent, os.fsencode(leaf), _RENAME_NOREPLACE) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code)) from None


def _write_new(name: str, parent: int, parts: Sequence[bytes | memoryview]) -> None:
    fd = os.open(name, _CREATE, 0o600, dir_fd=parent)
    try:
        pace.write(fd, parts)
        os.fdatasync(fd)
    finally:
        os.close(fd)


def sweep_temporaries(directory: int) -> None:
    """Remove the temporary files that a crash left in `directory` more than STALE_AFTER seconds ago."""
    oldest = time.time() - STALE_AFTER
    with os.scandir(directory) as entries:
        stale = [e.name for e in entries if e.name.startswith(TEMPORARY) and _modified(e.name, directory) < oldest]
    for name in stale:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.unlink(name, dir_fd=directory)


def _modified(name: str, directory: int) -> float:
    try:
        return os.lstat(name, dir_fd=directory).st_mtime
    except FileNotFoundError:  # its put was done meanwhile
        return time.time()


def walk(directory: int, above: str, prefix: str, after: str, longest: int) -> Iterator[str]:
    """The paths of regular files, sorted as strings, that begin with `prefix` and sort after `after`.

    `above` is the path of `directory`, empty or ending in a slash.  Names that begin with a dot, directories whose path
    has more than `longest` characters, and those that no object's name leads through are passed over: a disk's
    lost+found may be read by root alone.
    Memory: the names of one directory at each depth.
    """
    for name in _sorted_entries(directory):
        path = above + name
        if not name.endswith("/"):
            if path.startswith(prefix) and path > after:
                yield path
        elif len(path) <= longest and COMPONENT.fullmatch(name[:-1]) and _may_hold(path, prefix, after):
            yield from _walk_below(directory, path, prefix, after, longest)


def _walk_below(parent: int, path: str, prefix: str, after: str, longest: int) -> Iterator[str]:
    try:
        fd = _open_directory(path.split("/")[-2], parent)
    except (FileNotFoundError, NotADirectoryError):  # removed or replaced since it was seen
        return
    try:
        yield from walk(fd, path, prefix, after, longest)
    finally:
        os.close(fd)


def _sorted_entries(directory: int) -> list[str]:
    """Names in the order in which the paths through them sort: a directory counts as its name and a slash."""
    with os.scandir(directory) as entries:
        names = [
            f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False))
        ]
    return sorted(names)


def _may_hold(path: str, prefix: str, after: str) -> bool:
    """Whether a path that begins with `path` can begin with `prefix` and sort after `after`."""
    fits = path.startswith(prefix) or prefix.startswith(path)
    return fits and (path > after or after.startswith(path))
