"""Open files and directories, and what the kernel remembers of inodes.

An inode whose last name is gone lives on while a handle is open or the kernel holds a reference; `Handles` knows both
counts and nothing else.
"""

from __future__ import annotations

import errno
import os
from array import array
from typing import Final

from icnfs.errors import FsError
from icnfs.vfs.sequence import Sequence

BLOCK_BITS: Final = 10
BLOCK_MASK: Final = (1 << BLOCK_BITS) - 1


class Handle:
    """One open file or directory."""

    __slots__ = ("fh", "flags", "ino", "keep_cache", "sequence")

    def __init__(self, fh: int, ino: int, flags: int, keep_cache: bool) -> None:
        self.fh = fh
        self.ino = ino
        self.flags = flags
        self.keep_cache = keep_cache
        """Whether the kernel's pages of the file may serve this handle."""
        self.sequence = Sequence()
        """Of its reads, those that had to wait for a provider."""


class References:
    """How many references the kernel holds to each inode.

    It may hold a million after one listing, and inode numbers lie close together: counts in blocks take 4 bytes an
    inode where a dictionary took 90.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, array[int]] = {}
        self._live: dict[int, int] = {}

    def __contains__(self, ino: int) -> bool:
        block = self._blocks.get(ino >> BLOCK_BITS)
        return block is not None and block[ino & BLOCK_MASK] > 0

    def __len__(self) -> int:
        """Inodes referred to."""
        return sum(self._live.values())

    def add(self, ino: int) -> None:
        """One more."""
        at = ino >> BLOCK_BITS
        block = self._blocks.get(at)
        if block is None:
            block = self._blocks[at] = array("I", bytes(4 << BLOCK_BITS))
            self._live[at] = 0
        held = block[ino & BLOCK_MASK]
        if not held:
            self._live[at] += 1
        block[ino & BLOCK_MASK] = held + 1

    def drop(self, ino: int, count: int) -> None:
        """`count` fewer, but never fewer than none."""
        at = ino >> BLOCK_BITS
        block = self._blocks.get(at)
        held = block[ino & BLOCK_MASK] if block is not None else 0
        if block is None or not held:
            return
        block[ino & BLOCK_MASK] = max(held - count, 0)
        if held <= count:
            self._live[at] -= 1
            if not self._live[at]:
                del self._blocks[at], self._live[at]


class Handles:
    """Open handles by number, and reference counts by inode."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._opens: dict[int, int] = {}
        self.references = References()
        """The kernel's."""
        self._next = 1

    def open(self, ino: int, flags: int, keep_cache: bool = False) -> Handle:
        handle = Handle(self._next, ino, flags, keep_cache)
        self._next += 1
        self._handles[handle.fh] = handle
        self._opens[ino] = self._opens.get(ino, 0) + 1
        return handle

    def get(self, fh: int) -> Handle:
        """Raises EBADF for a number that is not open."""
        try:
            return self._handles[fh]
        except KeyError:
            raise FsError(errno.EBADF) from None

    def release(self, fh: int) -> int:
        """Close; returns the inode."""
        handle = self.get(fh)
        del self._handles[fh]
        left = self._opens[handle.ino] - 1
        if left:
            self._opens[handle.ino] = left
        else:
            del self._opens[handle.ino]
        return handle.ino

    def is_written(self, ino: int) -> bool:
        """Whether a handle of the inode is open for writing; looks at all handles."""
        return ino in self._opens and any(
            handle.ino == ino and handle.flags & os.O_ACCMODE != os.O_RDONLY for handle in self._handles.values()
        )

    def in_use(self, ino: int) -> bool:
        """Whether anybody could still ask for the inode."""
        return ino in self.references or ino in self._opens
