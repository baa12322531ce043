"""Inodes, names, attributes and settings: the newest state of each record, and its change in the open batch.

Every method but `put_setting` is synchronous and atomic.  What is read lies in the overlay or in the snapshot beneath;
an inode that is kept in memory is always the newest.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from icnfs.errors import FsError
from icnfs.format.records import RANKS, Entry
from icnfs.state.batch import Batch, Overlay
from icnfs.state.contents import Contents
from icnfs.state.inode import Inode
from icnfs.state.names import Beneath
from icnfs.state.reader import Reader


class Records(ABC):
    """The records side of a `Store`, which fills these in and commits what is changed here."""

    overlay: Overlay
    reader: Reader
    beneath: Beneath
    contents: Contents
    batch: Batch
    files: int
    bytes_used: int
    _next_ino: int
    _inodes: dict[int, Inode | None]

    @abstractmethod
    def touch(self) -> None:
        """The open batch has changes."""

    @abstractmethod
    def _trim_inodes(self) -> None:
        """Forget some of the unchanged inodes where too many are kept in memory."""

    @abstractmethod
    async def flush(self) -> int:
        """Everything accepted is durable on return: the number of the batch that holds the last of it."""

    def new_ino(self) -> int:
        ino = self._next_ino
        self._next_ino = ino + 1
        return ino

    # --- inodes -----------------------------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode:
        """The newest state; raises ESTALE where there is no such inode."""
        try:
            node = self._inodes[ino]
        except KeyError:
            node = self.reader.inode(ino)
            if node is not None:
                self._trim_inodes()  # before it: it may be edited; and here: a listing of millions commits nothing
                self._inodes[ino] = node
        if node is None:
            raise FsError(errno.ESTALE)
        return node

    def has_inode(self, ino: int) -> bool:
        if ino in self._inodes:
            return self._inodes[ino] is not None
        return self.reader.inode(ino) is not None

    def edit(self, ino: int) -> Inode:
        """The inode, to be changed in the open batch."""
        node = self.inode(ino)
        batch = self.batch
        if node.batch != batch.number:
            if node.batch:
                node = self._inodes[ino] = node.copy(batch.number)
            else:
                node.batch = batch.number  # as it was read: no batch has it
            batch.inodes[ino] = node
            self.touch()
        return node

    def new_inode(self, mode: int, uid: int, gid: int, now: int) -> Inode:
        node = Inode(self.new_ino(), mode, uid, gid, now)
        node.batch = self.batch.number
        self._inodes[node.ino] = node
        self.batch.inodes[node.ino] = node
        self.files += 1
        self.touch()
        return node

    def drop_inode(self, ino: int) -> None:
        """The inode goes: its record, contents and attributes."""
        node = self.edit(ino)
        if node.is_file:
            self.bytes_used -= node.blocks << 9
        self.files -= 1
        self.contents.drop(node)
        if node.flags:
            self.set_xattrs(node, {})
        self.batch.inodes[ino] = None
        self._inodes[ino] = None
        self.set_orphan(ino, False)

    def set_orphan(self, ino: int, orphan: bool) -> None:
        """Note that nothing but open handles keeps the inode, or no longer so."""
        self.batch.orphans[ino] = orphan
        self.touch()

    # --- names ------------------------------------------------------------------------------------------------------

    def find(self, parent: int, name: bytes) -> Entry | None:
        first, beneath = self.beneath.place(parent, name)
        changed = self.overlay.names.get(parent)
        if changed is not None:
            entry = changed.find(first, name)
            if entry is not None:
                return entry
        for entry in beneath:
            if entry.name == name:
                return entry if changed is None or entry.cookie not in changed else None
        return None

    def add_name(self, parent: int, name: bytes, ino: int, kind: int) -> Entry:
        """Name an inode; the caller has seen that the name is free.  ENOSPC as `free_cookie`."""
        return self.replace_name(parent, Entry(self.free_cookie(parent, name), ino, kind, name))

    def free_cookie(self, parent: int, name: bytes) -> int:
        """Where a new name goes; ENOSPC where 16 names of one hash meet, which a keyed hash of 59 bits hardly allows.

        A request that changes more than the name asks first: it must change all or nothing.
        """
        first, beneath = self.beneath.place(parent, name)
        changed: Mapping[int, Entry | None] = self.overlay.names.get(parent, {})
        if not beneath and changed.get(first) is None:
            return first
        taken = {entry.cookie for entry in beneath}
        for cookie in range(first, first + RANKS):
            present = changed[cookie] is not None if cookie in changed else cookie in taken
            if not present:
                return cookie
        raise FsError(errno.ENOSPC)

    def replace_name(self, parent: int, entry: Entry) -> Entry:
        """Put an entry at its cookie, whatever was there under the same name."""
        self.batch.names[parent, entry.cookie] = entry
        self.overlay.set_name(parent, entry.cookie, entry)
        self.touch()
        return entry

    def remove_name(self, parent: int, entry: Entry) -> None:
        self.batch.names[parent, entry.cookie] = None
        self.overlay.set_name(parent, entry.cookie, None)
        self.touch()

    def entries(self, parent: int, cookie: int) -> Iterator[Entry]:
        """Entries with cookies of at least `cookie`, in order.  Valid until an await."""
        beneath = self.reader.entries(parent, cookie)
        changed = self.overlay.names.get(parent)
        return beneath if changed is None else _merged(beneath, changed.since(cookie))

    # --- attributes and settings --------------------------------------------------------------------------------------

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """All extended attributes; not to be changed by the caller."""
        if ino in self.overlay.xattrs:
            return self.overlay.xattrs[ino] or {}
        return self.reader.xattrs(ino)

    def set_xattrs(self, node: Inode, xattrs: dict[bytes, bytes]) -> None:
        """Replace all attributes of an edited inode."""
        node.flags = 1 if xattrs else 0
        self.batch.xattrs[node.ino] = xattrs or None
        self.overlay.xattrs[node.ino] = xattrs or None
        self.touch()

    def get_setting(self, name: str) -> bytes | None:
        """A small document of the volume, kept locally and sealed."""
        if name in self.overlay.settings:
            return self.overlay.settings[name]
        return self.reader.setting(name)

    async def put_setting(self, name: str, document: bytes | None) -> None:
        """Durable on return."""
        self.batch.settings[name] = document
        self.overlay.settings[name] = document
        self.touch()
        await self.flush()


def _merged(beneath: Iterator[Entry], changed: Iterator[tuple[int, Entry | None]]) -> Iterator[Entry]:
    """Both streams are sorted; where they meet, `changed` counts."""
    ahead = next(changed, None)
    for entry in beneath:
        while ahead is not None and ahead[0] < entry.cookie:
            if ahead[1] is not None:
                yield ahead[1]
            ahead = next(changed, None)
        if ahead is not None and ahead[0] == entry.cookie:
            continue
        yield entry
    while ahead is not None:
        if ahead[1] is not None:
            yield ahead[1]
        ahead = next(changed, None)
