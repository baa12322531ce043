"""Attributes and extended attributes.  Every method is atomic."""

from __future__ import annotations

import errno
import stat
from typing import Final, NamedTuple

from icnfs.errors import FsError
from icnfs.limits import FILE_SIZE_MAX, XATTR_LIST_MAX, XATTR_SIZE_MAX, XATTRS_MAX
from icnfs.state.inode import HAS_XATTRS, Inode
from icnfs.vfs import acl
from icnfs.vfs.acl import Acl
from icnfs.vfs.callers import ROOT, Caller
from icnfs.vfs.setid import SET_ID, after_acl, after_request, after_write
from icnfs.vfs.times import clamped
from icnfs.vfs.tree import Tree

XATTR_PREFIXES: Final = (b"user.", b"trusted.", b"security.")
"""Namespaces that are kept.  Of system.* there are access control lists alone."""


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

    def setattr(self, ino: int, change: SetAttr, who: Caller = ROOT) -> Inode:
        """chmod, chown, truncate, utimensat by `who`; a change of nothing asks to clear set-id bits.

        That is what the kernel asks before a write, which takes a handle, and for chown(-1, -1), which it leaves to the
        file system to refuse: EPERM.
        """
        self._writable()
        node = self._store.inode(ino)
        if change.size is not None:
            self._check_size(node, change.size)
        marked = bool(node.mode & SET_ID) and not node.is_dir
        stranger = change == _NOTHING and who.uid not in (0, node.uid) and not self._handles.is_written(ino)
        if marked and stranger and after_request(node, who) != node.mode:
            raise FsError(errno.EPERM)
        node = self._store.edit(ino)
        if marked:
            if change.size is not None:
                node.mode = after_write(node, who)
            elif change == _NOTHING or change.uid is not None or change.gid is not None:
                node.mode = after_request(node, who)
        if change.size is not None:
            self._store.contents.truncate(node, change.size)
            node.mtime = self._clock.now()
        if change.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(change.mode)
            self._follow_mode(node)
        if change.uid is not None:
            node.uid = change.uid
        if change.gid is not None:
            node.gid = change.gid
        if change.atime is not None:
            node.atime = clamped(change.atime)
        if change.mtime is not None:
            node.mtime = clamped(change.mtime)
            self._clock.heard(change.mtime)
        node.ctime = self._clock.now()
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

    def setxattr(self, ino: int, name: bytes, value: bytes, who: Caller = ROOT) -> None:
        """Where that changes nothing, no time moves, as ext4 has it."""
        self._writable()
        node = self._store.inode(ino)
        _check_xattr_name(name)
        if len(value) > XATTR_SIZE_MAX:
            raise FsError(errno.E2BIG)
        if name == acl.DEFAULT and not node.is_dir:
            raise FsError(errno.EACCES)
        mode = node.mode
        xattrs = {**self._store.xattrs(ino), name: value}
        if name in acl.NAMES:
            new = Acl.parse(value)
            xattrs[name] = new.pack()
            if name == acl.ACCESS:
                mode = after_acl(node, who, mode & ~acl.BITS | new.mode)
                if new.is_mode:
                    del xattrs[name]
        self._put_xattrs(node, mode, xattrs)

    def removexattr(self, ino: int, name: bytes) -> None:
        """ENODATA, but for access control lists."""
        self._writable()
        _check_xattr_name(name)
        xattrs = dict(self._store.xattrs(ino))
        if xattrs.pop(name, None) is None and name not in acl.NAMES:
            raise FsError(errno.ENODATA)
        node = self._store.inode(ino)
        self._put_xattrs(node, node.mode, xattrs)

    def _put_xattrs(self, node: Inode, mode: int, xattrs: dict[bytes, bytes]) -> None:
        before = self._store.xattrs(node.ino)
        if mode == node.mode and xattrs == before:
            return
        if sum(len(n) + len(v) for n, v in xattrs.items()) > XATTRS_MAX:
            raise FsError(errno.ENOSPC)
        if sum(len(n) + 1 for n in xattrs) > XATTR_LIST_MAX:
            raise FsError(errno.ENOSPC)
        node = self._store.edit(node.ino)
        node.mode = mode
        node.ctime = self._clock.now()
        if xattrs != before:
            self._store.set_xattrs(node, xattrs)

    def _follow_mode(self, node: Inode) -> None:
        """The access list of an edited inode says what its mode says now."""
        if node.flags & HAS_XATTRS:
            xattrs = self._store.xattrs(node.ino)
            value = xattrs.get(acl.ACCESS)
            if value is not None:
                self._store.set_xattrs(node, {**xattrs, acl.ACCESS: Acl.parse(value).with_mode(node.mode).pack()})


def _check_xattr_name(name: bytes) -> None:
    """EOPNOTSUPP for a namespace that is not kept, EINVAL for a name that is only its namespace (as Linux answers)."""
    if not name.startswith(XATTR_PREFIXES) and name not in acl.NAMES:
        raise FsError(errno.EOPNOTSUPP)
    if name in XATTR_PREFIXES:
        raise FsError(errno.EINVAL)
