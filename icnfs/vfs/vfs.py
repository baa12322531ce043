"""What POSIX means, over a store: names, links, renames, times, open and unlinked files.

Every method that is not `async` is atomic: it changes the store in one stretch.  Permission bits are the kernel's
business (the mount always has default_permissions), and so are path walks; what POSIX asks of the file system itself
is here. Errors that are replies are `FsError` with POSIX's errno; anything else that is raised is a fault of the
store.

Rules come from POSIX.1-2024 and, where it leaves room, from what Linux's own file systems do.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import trio

from icnfs.errors import FsError
from icnfs.format.records import Entry
from icnfs.limits import CHUNK_SIZE, FILE_SIZE_MAX, LINK_MAX, NAME_MAX, SYMLINK_MAX, XATTR_SIZE_MAX, XATTRS_MAX
from icnfs.state.inode import HAS_XATTRS, Inode
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.vfs.handles import Handle, Handles
from icnfs.vfs.times import Atime, clamped, is_due

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

COOKIE_DOT: Final = 1
COOKIE_DOTDOT: Final = 2

READ_AHEAD_CHUNKS: Final = 16
"""Chunks fetched ahead of a sequential reader of cold data: 2 MiB, several from each of k providers."""

STATFS_BLOCK: Final = 4096
FREE_INODES: Final = 2**40
"""Inodes are not a fixed table: as good as endless."""

XATTR_PREFIXES: Final = (b"user.", b"trusted.", b"security.")


@dataclass(frozen=True, slots=True)
class SetAttr:
    """A setattr request; None leaves a field.  Times in ns."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None


@dataclass(frozen=True, slots=True)
class StatVfs:
    """statvfs: `bsize` equals `frsize`, in bytes; the rest counts blocks of it, and inodes."""

    bsize: int
    frsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    favail: int
    namemax: int


