"""A second tree that names the contents of a first: what a clone makes, and bringing back a snapshot's files.

The copy grows out of sight, beneath an inode that no name leads to and that is noted as an orphan, in batches like
those of requests, so that these go on; whoever asked for it names it at the end.  A copy that is given up, or that a
crash interrupts, is removed by upkeep (`remove`).  Contents are not read: the copy's rows name the versions of the
original's, which are marked in the same commit (`marks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Final

import trio

from icnfs.errors import DamagedError
from icnfs.format.records import PAIR, TRIPLE, U64, ChunkRecord, Entry, Patch, Table, unpack_patch
from icnfs.limits import MIB
from icnfs.state.batch import Cut
from icnfs.state.inode import Inode
from icnfs.state.marks import Named, put_copies
from icnfs.state.reader import Reader
from icnfs.state.store import Store

ROWS_STEP: Final = 1000
PATCHES_STEP: Final = MIB
"""Rows that one commit names again, and bytes of patches in them: some 30 ms of the committer's time."""

INLINE_MAX: Final = 64
"""Chunks of a file whose rows are read at once; those of larger ones in a thread."""

ENTRIES_STEP: Final = 64
"""Entries made or removed before requests have their turn: about 5 ms."""


class Copy:
    """One copy of a file or tree.  `run` makes it from the rows of `reader`, a state that holds still.

    `adapt` changes what is to differ of an inode and gives the attributes that it keeps; it may raise `FsError`.
    `progress` is told how many entries there are so far.
    """

    def __init__(
        self,
        store: Store,
        reader: Reader,
        adapt: Callable[[Inode, dict[bytes, bytes]], dict[bytes, bytes]],
        progress: Callable[[int], None],
    ) -> None:
        self._store = store
        self._reader = reader
        self._adapt = adapt
        self._progress = progress
        self.top = 0
        """The copy's first inode, once there is one; it has no links yet."""
        self.entries = 0
        self.subdirs = 0
        """Directories right in the first inode."""
        self._links: dict[int, int] = {}
        self._directories: set[int] = set()
        """Those of the original that were met."""
        self._cuts: dict[int, list[Cut]] = {}
        for ino, first, bound in reader.tombstones():
            self._cuts.setdefault(ino, []).append(Cut(ino, first, bound))
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._chunks: list[tuple[bytes, ChunkRecord]] = []
        self._patches: list[tuple[bytes, Patch]] = []
        self._patch_bytes = 0
        self._keys: dict[int, bytes] = {}

    async def run(self, ino: int, now: int) -> None:
        """Copy inode `ino` and all beneath it; durable on return, but for the entries made last.

        Raises ESTALE where there is no such inode, what `Store.wait_room` and `put_copies` do, and `FormatError` where
        a record cannot be read; `top` is to be abandoned then.
        """
        top = self._make(ino, 0, now)
        self.top = top.ino
        top.nlink = 0
        self._store.set_orphan(top.ino, True)
        await self._contents(ino, top)
        waiting = [(ino, top.ino)] if top.is_dir else []
        while waiting:
            source, target = waiting.pop()
            await self._directory(source, target, now, waiting)
        await self._put_rows()

    async def _directory(self, source: int, target: int, now: int, waiting: list[tuple[int, int]]) -> None:
        for number, entry in enumerate(self._reader.entries(source, 0)):
            if number % ENTRIES_STEP == 0:
                await trio.lowlevel.checkpoint()
            if self._store.congested:
                await self._store.wait_room(growing=False)
            linked = self._links.get(entry.ino)
            if linked is not None:
                self._store.edit(linked).nlink += 1
                self._name(target, entry, linked)
                continue
            node = self._make(entry.ino, target, now)
            self._name(target, entry, node.ino)
            if node.is_dir:
                waiting.append((entry.ino, node.ino))
            await self._contents(entry.ino, node)

    def _make(self, ino: int, parent: int, now: int) -> Inode:
        """A new inode like `ino`."""
        store, old = self._store, self._reader.inode(ino)
        if old is None:
            raise DamagedError(f"inode {ino} has a name and no record")
        xattrs = self._adapt(old, self._reader.xattrs(ino) if old.flags else {})
        node = store.new_inode(old.mode, old.uid, old.gid, now)
        node.atime, node.mtime = old.atime, old.mtime
        node.size, node.rdev, node.target = old.size, old.rdev, old.target
        if node.is_dir:
            if ino in self._directories:
                raise DamagedError(f"directory {ino} has more than one name")
            self._directories.add(ino)
            node.nlink, node.parent = 2, parent
        elif node.is_file:
            node.count = old.count
            store.bytes_used += node.blocks << 9
        if xattrs:
            store.set_xattrs(node, xattrs)
        if not node.is_dir and old.nlink > 1:
            self._links[ino] = node.ino
        self.entries += 1
        self._progress(self.entries)
        return node

    def _name(self, parent: int, entry: Entry, ino: int) -> None:
        store = self._store
        store.add_name(parent, entry.name, ino, entry.kind)
        directory = store.edit(parent)
        directory.count += 1
        if entry.kind == _DIRECTORY:
            if parent == self.top:
                self.subdirs += 1
            else:
                directory.nlink += 1

    # --- contents -----------------------------------------------------------------------------------------------------

    async def _contents(self, source: int, node: Inode) -> None:
        """Name the chunks and patches of `source` as those of the copy's file."""
        if not node.is_file or not node.count:
            return
        target = node.ino
        chunks, patches = self._chunks_of(source), self._patches_of(source)
        if node.count <= INLINE_MAX:
            await self._take(target, list(chunks), list(patches))
            return
        while some := await trio.to_thread.run_sync(lambda: list(islice(chunks, ROWS_STEP))):
            await self._take(target, some, [])
        while more := await trio.to_thread.run_sync(lambda: list(islice(patches, INLINE_MAX))):
            await self._take(target, [], more)

    async def _take(self, ino: int, chunks: list[tuple[int, ChunkRecord]], patches: list[tuple[int, Patch]]) -> None:
        for index, record in chunks:
            self._chunks.append((PAIR.pack(ino, index), record))
            if record.key_id not in self._keys:
                self._keys[record.key_id] = self._file_key(record.key_id)
        for index, patch in patches:
            self._patches.append((TRIPLE.pack(ino, index, patch.version), patch))
            self._patch_bytes += len(patch.data)
        if len(self._chunks) + len(self._patches) >= ROWS_STEP or self._patch_bytes >= PATCHES_STEP:
            await self._put_rows()

    def _file_key(self, key_id: int) -> bytes:
        found = self._reader.file_key(key_id)
        if found is None:
            raise DamagedError(f"file key {key_id} is missing")
        return found[0]

    def _chunks_of(self, ino: int) -> Iterator[tuple[int, ChunkRecord]]:
        for index, record in self._reader.chunks(ino):
            if self._is_alive(ino, index, record.version):
                yield index, record

    def _patches_of(self, ino: int) -> Iterator[tuple[int, Patch]]:
        """(index, patch) of an inode's patches that no tombstone killed."""
        for key, _ in self._reader.rows(Table.PATCHES, prefix=U64.pack(ino)):
            _, index, version = TRIPLE.unpack(key)
            plain = self._reader.get(Table.PATCHES, key)
            if plain is not None and self._is_alive(ino, index, version):
                yield index, unpack_patch(version, plain)

    def _is_alive(self, ino: int, index: int, version: int) -> bool:
        return not any(index >= cut.first and version <= cut.bound for cut in self._cuts.get(ino, ()))

    async def _put_rows(self) -> None:
        """Commit the rows that were gathered, after the inodes whose they are."""
        rows = Named(self._chunks, self._patches, self._keys)
        self._forget_rows()
        if rows.chunks or rows.patches:
            self._store.close_batch()
            await self._store.task(partial(put_copies, rows))


