"""A small file system in memory with the adapter's contract: enough of POSIX to mount it, and places to break it.

`before` is called with the name of each method as it is entered (the tests raise from it); `pauses` makes the async
methods wait until the test lets them go.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from icnfs.errors import FsError
from icnfs.limits import CHUNK_SIZE, NAME_MAX
from icnfs.state.inode import HAS_XATTRS, Inode
from icnfs.vfs.attributes import SetAttr
from icnfs.vfs.callers import Caller
from icnfs.vfs.vfs import StatVfs

ROOT = 1


@dataclass
class Open:
    fh: int
    ino: int
    flags: int
    keep_cache: bool = True


@dataclass
class Node:
    inode: Inode
    data: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, int] = field(default_factory=dict)
    cookies: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Pause(Protocol):
    async def wait(self) -> None: ...


class MemFs:
    def __init__(self) -> None:
        self.before: Callable[[str], None] = lambda method: None
        self.pause: Callable[[str], Pause | None] = lambda method: None
        self.calls: list[str] = []
        self.asked: list[tuple[int, int]] = []
        """Mode and umask of what was made."""
        self.references: dict[int, int] = {}
        self.congested = False
        self._nodes: dict[int, Node] = {}
        self._open: dict[int, Open] = {}
        self._next_ino = ROOT
        self._next_fh = 1
        self._next_cookie = 3
        root = self._make(stat.S_IFDIR | 0o755, os.geteuid(), os.getegid())
        root.inode.nlink = 2
        root.inode.parent = ROOT

    def _enter(self, method: str) -> None:
        self.calls.append(method)
        self.before(method)

    async def _enter_async(self, method: str) -> None:
        self._enter(method)
        event = self.pause(method)
        if event is not None:
            await event.wait()

    def _make(self, mode: int, uid: int, gid: int) -> Node:
        node = Node(Inode(self._next_ino, mode, uid, gid, time.time_ns()))
        self._nodes[self._next_ino] = node
        self._next_ino += 1
        return node

    def _node(self, ino: int) -> Node:
        try:
            return self._nodes[ino]
        except KeyError:
            raise FsError(errno.ESTALE) from None

    def _file(self, fh: int) -> Node:
        try:
            return self._node(self._open[fh].ino)
        except KeyError:
            raise FsError(errno.EBADF) from None

    async def wait_room(self, *, growing: bool = True) -> None:
        await self._enter_async("wait_room")

    def lookup(self, parent: int, name: bytes) -> Inode:
        self._enter("lookup")
        directory = self._node(parent)
        if len(name) > NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if name == b".":
            return directory.inode
        if name == b"..":
            return self._node(directory.inode.parent).inode
        if name not in directory.entries:
            raise FsError(errno.ENOENT)
        return self._node(directory.entries[name]).inode

    def getattr(self, ino: int) -> Inode:
        self._enter("getattr")
        return self._node(ino).inode

    def setattr(self, ino: int, change: SetAttr, who: Caller) -> Inode:
        self._enter("setattr")
        node = self._node(ino)
        inode = node.inode
        if change.size is not None:
            self._resize(node, change.size)
        if change.mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | change.mode
        inode.uid = inode.uid if change.uid is None else change.uid
        inode.gid = inode.gid if change.gid is None else change.gid
        inode.atime = inode.atime if change.atime is None else change.atime
        inode.mtime = inode.mtime if change.mtime is None else change.mtime
        inode.ctime = time.time_ns()
        return inode

    def _resize(self, node: Node, size: int) -> None:
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        self._written(node)

    def _written(self, node: Node) -> None:
        node.inode.size = len(node.data)
        node.inode.count = -(-len(node.data) // CHUNK_SIZE)
        node.inode.mtime = node.inode.ctime = time.time_ns()

    def readlink(self, ino: int) -> bytes:
        self._enter("readlink")
        return self._node(ino).inode.target

    def _add(self, parent: int, name: bytes, ino: int) -> None:
        directory = self._node(parent)
        if name in directory.entries:
            raise FsError(errno.EEXIST)
        directory.entries[name] = ino
        directory.cookies[name] = self._next_cookie
        self._next_cookie += 1
        directory.inode.mtime = directory.inode.ctime = time.time_ns()

    def _new(self, parent: int, name: bytes, mode: int, uid: int, gid: int, umask: int = 0) -> Node:
        if name in self._node(parent).entries:
            raise FsError(errno.EEXIST)
        self.asked.append((stat.S_IMODE(mode), umask))
        node = self._make(mode & ~umask, uid, gid)
        self._add(parent, name, node.inode.ino)
        return node

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, uid: int, gid: int, umask: int) -> Inode:
        self._enter("mknod")
        node = self._new(parent, name, mode, uid, gid, umask)
        node.inode.rdev = rdev
        return node.inode

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int, umask: int) -> Inode:
        self._enter("mkdir")
        node = self._new(parent, name, mode, uid, gid, umask)
        node.inode.nlink = 2
        node.inode.parent = parent
        self._node(parent).inode.nlink += 1
        return node.inode

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Inode:
        self._enter("symlink")
        node = self._new(parent, name, stat.S_IFLNK | 0o777, uid, gid)
        node.inode.target = target
        node.inode.size = len(target)
        return node.inode

    def link(self, ino: int, parent: int, name: bytes) -> Inode:
        self._enter("link")
        self._add(parent, name, ino)
        inode = self._node(ino).inode
        inode.nlink += 1
        inode.ctime = time.time_ns()
        return inode

    def _drop(self, parent: int, name: bytes) -> Node:
        directory = self._node(parent)
        if name not in directory.entries:
            raise FsError(errno.ENOENT)
        directory.cookies.pop(name)
        directory.inode.mtime = directory.inode.ctime = time.time_ns()
        return self._node(directory.entries.pop(name))

    def unlink(self, parent: int, name: bytes) -> None:
        self._enter("unlink")
        node = self._drop(parent, name)
        node.inode.nlink -= 1
        node.inode.ctime = time.time_ns()

    def rmdir(self, parent: int, name: bytes) -> None:
        self._enter("rmdir")
        directory = self._node(parent)
        if name in directory.entries and self._node(directory.entries[name]).entries:
            raise FsError(errno.ENOTEMPTY)
        self._drop(parent, name).inode.nlink = 0
        directory.inode.nlink -= 1

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        self._enter("rename")
        source, target = self._node(parent), self._node(new_parent)
        if flags & 1 and new_name in target.entries:
            raise FsError(errno.EEXIST)
        if flags & 2:
            source.entries[name], target.entries[new_name] = target.entries[new_name], source.entries[name]
            return
        moved = self._drop(parent, name)
        if new_name in target.entries:
            self._drop(new_parent, new_name).inode.nlink -= 1
        self._add(new_parent, new_name, moved.inode.ino)
        if moved.inode.is_dir:
            moved.inode.parent = new_parent
            source.inode.nlink -= 1
            target.inode.nlink += 1

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int, umask: int
    ) -> tuple[Open, Inode]:
        self._enter("create")
        node = self._new(parent, name, mode, uid, gid, umask)
        return self._opened(node.inode.ino, flags), node.inode

    def _opened(self, ino: int, flags: int) -> Open:
        handle = Open(self._next_fh, ino, flags)
        self._open[handle.fh] = handle
        self._next_fh += 1
        return handle

    def open(self, ino: int, flags: int) -> Open:
        self._enter("open")
        return self._opened(ino, flags)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        await self._enter_async("read")
        return bytes(self._file(fh).data[offset : offset + size])

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        await self._enter_async("write")
        node = self._file(fh)
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + len(data)] = data
        self._written(node)
        return len(data)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._enter_async("fsync")
        self._file(fh)

    def release(self, fh: int) -> None:
        self._enter("release")
        del self._open[fh]

    def opendir(self, ino: int) -> int:
        self._enter("opendir")
        return self._opened(ino, 0).fh

    def readdir(self, fh: int, cookie: int) -> Iterator[tuple[bytes, Inode, int]]:
        self._enter("readdir")
        node = self._file(fh)
        if cookie < 1:
            yield b".", node.inode, 1
        if cookie < 2:
            yield b"..", self._node(node.inode.parent).inode, 2
        for name, place in sorted(node.cookies.items(), key=lambda item: item[1]):
            if place > cookie:
                yield name, self._node(node.entries[name]).inode, place

    def releasedir(self, fh: int) -> None:
        self._enter("releasedir")
        del self._open[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._enter_async("fsyncdir")

    def statfs(self) -> StatVfs:
        self._enter("statfs")
        return StatVfs(4096, 4096, 1000, 900, 800, 70, 60, 50, NAME_MAX)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        self._enter("getxattr")
        node = self._node(ino)
        if name not in node.xattrs:
            raise FsError(errno.ENODATA)
        return node.xattrs[name]

    def setxattr(self, ino: int, name: bytes, value: bytes, who: Caller) -> None:
        self._enter("setxattr")
        self._node(ino).xattrs[name] = value
        self._node(ino).inode.flags |= HAS_XATTRS

    def listxattr(self, ino: int) -> list[bytes]:
        self._enter("listxattr")
        return list(self._node(ino).xattrs)

    def removexattr(self, ino: int, name: bytes) -> None:
        self._enter("removexattr")
        if self._node(ino).xattrs.pop(name, None) is None:
            raise FsError(errno.ENODATA)

    def remember(self, ino: int) -> None:
        self._enter("remember")
        self.references[ino] = self.references.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> None:
        self._enter("forget")
        self.references[ino] -= count