class Vfs:
    """One mounted volume.  `free_bytes` tells what the providers have left; `nursery` runs read-ahead."""

    def __init__(
        self,
        store: Store,
        free_bytes: Callable[[], int],
        *,
        nursery: trio.Nursery | None = None,
        atime: Atime = Atime.RELATIVE,
        read_only: bool = False,
        read_deadline: float = 20.0,
    ) -> None:
        self._store = store
        self._free_bytes = free_bytes
        self._nursery = nursery
        self._atime = Atime.NEVER if read_only else atime
        self._read_only = read_only
        self._read_deadline = read_deadline
        self._handles = Handles()
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
        """The inode that `name` names in `parent`; ENOENT, ENOTDIR, ENAMETOOLONG."""
        directory = self._directory(parent)
        if name == b".":
            return directory
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

    def statfs(self) -> StatVfs:
        store = self._store
        used = -(-store.bytes_used // STATFS_BLOCK)
        free = max(self._free_bytes(), 0) // STATFS_BLOCK
        return StatVfs(
            bsize=STATFS_BLOCK,
            frsize=STATFS_BLOCK,
            blocks=used + free,
            bfree=free,
            bavail=free,
            files=store.files + FREE_INODES,
            ffree=FREE_INODES,
            favail=FREE_INODES,
            namemax=NAME_MAX,
        )

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
        now = time.time_ns()
        store = self._store
        if is_due(self._atime, node, now) and not (store.read_only or store.full or store.failure):
            store.edit(node.ino).atime = now

    # --- making -----------------------------------------------------------------------------------------------------

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int) -> Inode:
        """A file, fifo, socket or device."""
        node = self._new(parent, name, mode, uid, gid)
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            node.rdev = rdev
        return node

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        return self._new(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid)

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        if len(target) > SYMLINK_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if not target:
            raise FsError(errno.ENOENT)
        node = self._new(parent, name, stat.S_IFLNK | 0o777, uid, gid)
        node.target = target
        node.size = len(target)
        return node

    def create(self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int) -> tuple[Handle, Inode]:
        """A regular file, and a handle on it."""
        node = self._new(parent, name, stat.S_IFREG | stat.S_IMODE(mode), uid, gid)
        return self._handles.open(node.ino, flags, True), node

    def _new(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        """POSIX open(O_CREAT), mkdir, mknod, symlink: a new inode under a free name.

        In a set-group-id directory the group is the directory's, and a new directory is set-group-id too (as Linux
        does; the kernel has stripped S_ISGID from files where the caller may not set it).
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
        now = time.time_ns()
        node = self._store.new_inode(mode, uid, gid, now)
        if node.is_dir:
            node.nlink = 2
            node.parent = parent
        self._store.replace_name(parent, Entry(cookie, node.ino, node.kind, name))
        self._entered(parent, now, 1, node.is_dir)
        return node

    def _parent_for(self, parent: int, name: bytes) -> Inode:
        """The directory in which `name` is to be made; ENOENT where it was removed."""
        directory = self._directory(parent)
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if not directory.nlink:
            raise FsError(errno.ENOENT)
        return directory

    def _entered(self, parent: int, now: int, entries: int, is_dir: bool) -> None:
        """A directory gained (or lost) `entries`."""
        directory = self._store.edit(parent)
        directory.mtime = directory.ctime = now
        directory.count += entries
        if is_dir:
            directory.nlink += entries

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
        now = time.time_ns()
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
        now = time.time_ns()
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
        now = time.time_ns()
        self._store.remove_name(parent, entry)
        self._entered(parent, now, -1, True)
        self._unlinked(entry.ino, now)

    def _unlinked(self, ino: int, now: int) -> None:
        """One name of an inode is gone; with the last, and nobody holding it, the inode goes."""
        node = self._store.edit(ino)
        node.ctime = now
        node.nlink = 0 if node.is_dir else node.nlink - 1
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
        self._handles.remember(ino)

    def forget(self, ino: int, count: int) -> None:
        """The kernel gave `count` references back."""
        self._handles.forget(ino, count)
        self._perhaps_drop(ino)

    # --- renaming ---------------------------------------------------------------------------------------------------

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """POSIX rename, and Linux renameat2's RENAME_NOREPLACE and RENAME_EXCHANGE."""
        self._writable()
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise FsError(errno.EINVAL)
        self._directory(parent)
        source = self._entry(parent, name)
        self._parent_for(new_parent, new_name)
        target = self._store.find(new_parent, new_name)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise FsError(errno.ENOENT)
            self._exchange(parent, source, new_parent, target)
            return
        if target is not None:
            if flags & RENAME_NOREPLACE:
                raise FsError(errno.EEXIST)
            if target.ino == source.ino:
                return
        node = self._store.inode(source.ino)
        self._refuse_loop(node, new_parent)
        if target is not None:
            self._refuse_replace(node, self._store.inode(target.ino))
        self._move(parent, source, new_parent, new_name, target)

    def _move(self, parent: int, source: Entry, new_parent: int, new_name: bytes, target: Entry | None) -> None:
        store = self._store
        now = time.time_ns()
        cookie = store.free_cookie(new_parent, new_name) if target is None else target.cookie
        store.remove_name(parent, source)
        store.replace_name(new_parent, Entry(cookie, source.ino, source.kind, new_name))
        moved = store.edit(source.ino)
        moved.ctime = now
        self._entered(parent, now, -1, moved.is_dir)
        self._entered(new_parent, now, 1, moved.is_dir)
        if moved.is_dir:
            moved.parent = new_parent
        if target is not None:
            self._entered(new_parent, now, -1, store.inode(target.ino).is_dir)
            self._unlinked(target.ino, now)

    def _exchange(self, parent: int, source: Entry, new_parent: int, target: Entry) -> None:
        store = self._store
        if source.ino == target.ino:
            return
        self._refuse_loop(store.inode(source.ino), new_parent)
        self._refuse_loop(store.inode(target.ino), parent)
        now = time.time_ns()
        store.replace_name(new_parent, Entry(target.cookie, source.ino, source.kind, target.name))
        store.replace_name(parent, Entry(source.cookie, target.ino, target.kind, source.name))
        for entry, old, new in ((source, parent, new_parent), (target, new_parent, parent)):
            moved = store.edit(entry.ino)
            moved.ctime = now
            self._entered(old, now, -1, moved.is_dir)
            self._entered(new, now, 1, moved.is_dir)
            if moved.is_dir:
                moved.parent = new

    def _refuse_loop(self, node: Inode, new_parent: int) -> None:
        """EINVAL where a directory would become its own descendant."""
        if not node.is_dir:
            return
        at = new_parent
        while True:
            if at == node.ino:
                raise FsError(errno.EINVAL)
            if at == ROOT_INO:
                return
            at = self._store.inode(at).parent

    @staticmethod
    def _refuse_replace(node: Inode, target: Inode) -> None:
        if target.is_dir:
            if not node.is_dir:
                raise FsError(errno.EISDIR)
            if target.count:
                raise FsError(errno.ENOTEMPTY)
        elif node.is_dir:
            raise FsError(errno.ENOTDIR)

    # --- attributes ---------------------------------------------------------------------------------------------------

    def setattr(self, ino: int, change: SetAttr) -> Inode:
        """chmod, chown, truncate, utimensat.  (The kernel works out which set-id bits go and sends them as a mode.)"""
        self._writable()
        if change.size is not None:
            self._check_size(self._store.inode(ino), change.size)
        node = self._store.edit(ino)
        now = time.time_ns()
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
        xattrs = {**self._store.xattrs(ino), name: value}
        if sum(len(n) + len(v) for n, v in xattrs.items()) > XATTRS_MAX:
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

    # --- files --------------------------------------------------------------------------------------------------------

    def open(self, ino: int, flags: int, *, keep_setid: bool = True) -> Handle:
        """A handle; O_TRUNC empties the file, and clears set-id bits unless the caller may keep them.

        The kernel's cached pages serve reads unseen, so where the next read must move the access time the handle does
        not keep them: then that read is seen.
        """
        node = self._store.inode(ino)
        if flags & os.O_TRUNC and (flags & os.O_ACCMODE) != os.O_RDONLY:
            self._writable()
            node = self._store.edit(ino)
            self._store.contents.truncate(node, 0)
            node.mtime = node.ctime = time.time_ns()
            if not keep_setid:
                node.mode &= ~stat.S_ISUID
                if node.mode & stat.S_IXGRP:
                    node.mode &= ~stat.S_ISGID
        elif (flags & os.O_ACCMODE) != os.O_RDONLY:
            self._writable()
        reads = (flags & os.O_ACCMODE) != os.O_WRONLY and not flags & os.O_NOATIME
        keep_cache = not (reads and node.size and is_due(self._atime, node, time.time_ns()))
        return self._handles.open(ino, flags, keep_cache)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer at the end of the file only.  EIO where they cannot be had in time."""
        handle = self._handles.get(fh)
        store = self._store
        node = store.inode(handle.ino)
        if self._atime is not Atime.NEVER and not handle.flags & os.O_NOATIME:
            self._accessed(node)
        fetches = store.contents.fetches
        deadline = trio.current_time() + self._read_deadline
        data = await store.contents.read(store.inode(handle.ino), offset, size, deadline)
        handle.cold = store.contents.fetches != fetches
        handle.streak = handle.streak + 1 if offset == handle.expected else 0
        handle.expected = offset + len(data)
        if handle.cold and handle.streak > 1:
            self._read_ahead(handle)
        return data

    def _read_ahead(self, handle: Handle) -> None:
        if self._nursery is not None:
            first = handle.expected // CHUNK_SIZE
            deadline = trio.current_time() + self._read_deadline
            self._nursery.start_soon(
                self._store.contents.warm_up, handle.ino, first, first + READ_AHEAD_CHUNKS, deadline
            )

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """All of `data` at `offset`; durable on return where the handle is O_SYNC or O_DSYNC."""
        handle = self._handles.get(fh)
        store = self._store
        if store.congested:
            await store.wait_room()
        self._writable()
        size = len(data)
        if offset + size > FILE_SIZE_MAX:
            raise FsError(errno.EFBIG)
        if size:
            node = store.edit(handle.ino)
            store.contents.write(node, offset, data)
            node.mtime = node.ctime = time.time_ns()
            store.relieve()
        if handle.flags & (os.O_SYNC | os.O_DSYNC):
            await store.flush()
        return size

    def flush(self, fh: int) -> None:
        """close(2) promises nothing but errors, and there are none to tell."""
        self._handles.get(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """The file is durable on return, data and metadata alike, and so is every request before this one.

        Also for a file without changes of its own: no crash lands before the last fsync that returned.
        """
        self._handles.get(fh)
        await self._store.flush()

    def release(self, fh: int) -> None:
        self._perhaps_drop(self._handles.release(fh))

    # --- directories ------------------------------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        return self._handles.open(self._directory(ino).ino, 0).fh

    def readdir(self, fh: int, cookie: int) -> Iterator[tuple[bytes, Inode, int]]:
        """(name, inode, cookie) of the entries after `cookie`, 0 for all; to be consumed without an await.

        Entries that stay are returned exactly once over a whole listing, whatever is added or removed meanwhile.
        """
        store = self._store
        directory = store.inode(self._handles.get(fh).ino)
        if cookie < COOKIE_DOT:
            self._accessed(directory)
            yield b".", directory, COOKIE_DOT
        if cookie < COOKIE_DOTDOT:
            yield b"..", store.inode(directory.parent) if directory.nlink else directory, COOKIE_DOTDOT
        for entry in store.entries(directory.ino, max(cookie, COOKIE_DOTDOT) + 1):
            yield entry.name, store.inode(entry.ino), entry.cookie

    def releasedir(self, fh: int) -> None:
        self.release(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """As `fsync`, for a directory's entries."""
        self._handles.get(fh)
        await self._store.flush()


def _check_xattr_name(name: bytes) -> None:
    """EOPNOTSUPP for a namespace that is not kept, EINVAL for a name that is only its namespace (as Linux answers)."""
    if not name.startswith(XATTR_PREFIXES):
        raise FsError(errno.EOPNOTSUPP)
    if name in XATTR_PREFIXES:
        raise FsError(errno.EINVAL)
