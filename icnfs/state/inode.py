"""An inode as the volume keeps it, and its record.

Instances are versions: once the batch that changed one is closed, it is never changed again (`Store.edit` copies), so
the committer thread may encode it while requests go on.

| field  | bytes | meaning                                             |
|--------|-------|-----------------------------------------------------|
| layout | 1     | 1                                                   |
| mode   | 4     | st_mode, type and permissions                       |
| uid    | 4     |                                                     |
| gid    | 4     |                                                     |
| nlink  | 4     |                                                     |
| flags  | 4     | bit 0: has xattrs                                   |
| size   | 8     | bytes (of a symlink: of its target)                 |
| atime, mtime, ctime, btime | 4 x 8 | nanoseconds since 1970, signed  |
| rdev   | 8     | st_rdev                                             |
| key id | 8     | file key of the contents; 0: none yet               |
| parent | 8     | of a directory: its parent; else 0                  |
| count  | 8     | of a directory: its entries; of a file: its chunks  |
| target | rest  | of a symlink: its target                            |
"""

from __future__ import annotations

import stat
from struct import Struct
from struct import error as struct_error
from typing import Final

from icnfs.errors import FormatError, NewerFormatError
from icnfs.limits import CHUNK_SIZE, FILE_SIZE_MAX, LINK_MAX, SYMLINK_MAX

_LAYOUT: Final = 1
_INODE: Final = Struct(">BIIIIIQqqqqQQQQ")

COUNT_MAX: Final = 2**62
"""More chunks or entries than there can be; what one adds still fits into a record."""

HAS_XATTRS: Final = 1


class Inode:
    """One state of one inode.  `batch` is the number of the batch that made it, 0 as read from LMDB."""

    __slots__ = (
        "atime",
        "batch",
        "btime",
        "count",
        "ctime",
        "flags",
        "gid",
        "ino",
        "key_id",
        "mode",
        "mtime",
        "nlink",
        "parent",
        "rdev",
        "size",
        "target",
        "uid",
    )

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.nlink = 1
        self.flags = 0
        self.size = 0
        self.atime = self.mtime = self.ctime = self.btime = now
        self.rdev = 0
        self.key_id = 0
        self.parent = 0
        self.count = 0
        self.target = b""
        self.batch = 0

    @property
    def blocks(self) -> int:
        """st_blocks: 512-byte units that the contents take; holes take none."""
        kind = self.mode & 0o170000
        if kind == 0o100000:
            held = self.count * CHUNK_SIZE
            return ((held if held < self.size else self.size) + 511) >> 9
        return 8 if kind == 0o040000 else 0

    @property
    def is_dir(self) -> bool:
        return (self.mode & 0o170000) == 0o040000

    @property
    def is_file(self) -> bool:
        return (self.mode & 0o170000) == 0o100000

    @property
    def kind(self) -> int:
        """The type bits as a names record holds them."""
        return self.mode >> 12

    def copy(self, batch: int) -> Inode:
        """The same state, to be changed in `batch`."""
        new = Inode.__new__(Inode)
        new.ino = self.ino
        new.mode = self.mode
        new.uid = self.uid
        new.gid = self.gid
        new.nlink = self.nlink
        new.flags = self.flags
        new.size = self.size
        new.atime = self.atime
        new.mtime = self.mtime
        new.ctime = self.ctime
        new.btime = self.btime
        new.rdev = self.rdev
        new.key_id = self.key_id
        new.parent = self.parent
        new.count = self.count
        new.target = self.target
        new.batch = batch
        return new

    def pack(self) -> bytes:
        return (
            _INODE.pack(
                _LAYOUT,
                self.mode,
                self.uid,
                self.gid,
                self.nlink,
                self.flags,
                self.size,
                self.atime,
                self.mtime,
                self.ctime,
                self.btime,
                self.rdev,
                self.key_id,
                self.parent,
                self.count,
            )
            + self.target
        )

    @staticmethod
    def unpack(ino: int, plain: bytes) -> Inode:
        """Total: `FormatError` for anything that `pack` does not make."""
        new = Inode.__new__(Inode)
        new.ino = ino
        new.batch = 0
        try:
            (
                layout,
                new.mode,
                new.uid,
                new.gid,
                new.nlink,
                new.flags,
                new.size,
                new.atime,
                new.mtime,
                new.ctime,
                new.btime,
                new.rdev,
                new.key_id,
                new.parent,
                new.count,
            ) = _INODE.unpack_from(plain)
        except struct_error:
            raise FormatError(f"the record of inode {ino} is cut short") from None
        if layout != _LAYOUT:
            raise NewerFormatError(f"the record of inode {ino} has layout {layout}; upgrade icnfs to read it")
        new.target = plain[_INODE.size :]
        if (
            stat.S_IFMT(new.mode) not in _KINDS
            or new.size > FILE_SIZE_MAX
            or new.nlink > LINK_MAX
            or new.count > COUNT_MAX
        ):
            raise FormatError(f"the record of inode {ino} describes no file that there can be")
        if (stat.S_ISLNK(new.mode) and not 0 < len(new.target) <= SYMLINK_MAX) or (
            new.target and not stat.S_ISLNK(new.mode)
        ):
            raise FormatError(f"the record of inode {ino} has a target that it cannot have")
        return new


_KINDS: Final = frozenset(
    (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
)
