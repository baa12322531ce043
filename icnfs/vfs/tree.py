"""Finding, making and removing names; what keeps an inode without a name alive.  Every method is atomic."""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable
from time import time_ns

import trio

from icnfs.errors import FsError
from icnfs.format.records import Entry
from icnfs.limits import LINK_MAX, NAME_MAX, SYMLINK_MAX
from icnfs.state.inode import HAS_XATTRS, Inode
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.vfs import acl
from icnfs.vfs.handles import Handle, Handles
from icnfs.vfs.times import Atime, Clock, is_due


class Tree:
    """The part of a `Vfs` that makes, finds and removes names."""

    def __init__(
        self,
        store: Store,
        free_bytes: Callable[[], int],
        *,
        nursery: trio.Nursery | None = None,
        atime: Atime = Atime.RELATIVE,
        read_only: bool = False,
        read_deadline: float = 20.0,
        publish: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._store = store
        self._free_bytes = free_bytes
        self._nursery = nursery
        self._atime = Atime.NEVER if read_only else atime
        self._read_only = read_only
        self._read_deadline = read_deadline
        self._publish = publish
        self._handles = Handles()
        self._clock = Clock()
        self._nameless: set[int] = set()
        """Inodes without a name that somebody still uses."""

    # --- admission --------------------------------------------------------------------------------------------------

    @property
    def congested(self) -> bool:
        """Whether a handler that changes something must `wait_room` first."""
        return self._store.congested

    async def wait_room(self, *, growing: bool = True) -> None:
        """Until changes are accepted; `growing` ones need room for data.  Raises ENOSPC, EROFS."""
        await self._store.wait_room(growing=growing)

    def _writable(self) -> None:
        if self._read_only or self._store.read_only:
            raise FsError(errno.EROFS)

    # --- looking ----------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that `name` names in `parent`; ENOENT, ENOTDIR, ENAMETOOLONG.

        "." names any inode itself: so the kernel looks up a file handle (open_by_handle_at(2)), unless it still knows
        the inode; one without a name is then only waiting to be forgotten.
        """
        if name == b".":
            node = self._store.inode(parent)
            if not node.nlink:
                raise FsError(errno.ENOENT)
            return node
        directory = self._directory(parent)
        if name == b"..":
            return self._store.inode(directory.parent)
        return self._store.inode(self._entry(parent, name).ino)

    def getattr(self, ino: int) -> Inode:
        return self._store.inode(ino)

    def readlink(self, ino: int) -> bytes:
        node = self._store.inode(ino)
        if not stat.S_ISLNK(node.mode):
            raise FsError(errno.EINVAL)
        self._accessed(node)
        return node.target

    def _directory(self, ino: int) -> Inode:
        node = self._store.inode(ino)
        if not node.is_dir:
            raise FsError(errno.ENOTDIR)
        return node

    def _entry(self, parent: int, name: bytes) -> Entry:
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        entry = self._store.find(parent, name)
        if entry is None:
            raise FsError(errno.ENOENT)
        return entry

    def _accessed(self, node: Inode) -> None:
        """By the fine clock, so that what is read in the tick in which it was written is not due again, and its pages
        are kept."""
        now = time_ns()
        store = self._store
        if is_due(self._atime, node, now) and not (store.read_only or store.full or store.failure):
            store.edit(node.ino).atime = now

    # --- making -----------------------------------------------------------------------------------------------------

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int, umask: int = 0) -> Inode:
        """A file, fifo, socket or device."""
        node = self._new(parent, name, mode, uid, gid, umask)
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            node.rdev = rdev
        return node

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int, umask: int = 0) -> Inode:
        return self._new(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid, umask)

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        if len(target) > SYMLINK_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if not target:
            raise FsError(errno.ENOENT)
        node = self._new(parent, name, stat.S_IFLNK | 0o777, uid, gid)
        node.target = target
        node.size = len(target)
        return node

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int, umask: int = 0
    ) -> tuple[Handle, Inode]:
        """A regular file, and a handle on it."""
        node = self._new(parent, name, stat.S_IFREG | stat.S_IMODE(mode), uid, gid, umask)
        return self._handles.open(node.ino, flags, True), node

    def _new(self, parent: int, name: bytes, mode: int, uid: int, gid: int, umask: int = 0) -> Inode:
        """POSIX open(O_CREAT), mkdir, mknod, symlink: a new inode under a free name.

        In a set-group-id directory the group is the directory's, and a new directory is set-group-id too (as Linux
        does; the kernel has stripped S_ISGID from files where the caller may not set it).  A directory's default access
        list takes the place of `umask`.
        """
        self._writable()
        directory = self._parent_for(parent, name)
        if self._store.find(parent, name) is not None:
            raise FsError(errno.EEXIST)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if stat.S_ISDIR(mode) and directory.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        cookie = self._store.free_cookie(parent, name)
        now = self._clock.now()
        lists: dict[bytes, bytes] = {}
        if directory.flags & HAS_XATTRS and not stat.S_ISLNK(mode):
            mode, lists = acl.inherited(self._store.xattrs(parent), mode, umask)
        else:
            mode &= ~umask
        node = self._store.new_inode(mode, uid, gid, now)
        if lists:
            self._store.set_xattrs(node, lists)
        if node.is_dir:
            node.nlink = 2
            node.parent = parent
        self._store.replace_name(parent, Entry(cookie, node.ino, node.kind, name))
        self._entered(parent, now, 1, node.is_dir)
        return node

    def _lies_within(self, ino: int, top: int) -> bool:
        """Whether directory `ino` is `top` or lies beneath it; ELOOP where parents lead round in a circle."""
        passed = set()
        while ino != top:
            if ino == ROOT_INO:
                return False
            if ino in passed:
                raise FsError(errno.ELOOP)
            passed.add(ino)
            ino = self._store.inode(ino).parent
        return True

    def _parent_for(self, parent: int, name: bytes) -> Inode:
        """The directory in which `name` is to be made; ENOENT where it was removed."""
        directory = self._directory(parent)
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if not directory.nlink:
            raise FsError(errno.ENOENT)
        return directory

    def _entered(self, parent: int, now: int, entries: int, is_dir: bool) -> None:
        """A directory gained (or lost) `entries`; a count that was wrong before stays one that can be kept."""
        directory = self._store.edit(parent)
        directory.mtime = directory.ctime = now
        directory.count = max(directory.count + entries, 0)
        if is_dir:
            directory.nlink = max(directory.nlink + entries, 0)

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        """Another name for a file; EPERM for directories."""
        self._writable()
        node = self._store.inode(ino)
        if node.is_dir:
            raise FsError(errno.EPERM)
        self._parent_for(parent, name)
        if self._store.find(parent, name) is not None:
            raise FsError(errno.EEXIST)
        if not node.nlink:
            raise FsError(errno.ENOENT)
        if node.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        cookie = self._store.free_cookie(parent, name)
        now = self._clock.now()
        node = self._store.edit(ino)
        node.nlink += 1
        node.ctime = now
        self._store.replace_name(parent, Entry(cookie, ino, node.kind, name))
        self._entered(parent, now, 1, False)
        return node

    # --- removing ---------------------------------------------------------------------------------------------------

    def unlink(self, parent: int, name: bytes) -> None:
        self._writable()
        self._directory(parent)
        entry = self._entry(parent, name)
        if self._store.inode(entry.ino).is_dir:
            raise FsError(errno.EISDIR)
        now = self._clock.now()
        self._store.remove_name(parent, entry)
        self._entered(parent, now, -1, False)
        self._unlinked(entry.ino, now)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._writable()
        self._directory(parent)
        if name == b".":
            raise FsError(errno.EINVAL)
        if name == b"..":
            raise FsError(errno.ENOTEMPTY)
        entry = self._entry(parent, name)
        node = self._store.inode(entry.ino)
        if not node.is_dir:
            raise FsError(errno.ENOTDIR)
        if node.count:
            raise FsError(errno.ENOTEMPTY)
        now = self._clock.now()
        self._store.remove_name(parent, entry)
        self._entered(parent, now, -1, True)
        self._unlinked(entry.ino, now)

    def _unlinked(self, ino: int, now: int) -> None:
        """One name of an inode is gone; with the last, and nobody holding it, the inode goes."""
        node = self._store.edit(ino)
        node.ctime = now
        node.nlink = 0 if node.is_dir else max(node.nlink - 1, 0)
        if node.nlink:
            return
        if self._handles.in_use(ino):
            self._nameless.add(ino)
            self._store.set_orphan(ino, True)
        else:
            self._store.drop_inode(ino)

    def _perhaps_drop(self, ino: int) -> None:
        if ino in self._nameless and not self._handles.in_use(ino):
            self._nameless.remove(ino)
            self._store.drop_inode(ino)

    def remember(self, ino: int) -> None:
        """The kernel was given one reference to the inode."""
        self._handles.references.add(ino)

    def forget(self, ino: int, count: int) -> None:
        """The kernel gave `count` references back."""
        self._handles.references.drop(ino, count)
        self._perhaps_drop(ino)
