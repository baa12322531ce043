"""Open files and directories: reading, writing, listing, making durable."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from time import time_ns
from typing import Final

import trio

from icnfs.errors import FsError, IcnfsError
from icnfs.limits import CHUNK_SIZE, FILE_SIZE_MAX, MIB
from icnfs.state.inode import Inode
from icnfs.vfs.handles import Handle
from icnfs.vfs.times import Atime, is_due
from icnfs.vfs.tree import Tree

log = logging.getLogger(__name__)

COOKIE_DOT: Final = 1
COOKIE_DOTDOT: Final = 2
"""Below 16, where the cookies of entries begin."""

READ_AHEAD_STEP: Final = 4 * MIB
"""Bytes of a file announced at a time once its window is wide: few large requests instead of many small ones."""


class Files(Tree):
    """The part of a `Vfs` that serves handles."""

    def open(self, ino: int, flags: int) -> Handle:
        """A handle; O_TRUNC is not for it: the kernel truncates by `setattr`.

        The kernel's cached pages serve reads unseen, so where the next read must move the access time the handle does
        not keep them: then that read is seen.
        """
        node = self._store.inode(ino)
        if (flags & os.O_ACCMODE) != os.O_RDONLY:
            self._writable()
        reads = (flags & os.O_ACCMODE) != os.O_WRONLY and not flags & os.O_NOATIME
        keep_cache = not (reads and node.size and is_due(self._atime, node, time_ns()))
        return self._handles.open(ino, flags, keep_cache)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer at the end of the file only.  EIO where they cannot be had in time."""
        handle = self._handles.get(fh)
        store = self._store
        node = store.inode(handle.ino)
        if self._atime is not Atime.NEVER and not handle.flags & os.O_NOATIME:
            self._accessed(node)
        node = store.inode(handle.ino)
        data = store.contents.at_hand(node, offset, size)
        if data is not None:
            return data

        def missed() -> None:
            self._read_ahead(handle, offset, size)

        return await store.contents.read(node, offset, size, trio.current_time() + self._read_deadline, missed)

    def _read_ahead(self, handle: Handle, offset: int, size: int) -> None:
        """A read at `offset` misses: have fetched what will be missed next, if the file is read in order."""
        if self._nursery is None:
            return
        sequence, source = handle.sequence, self._store.source
        if not sequence.saw(offset, size):
            source.forget(handle.fh)
        window = sequence.window
        node = self._store.inode(handle.ino)
        first = max(sequence.announced, sequence.end) // CHUNK_SIZE
        until = min(sequence.end + window, node.size)
        count = min(-(-until // CHUNK_SIZE) - first, source.room(handle.fh) // CHUNK_SIZE)
        if until < node.size:
            step = min(READ_AHEAD_STEP, window // 4) // CHUNK_SIZE
            count = (first + count) // step * step - first if step else 0
        if count <= 0:
            return
        sequence.announced = (first + count) * CHUNK_SIZE
        try:
            locations = self._store.contents.cold(handle.ino, first, first + count - 1)
        except IcnfsError as error:
            log.debug("nothing is read ahead over a damaged record: %s", error)
            return
        if locations:
            deadline = trio.current_time() + self._read_deadline
            self._nursery.start_soon(self._prefetch, source.expect(handle.fh, locations, deadline))

    async def _prefetch(self, fetch: Callable[[], Awaitable[None]]) -> None:
        """Best effort, and a task of its own: no fault of it may end the mount."""
        try:
            await fetch()
        except Exception as fault:
            log.error("read-ahead failed: %s", type(fault).__name__, exc_info=True)

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
            node.mtime = node.ctime = self._clock.now()
            store.relieve()
        if handle.flags & (os.O_SYNC | os.O_DSYNC):
            await store.persist()
        return size

    def flush(self, fh: int) -> None:
        """close(2) promises nothing but errors, and there are none to tell."""
        self._handles.get(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """The file is durable on return, data and metadata alike, and so is every request before this one.

        Also for a file without changes of its own: no crash lands before the last fsync that returned.  Where the mount
        publishes with each fsync, all of it is published and safe too, or this raises what stood in the way.
        """
        self._handles.get(fh)
        await self._store.persist()
        if self._publish is not None:
            await self._publish()

    def release(self, fh: int) -> None:
        if self._handles.get(fh).sequence.announced:
            self._store.source.forget(fh)
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
        await self.fsync(fh, datasync)
