"""What POSIX means, over a store: names, links, renames, times, open and unlinked files.

Every method that is not `async` is atomic: it changes the store in one stretch.  Permission bits are the kernel's
business (the mount always has default_permissions), and so are path walks; what POSIX asks of the file system itself
is here. Errors that are replies are `FsError` with POSIX's errno; anything else that is raised is a fault of the
store.

Rules come from POSIX.1-2024 and, where it leaves room, from what Linux's own file systems do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from icnfs.limits import NAME_MAX
from icnfs.vfs.attributes import Attributes
from icnfs.vfs.clone import Cloning
from icnfs.vfs.files import Files
from icnfs.vfs.rename import Renaming

STATFS_BLOCK: Final = 4096
FREE_INODES: Final = 2**40
"""Inodes are not a fixed table: as good as endless."""


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


class Vfs(Renaming, Attributes, Files, Cloning):
    """One mounted volume.  `free_bytes` tells what the providers have left; `nursery` runs read-ahead; `publish`
    is what an fsync waits for besides this machine's disk."""

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
