"""POSIX rename in all its cases, and Linux renameat2's two flags.  Every method is atomic."""

from __future__ import annotations

import errno
from typing import Final

from icnfs.errors import FsError
from icnfs.format.records import Entry
from icnfs.state.inode import Inode
from icnfs.vfs.tree import Tree

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class Renaming(Tree):
    """The part of a `Vfs` that renames."""

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
        now = self._clock.now()
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
        now = self._clock.now()
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
        """EINVAL where a directory would become its own descendant; ELOOP where parents lead round in a circle."""
        if node.is_dir and self._lies_within(new_parent, node.ino):
            raise FsError(errno.EINVAL)

    @staticmethod
    def _refuse_replace(node: Inode, target: Inode) -> None:
        if target.is_dir:
            if not node.is_dir:
                raise FsError(errno.EISDIR)
            if target.count:
                raise FsError(errno.ENOTEMPTY)
        elif node.is_dir:
            raise FsError(errno.ENOTDIR)
