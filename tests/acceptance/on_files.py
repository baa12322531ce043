"""Requests carried out, and trees read back, through paths: on a mount or on any folder."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import Final

from tests.acceptance.model import Entry, Request, content_digest, written

_libc: Final = ctypes.CDLL(None, use_errno=True)
_RENAME_EXCHANGE: Final = 2


class Files:
    """Carries out requests below `root`; `OSError` as the file system answers.  The umask must be 0."""

    def __init__(self, root: str) -> None:
        self.root = root

    def apply(self, request: Request) -> None:
        verb, *arguments = request
        getattr(self, f"_do_{verb}")(*arguments)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _do_create(self, path: str, mode: int) -> None:
        os.close(os.open(self._at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def _do_mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def _do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def _do_link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new))

    def _do_write(self, path: str, offset: int, size: int, seed: int) -> None:
        fd = os.open(self._at(path), os.O_WRONLY)
        try:
            if os.pwrite(fd, written(seed, size), offset) != size:
                raise OSError(errno.EIO, "a short write")
        finally:
            os.close(fd)

    def _do_truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def _do_chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def _do_setxattr(self, path: str, name: str, seed: int, size: int) -> None:
        os.setxattr(self._at(path), name, written(seed, size))

    def _do_unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def _do_rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def _do_rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def _do_exchange(self, one: str, two: str) -> None:
        ctypes.set_errno(0)
        if _libc.renameat2(-100, os.fsencode(self._at(one)), -100, os.fsencode(self._at(two)), _RENAME_EXCHANGE):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), one)

    def _do_fsync(self, path: str) -> None:
        fd = os.open(self._at(path), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    _do_fsyncdir = _do_fsync


def read_tree(root: str) -> dict[str, Entry]:
    """Every name below `root` and what it shows."""
    found: dict[str, Entry] = {}
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(f"{root}/{folder}") as entries:
            for item in entries:
                path = f"{folder}/{item.name}" if folder else item.name
                entry = _entry(item.path)
                found[path] = entry
                if stat.S_ISDIR(entry.mode):
                    pending.append(path)
    return found


def _entry(path: str) -> Entry:
    st = os.lstat(path)
    content = b""
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as file:
            content = content_digest(file.read())
    elif stat.S_ISLNK(st.st_mode):
        content = os.fsencode(os.readlink(path))
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    return Entry(st.st_mode, st.st_nlink, content, xattrs)
