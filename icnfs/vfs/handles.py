"""Open files and directories, and what the kernel remembers of inodes.

An inode whose last name is gone lives on while a handle is open or the kernel holds a reference; `Handles` knows both
counts and nothing else.
"""

from __future__ import annotations

import errno

from icnfs.errors import FsError


class Handle:
    """One open file or directory."""

    __slots__ = ("cold", "expected", "fh", "flags", "ino", "keep_cache", "streak")

    def __init__(self, fh: int, ino: int, flags: int, keep_cache: bool) -> None:
        self.fh = fh
        self.ino = ino
        self.flags = flags
        self.keep_cache = keep_cache
        """Whether the kernel's pages of the file may serve this handle."""
        self.expected = 0
        """Where the next read begins if reading is sequential."""
        self.streak = 0
        self.cold = False
        """Whether the last read had to wait for a provider."""


class Handles:
    """Open handles by number, and reference counts by inode."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._opens: dict[int, int] = {}
        self._references: dict[int, int] = {}
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

    def remember(self, ino: int) -> None:
        """The kernel was given one more reference."""
        self._references[ino] = self._references.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> None:
        """The kernel gave `count` references back."""
        left = self._references.get(ino, 0) - count
        if left > 0:
            self._references[ino] = left
        else:
            self._references.pop(ino, None)

    def in_use(self, ino: int) -> bool:
        """Whether anybody could still ask for the inode."""
        return ino in self._references or ino in self._opens
