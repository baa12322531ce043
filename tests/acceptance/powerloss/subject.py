"""The state under test, in this process: a store and the POSIX layer over it, with neither mount nor providers."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from icnfs.crypto.keys import MasterKey, Secret
from icnfs.state.loader import ROOT_INO, create
from icnfs.state.store import Store
from icnfs.state.upkeep import Budget, Upkeep
from icnfs.vfs.attributes import SetAttr
from icnfs.vfs.rename import RENAME_EXCHANGE
from icnfs.vfs.vfs import Vfs
from tests.acceptance.model import Entry, Request, content_digest, written

MASTER: Final = MasterKey(Secret(bytes(range(32))))
VOLUME: Final = bytes(range(16))
_READ: Final = 1 << 20
_NO_ROOM: Final = 1 << 40


def make(root: Path) -> None:
    """An empty state in `root`."""
    create(root, VOLUME, MASTER)


@asynccontextmanager
async def opened(root: Path, *, read_only: bool = False) -> AsyncIterator[Subject]:
    """The state in `root`, running; closed at the end."""
    store = Store.open(root, MASTER)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            nursery.start_soon(Upkeep(store, Budget(reserve=0)).run)
            yield Subject(store, Vfs(store, lambda: _NO_ROOM, nursery=nursery, read_only=read_only))
            nursery.cancel_scope.cancel()
    finally:
        await store.close()


class Subject:
    """Carries out requests by path; each changes the state in one stretch, as the same request of a kernel would."""

    def __init__(self, store: Store, vfs: Vfs) -> None:
        self.store = store
        self.vfs = vfs

    async def apply(self, request: Request) -> None:
        verb, *arguments = request
        await getattr(self, f"_do_{verb}")(*arguments)

    # --- paths -----------------------------------------------------------------------------------------------------

    def ino(self, path: str) -> int:
        at = ROOT_INO
        for name in path.split("/") if path else ():
            at = self.vfs.lookup(at, name.encode()).ino
        return at

    def _place(self, path: str) -> tuple[int, bytes]:
        folder, _, name = path.rpartition("/")
        return self.ino(folder), name.encode()

    # --- requests --------------------------------------------------------------------------------------------------

    async def _do_create(self, path: str, mode: int) -> None:
        handle, _ = self.vfs.create(*self._place(path), stat.S_IFREG | mode, os.O_WRONLY, 0, 0)
        self.vfs.release(handle.fh)

    async def _do_mkdir(self, path: str, mode: int) -> None:
        self.vfs.mkdir(*self._place(path), stat.S_IFDIR | mode, 0, 0)

    async def _do_symlink(self, target: str, path: str) -> None:
        self.vfs.symlink(*self._place(path), target.encode(), 0, 0)

    async def _do_link(self, old: str, new: str) -> None:
        self.vfs.link(self.ino(old), *self._place(new))

    async def _do_write(self, path: str, offset: int, size: int, seed: int) -> None:
        handle = self.vfs.open(self.ino(path), os.O_WRONLY)
        try:
            await self.vfs.write(handle.fh, offset, written(seed, size))
        finally:
            self.vfs.release(handle.fh)

    async def _do_truncate(self, path: str, size: int) -> None:
        self.vfs.setattr(self.ino(path), SetAttr(size=size))

    async def _do_chmod(self, path: str, mode: int) -> None:
        self.vfs.setattr(self.ino(path), SetAttr(mode=mode))

    async def _do_setxattr(self, path: str, name: str, seed: int, size: int) -> None:
        self.vfs.setxattr(self.ino(path), name.encode(), written(seed, size))

    async def _do_unlink(self, path: str) -> None:
        self.vfs.unlink(*self._place(path))

    async def _do_rmdir(self, path: str) -> None:
        self.vfs.rmdir(*self._place(path))

    async def _do_rename(self, old: str, new: str) -> None:
        self.vfs.rename(*self._place(old), *self._place(new))

    async def _do_exchange(self, one: str, two: str) -> None:
        self.vfs.rename(*self._place(one), *self._place(two), RENAME_EXCHANGE)

    async def _do_fsync(self, path: str) -> None:
        handle = self.vfs.open(self.ino(path), os.O_RDONLY)
        try:
            await self.vfs.fsync(handle.fh, datasync=False)
        finally:
            self.vfs.release(handle.fh)

    async def _do_fsyncdir(self, path: str) -> None:
        fh = self.vfs.opendir(self.ino(path))
        try:
            await self.vfs.fsyncdir(fh, datasync=False)
        finally:
            self.vfs.releasedir(fh)

    # --- reading back ----------------------------------------------------------------------------------------------

    async def read_tree(self) -> dict[str, Entry]:
        """Every name and what it shows."""
        found: dict[str, Entry] = {}
        pending = [("", ROOT_INO)]
        while pending:
            folder, ino = pending.pop()
            fh = self.vfs.opendir(ino)
            listed = [(name.decode(), node.ino) for name, node, _ in self.vfs.readdir(fh, 0)]
            self.vfs.releasedir(fh)
            for name, child in listed:
                if name in (".", ".."):
                    continue
                path = f"{folder}/{name}" if folder else name
                found[path] = await self._entry(child)
                if stat.S_ISDIR(found[path].mode):
                    pending.append((path, child))
        return found

    async def _entry(self, ino: int) -> Entry:
        node = self.vfs.getattr(ino)
        content = b""
        if stat.S_ISREG(node.mode):
            content = content_digest(await self._read(ino, node.size))
        elif stat.S_ISLNK(node.mode):
            content = self.vfs.readlink(ino)
        names = sorted(self.vfs.listxattr(ino))
        return Entry(node.mode, node.nlink, content, tuple((n.decode(), self.vfs.getxattr(ino, n)) for n in names))

    async def _read(self, ino: int, size: int) -> bytes:
        handle = self.vfs.open(ino, os.O_RDONLY)
        try:
            return b"".join([await self.vfs.read(handle.fh, at, _READ) for at in range(0, size, _READ)])
        finally:
            self.vfs.release(handle.fh)
