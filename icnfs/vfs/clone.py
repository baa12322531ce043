"""Clones: a file or tree of the volume once more, in time that depends on its metadata, not on its contents.

A clone is what `cp -a` makes: contents, modes, owners, times, extended attributes, holes, symbolic links, and the hard
links within the tree.  It is as of one moment, whatever is written meanwhile, and it appears whole or not at all.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from icnfs.errors import FsError, IcnfsError
from icnfs.format.records import Entry
from icnfs.limits import LINK_MAX
from icnfs.state.copying import Copy
from icnfs.state.cut import begin_cut
from icnfs.state.inode import Inode
from icnfs.state.reader import Reader
from icnfs.vfs import acl
from icnfs.vfs.setid import SET_ID
from icnfs.vfs.tree import Tree

FOLD_SECONDS: Final = 2.0
"""What folding a file's patches may take before it is cloned: each clone would fold those that are left by itself."""


class Cloning(Tree):
    """The part of a `Vfs` that clones."""

    async def clone(
        self,
        source: int,
        parent: int,
        name: bytes,
        uid: int = 0,
        progress: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Clone inode `source` as `name` in `parent`, for `uid`; how many inodes that made.  Durable on return.

        Who is not root becomes the owner of what was another's, without set-id bits, and keeps only attributes that
        users may set.  EEXIST, ENOTDIR, ENAMETOOLONG; ESTALE where `source` is gone; EINVAL for a directory that is to
        be cloned into itself; EPERM for a device, unless for root; EROFS, ENOSPC, and `FormatError` where a record of
        the original cannot be read.  Then nothing was made.
        """
        self._check_free(parent, name)
        node = self._store.inode(source)
        if node.is_dir:
            self._refuse_within(source, parent)
        else:
            await self._fold_first(node)
        with self._store.keeping():
            cut = await begin_cut(self._store)
            try:
                if cut.reader.inode(source) is None:  # its last name went meanwhile
                    raise FsError(errno.ESTALE)
                return await self.copy_from(cut.reader, source, parent, name, uid, progress)
            finally:
                cut.close()

    async def copy_from(
        self, reader: Reader, source: int, parent: int, name: bytes, uid: int, progress: Callable[[int], None]
    ) -> int:
        """As `clone`, from a state that holds still, of which all that it names is kept.

        `DamagedError` where something of it is not.
        """
        self._check_free(parent, name)
        copy = Copy(self._store, reader, partial(_adapt, uid), progress)
        try:
            await copy.run(source, self._clock.now())
            await self._store.wait_room(growing=False)
            self._check_free(parent, name)
            self._appear(copy, parent, name)
        except BaseException:
            if copy.top:
                self._store.abandon(copy.top)
            raise
        await self._store.persist()
        return copy.entries

    def _check_free(self, parent: int, name: bytes) -> None:
        """Raise where `name` cannot be made in `parent`."""
        self._writable()
        self._parent_for(parent, name)
        if self._store.find(parent, name) is not None:
            raise FsError(errno.EEXIST)

    def _appear(self, copy: Copy, parent: int, name: bytes) -> None:
        """Give a copy that is complete its name."""
        store = self._store
        if store.inode(copy.top).is_dir and store.inode(parent).nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        cookie = store.free_cookie(parent, name)
        node = store.edit(copy.top)
        if node.is_dir:
            node.nlink, node.parent = 2 + copy.subdirs, parent
        else:
            node.nlink = 1
        store.set_orphan(node.ino, False)
        store.replace_name(parent, Entry(cookie, node.ino, node.kind, name))
        self._entered(parent, self._clock.now(), 1, node.is_dir)

    def _refuse_within(self, source: int, parent: int) -> None:
        """EINVAL where `parent` is `source` or lies beneath it; ELOOP where parents lead round in a circle."""
        if self._lies_within(parent, source):
            raise FsError(errno.EINVAL)

    async def _fold_first(self, node: Inode) -> None:
        """Fold a file's patches as far as that goes quickly."""
        contents = self._store.contents
        deadline = trio.current_time() + FOLD_SECONDS
        for index in sorted(set(self._store.reader.patched_in(node.ino))):
            if trio.current_time() >= deadline or self._store.congested or not self._store.has_inode(node.ino):
                return
            try:
                await contents.fold(node.ino, index, deadline)
            except IcnfsError:
                return
            await trio.lowlevel.checkpoint()


def _adapt(uid: int, node: Inode, xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What of an original's inode and attributes a copy for `uid` keeps."""
    if uid == 0:
        return xattrs
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        raise FsError(errno.EPERM)
    if node.uid != uid:
        node.uid, node.mode = uid, node.mode & ~SET_ID
    return {name: value for name, value in xattrs.items() if name.startswith(b"user.") or name in acl.NAMES}
