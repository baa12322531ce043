"""Requests in, replies out: pyfuse3's handlers over a `FileSystem`.

Promises: no handler lets an `Exception` out but FUSEError (any other ends the mount); a handler that the file system
need not wait for never waits; one that does is bounded by the loop's deadline and then answers EIO.

Kernel caches.  One mount writes a volume at a time and every change comes through this kernel, so entries, attributes
and negative entries are trusted for a day: what the kernel itself changes it knows, and it drops what it cannot work
out.  Writeback cache is off: with it the kernel reads through write-only handles, ignores O_APPEND and owns the times.

FLUSH is answered ENOSYS, so the kernel stops sending it: close(2) promises nothing here and no error is ever late.

setxattr's XATTR_CREATE and XATTR_REPLACE are carried out by pyfuse3, which asks `getxattr` first; the kernel holds the
inode's lock over both.  setattr's "now" comes as a time, that of the kernel's last tick.  O_TRUNC comes as a setattr.

It does not know what a name means; it only counts the references that it hands to the kernel.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Final, TypeVar, TypeVarTuple

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from icnfs.errors import FsError
from icnfs.fuse.contract import FileSystem
from icnfs.fuse.faults import FaultLog, errno_of, is_reply, only_cancelled, passes_through
from icnfs.limits import CHUNK_SIZE
from icnfs.state.inode import Inode
from icnfs.vfs.attributes import SetAttr

CACHE_SECONDS: Final = 86400.0
"""How long the kernel may trust an entry, its attributes, or that there is none."""

_PERMISSIONS: Final = 0o7777

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
Handler = Callable[["Handlers", *Ts], Coroutine[Any, Any, T]]
"""pyfuse3 gives all arguments by position: to take names as well would cost 0.1 us."""

log = logging.getLogger(__name__)


def _answers(fn: Callable[[Handlers, *Ts], T]) -> Handler[*Ts, T]:
    """A handler that never waits: one coroutine, one call."""

    @wraps(fn)
    async def handler(self: Handlers, *args: *Ts) -> T:
        try:
            return fn(self, *args)
        except BaseException as exc:  # noqa: BLE001  `reply` raises again what is not ours to answer
            code = self.reply(fn.__name__, exc)
        raise FUSEError(code)

    return handler


def _changes(growing: bool) -> Callable[[Callable[[Handlers, *Ts], T]], Handler[*Ts, T]]:
    """A handler that changes something: it waits for room first, when there is none."""

    def decorate(fn: Callable[[Handlers, *Ts], T]) -> Handler[*Ts, T]:
        @wraps(fn)
        async def handler(self: Handlers, *args: *Ts) -> T:
            try:
                if self.fs.congested:
                    self._storing()
                    await self.fs.wait_room(growing=growing)
                return fn(self, *args)
            except BaseException as exc:  # noqa: BLE001  `reply` raises again what is not ours to answer
                code = self.reply(fn.__name__, exc)
            raise FUSEError(code)

        return handler

    return decorate


def _waits(fn: Callable[[Handlers, *Ts], Awaitable[T]]) -> Handler[*Ts, T]:
    """A handler that may have to wait for disk or providers."""

    @wraps(fn)
    async def handler(self: Handlers, *args: *Ts) -> T:
        try:
            return await fn(self, *args)
        except BaseException as exc:  # noqa: BLE001  `reply` raises again what is not ours to answer
            code = self.reply(fn.__name__, exc)
        raise FUSEError(code)

    return handler


DIRECTORY_SIZE: Final = 4096
"""What a directory is said to hold, for `test -s` and for those who seek to its end: what its `blocks` are."""


def entry_of(inode: Inode) -> EntryAttributes:
    """`inode` as the kernel wants it."""
    entry = EntryAttributes()
    entry.st_ino = inode.ino
    entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    if inode.uid or inode.gid:  # these are 0 until set
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
    if inode.rdev:
        entry.st_rdev = inode.rdev
    if inode.size:
        entry.st_size = inode.size
    elif inode.is_dir:
        entry.st_size = DIRECTORY_SIZE
    entry.st_blksize = CHUNK_SIZE
    entry.st_blocks = inode.blocks
    entry.st_atime_ns = inode.atime
    entry.st_mtime_ns = inode.mtime
    entry.st_ctime_ns = inode.ctime
    return entry


def no_entry() -> EntryAttributes:
    """That there is no such name: the kernel remembers it until the name is made."""
    entry = EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = CACHE_SECONDS
    return entry


def change_of(attr: EntryAttributes, fields: SetattrFields) -> SetAttr:
    """The fields that a setattr request changes; those it leaves are None."""
    return SetAttr(
        mode=attr.st_mode & _PERMISSIONS if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        size=attr.st_size if fields.update_size else None,
        atime=attr.st_atime_ns if fields.update_atime else None,
        mtime=attr.st_mtime_ns if fields.update_mtime else None,
        ctime=attr.st_ctime_ns if fields.update_ctime else None,
    )


class Handlers(pyfuse3.Operations):
    """The handlers of one mount.  `expired` tells whether a cancellation is the loop's deadline; `storing` and
    `syncing` are called before waits for this machine's disk alone, and as an fsync begins: these may take longer."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False  # `negotiate` asks for them, together with modes that the umask has not been taken from

    def __init__(
        self,
        fs: FileSystem,
        expired: Callable[[], bool],
        storing: Callable[[], None],
        syncing: Callable[[], None],
    ) -> None:
        super().__init__()
        self.fs = fs
        self._expired = expired
        self._storing = storing
        self._syncing = syncing
        self._faults = FaultLog()

    def reply(self, request: str, exc: BaseException) -> int:
        """The errno that answers `exc`; a fault is logged.  Raises again what is for pyfuse3, trio or Python."""
        if isinstance(exc, FsError):
            return errno_of(exc)
        if isinstance(exc, FUSEError):
            raise exc
        if passes_through(exc):
            if not (only_cancelled(exc) and self._expired()):
                raise exc
            exc = TimeoutError(errno.ETIMEDOUT, "past the deadline").with_traceback(exc.__traceback__)
            code = errno.EIO
        else:
            code = errno_of(exc)
        if not is_reply(exc):
            self._faults.tell(request, exc, code, trio.current_time())
        return code

    def _given(self, inode: Inode) -> EntryAttributes:
        """The entry that answers a request, counted as one more reference of the kernel's."""
        entry = entry_of(inode)
        self.fs.remember(inode.ino)
        return entry

    # --- names ---

    @_answers
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            inode = self.fs.lookup(parent_inode, name)
        except FsError as exc:
            if exc.errno == errno.ENOENT:
                return no_entry()
            raise
        return self._given(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """There is no reply: each inode is tried, and a fault is only logged."""
        for ino, count in inode_list:
            try:
                self.fs.forget(ino, count)
            except BaseException as exc:  # noqa: BLE001  `reply` raises again what is not ours to answer
                self.reply("forget", exc)

    @_changes(growing=True)
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._given(self.fs.mknod(parent_inode, name, mode, rdev, ctx.uid, ctx.gid, ctx.umask))

    @_changes(growing=True)
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._given(self.fs.mkdir(parent_inode, name, mode, ctx.uid, ctx.gid, ctx.umask))

    @_changes(growing=True)
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._given(self.fs.symlink(parent_inode, name, target, ctx.uid, ctx.gid))

    @_changes(growing=True)
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._given(self.fs.link(inode, new_parent_inode, new_name))

    @_changes(growing=False)
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.fs.unlink(parent_inode, name)

    @_changes(growing=False)
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.fs.rmdir(parent_inode, name)

    @_changes(growing=False)
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self.fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @_answers
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.fs.readlink(inode)

    # --- attributes ---

    @_answers
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return entry_of(self.fs.getattr(inode))

    @_changes(growing=False)
    def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        return entry_of(self.fs.setattr(inode, change_of(attr, fields), ctx))

    @_answers
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self.fs.getxattr(inode, name)

    @_changes(growing=True)
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self.fs.setxattr(inode, name, value, ctx)

    @_answers
    def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        """Trusted attributes are listed to root alone, as Linux's own file systems do (xattr(7))."""
        names = self.fs.listxattr(inode)
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @_changes(growing=False)
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self.fs.removexattr(inode, name)

    @_answers
    def statfs(self, ctx: RequestContext) -> StatvfsData:
        stat = self.fs.statfs()
        data = StatvfsData()
        data.f_bsize = data.f_frsize = stat.frsize  # apart, df(1) miscounts
        data.f_blocks = stat.blocks
        data.f_bfree = stat.bfree
        data.f_bavail = stat.bavail
        data.f_files = stat.files
        data.f_ffree = stat.ffree
        data.f_favail = stat.favail
        data.f_namemax = stat.namemax
        return data

    # --- files ---

    @_changes(growing=True)
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, inode = self.fs.create(parent_inode, name, mode, flags, ctx.uid, ctx.gid, ctx.umask)
        return FileInfo(fh=handle.fh, keep_cache=handle.keep_cache), self._given(inode)

    @_answers
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        handle = self.fs.open(inode, flags)
        return FileInfo(fh=handle.fh, keep_cache=handle.keep_cache)

    @_waits
    def read(self, fh: int, off: int, size: int) -> Awaitable[bytes]:
        return self.fs.read(fh, off, size)

    @_waits
    def write(self, fh: int, off: int, buf: bytes) -> Awaitable[int]:
        self._storing()
        return self.fs.write(fh, off, buf)

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)

    @_waits
    def fsync(self, fh: int, datasync: bool) -> Awaitable[None]:
        self._syncing()
        return self.fs.fsync(fh, datasync)

    @_answers
    def release(self, fh: int) -> None:
        self.fs.release(fh)

    # --- directories ---

    @_answers
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self.fs.opendir(inode)

    @_answers
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """Entries until the kernel's buffer is full; each one that it takes is a reference, save '.' and '..'."""
        fits, remember = pyfuse3.readdir_reply, self.fs.remember
        for name, inode, cookie in self.fs.readdir(fh, start_id):
            if not fits(token, name, entry_of(inode), cookie):
                return
            if name not in (b".", b".."):
                remember(inode.ino)

    @_answers
    def releasedir(self, fh: int) -> None:
        self.fs.releasedir(fh)

    @_waits
    def fsyncdir(self, fh: int, datasync: bool) -> Awaitable[None]:
        self._syncing()
        return self.fs.fsyncdir(fh, datasync)