_DIRECTORY: Final = 0o040000 >> 12


async def remove(store: Store, top: int) -> None:
    """Remove an inode that no name leads to, and all beneath it, in steps; interrupted, it is gone on with."""
    if not store.has_inode(top) or store.inode(top).nlink:
        store.set_orphan(top, False)
        return
    path: list[tuple[int, Entry | None]] = [(top, None)]
    while path:
        if store.congested:
            await store.wait_room(growing=False)
        await trio.lowlevel.checkpoint()
        ino, named = path[-1]
        inner = _remove_some(store, ino, {each for each, _ in path})
        if inner is not None:
            path.append((inner.ino, inner))
        elif next(store.entries(ino, 0), None) is None:
            path.pop()
            if named is not None:
                store.remove_name(path[-1][0], named)
            store.drop_inode(ino)


def _remove_some(store: Store, ino: int, path: set[int]) -> Entry | None:
    """Remove some entries of a directory; one that is a directory is given instead."""
    for entry in list(islice(store.entries(ino, 0), ENTRIES_STEP)):
        if not store.has_inode(entry.ino) or entry.ino in path:
            store.remove_name(ino, entry)
            continue
        if store.inode(entry.ino).is_dir:
            return entry
        store.remove_name(ino, entry)
        node = store.edit(entry.ino)
        node.nlink = max(node.nlink - 1, 0)
        if not node.nlink:
            store.drop_inode(entry.ino)
    return None
