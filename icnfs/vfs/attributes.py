"""Attributes and extended attributes.  Every method is atomic."""

from __future__ import annotations

import errno
import stat
import time
from typing import Final, NamedTuple

from icnfs.errors import FsError
from icnfs.limits import FILE_SIZE_MAX, XATTR_LIST_MAX, XATTR_SIZE_MAX, XATTRS_MAX
from icnfs.state.inode import HAS_XATTRS, Inode
from icnfs.vfs.setid import SET_ID, after_chown, after_request, after_write
from icnfs.vfs.times import clamped
from icnfs.vfs.tree import Tree

XATTR_PREFIXES: Final = (b"user.", b"trusted.", b"security.")
"""Namespaces that are kept.  (POSIX ACLs, system.*, are not: see `fuse.handlers`.)"""


class SetAttr(NamedTuple):
    """A setattr request; None leaves a field.  Times in ns.  (A frozen dataclass takes twice as long to make.)"""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None


_NOTHING: Final = SetAttr()


class Attributes(Tree):
    """The part of a `Vfs` that keeps attributes."""

    def setattr(self, ino: int, change: SetAttr, uid: int = 0) -> Inode:
        """chmod, chown, truncate, utimensat by `uid`; a change of nothing asks to clear set-id bits.

        That is what the kernel asks before a write, which takes a handle, and for chown(-1, -1), which it leaves to the
        file system to refuse: EPERM.
        """
        self._writable()
        node = self._store.inode(ino)
        if change.size is not None:
            self._check_size(node, change.size)
        marked = bool(node.mode & SET_ID) and not node.is_dir
        if marked and change == _NOTHING and uid not in (0, node.uid) and not self._handles.is_written(ino):
            raise FsError(errno.EPERM)
        node = self._store.edit(ino)
        now = time.time_ns()
        if marked:
            if change.size is not None:
                node.mode = after_write(node, uid)
            elif change.uid is not None or change.gid is not None:
                node.mode = after_chown(node)
            elif change == _NOTHING:
                node.mode = after_request(node, uid)
        if change.size is not None:
            self._store.contents.truncate(node, change.size)
            node.mtime = now
        if change.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(change.mode)
        if change.uid is not None:
            node.uid = change.uid
        if change.gid is not None:
            node.gid = change.gid
        if change.atime is not None:
            node.atime = clamped(change.atime)
        if change.mtime is not None:
            node.mtime = clamped(change.mtime)
        node.ctime = now
        return node

    @staticmethod
    def _check_size(node: Inode, size: int) -> None:
        if node.is_dir:
            raise FsError(errno.EISDIR)
        if not node.is_file:
            raise FsError(errno.EINVAL)
        if size > FILE_SIZE_MAX:
            raise FsError(errno.EFBIG)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value; ENODATA.  Inodes without attributes answer from a bit: the kernel asks before every write."""
        node = self._store.inode(ino)
        _check_xattr_name(name)
        if node.flags & HAS_XATTRS:
            value = self._store.xattrs(ino).get(name)
            if value is not None:
                return value
        raise FsError(errno.ENODATA)

    def listxattr(self, ino: int) -> list[bytes]:
        node = self._store.inode(ino)
        return list(self._store.xattrs(ino)) if node.flags & HAS_XATTRS else []

    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        self._writable()
        self._store.inode(ino)
        _check_xattr_name(name)
        if len(value) > XATTR_SIZE_MAX:
            raise FsError(errno.E2BIG)
        before = self._store.xattrs(ino)
        if before.get(name) == value:  # ext4 leaves the inode's time alone
            return
        xattrs = {**before, name: value}
        if sum(len(n) + len(v) for n, v in xattrs.items()) > XATTRS_MAX:
            raise FsError(errno.ENOSPC)
        if sum(len(n) + 1 for n in xattrs) > XATTR_LIST_MAX:
            raise FsError(errno.ENOSPC)
        self._put_xattrs(ino, xattrs)

    def removexattr(self, ino: int, name: bytes) -> None:
        self._writable()
        _check_xattr_name(name)
        xattrs = dict(self._store.xattrs(ino))
        if xattrs.pop(name, None) is None:
            raise FsError(errno.ENODATA)
        self._put_xattrs(ino, xattrs)

    def _put_xattrs(self, ino: int, xattrs: dict[bytes, bytes]) -> None:
        node = self._store.edit(ino)
        node.ctime = time.time_ns()
        self._store.set_xattrs(node, xattrs)


def _check_xattr_name(name: bytes) -> None:
    """EOPNOTSUPP for a namespace that is not kept, EINVAL for a name that is only its namespace (as Linux answers)."""
    if not name.startswith(XATTR_PREFIXES):
        raise FsError(errno.EOPNOTSUPP)
    if name in XATTR_PREFIXES:
        raise FsError(errno.EINVAL)
