"""A chunk in memory: what it holds, as far as known, and what changed since it was last captured in a batch.

A hot chunk is in one of two modes.  *Whole*: `buffer` is the full contents (bytes past its end are zeros), `dirty` the
ranges that changed.  *Partial*: the contents beneath are not known here (they lie in LMDB or at the providers), and
`ops` lists the changes in order; nothing is read to write.  A capture turns the changes into patches, or, in whole
mode, into a sealing of the whole chunk.  Pure: knows nothing of LMDB or trio.
"""

from __future__ import annotations

from typing import Final

from icnfs.format.records import CUT, DATA
from icnfs.limits import CHUNK_SIZE, PATCH_LIMIT

Op = tuple[int, int, bytes]
"""(kind, offset, data) of a patch to be."""

OP_COST: Final = 64
"""Bytes that a patch costs besides its data, about."""


class HotChunk:
    """Contents of chunk `index` of inode `ino`; `patch_bytes` counts patches made since it was last sealed whole."""

    __slots__ = ("buffer", "cut_at", "dirty", "dirty_bytes", "filled", "index", "ino", "ops", "patch_bytes")

    def __init__(self, ino: int, index: int, buffer: bytearray | None, patch_bytes: int = 0) -> None:
        self.ino = ino
        self.index = index
        self.buffer = buffer
        self.patch_bytes = patch_bytes
        self.dirty: list[tuple[int, int]] = []
        self.ops: list[Op] = []
        self.cut_at: int | None = None
        self.dirty_bytes = 0
        self.filled = 0
        """Zeros before what was written, which take memory though nobody wrote them."""

    @property
    def weight(self) -> int:
        """Bytes that the changes take."""
        return self.dirty_bytes + self.filled

    @property
    def changed(self) -> bool:
        return bool(self.dirty or self.ops or self.cut_at is not None)

    @property
    def patch_limit(self) -> int:
        """Bytes of patches beyond which it is sealed whole: while it is in memory whole, reading it takes none."""
        return PATCH_LIMIT if self.buffer is None else CHUNK_SIZE

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put `data` at `offset`; the caller keeps it inside the chunk, and sees by how much `weight` grows."""
        end = offset + len(data)
        self.dirty_bytes += len(data)
        buffer = self.buffer
        if buffer is None:
            self.ops.append((DATA, offset, bytes(data)))
            return
        size = len(buffer)
        if offset == size:
            buffer += data
        else:
            if offset > size:
                buffer += bytes(offset - size)
                self.filled += offset - size
            buffer[offset:end] = data
        if self.dirty and self.dirty[-1][1] == offset:
            self.dirty[-1] = (self.dirty[-1][0], end)
        else:
            self.dirty.append((offset, end))

    def cut(self, offset: int) -> None:
        """Zeros from `offset` on."""
        if self.buffer is None:
            self.ops.append((CUT, offset, b""))
            self.dirty_bytes += OP_COST
            return
        if len(self.buffer) <= offset:
            return
        del self.buffer[offset:]
        self.cut_at = offset if self.cut_at is None else min(self.cut_at, offset)
        self.dirty = [(start, min(end, offset)) for start, end in self.dirty if start < offset]

    def take_ops(self) -> list[Op]:
        """The changes as patches in order; none are left."""
        if self.buffer is None:
            ops = self.ops
        else:
            ops = [] if self.cut_at is None else [(CUT, self.cut_at, b"")]
            view = memoryview(self.buffer)
            ops += [(DATA, start, bytes(view[start:end])) for start, end in merge(self.dirty)]
            view.release()
        self.clean()
        return ops

    def clean(self) -> None:
        """Forget what changed: it has been captured."""
        self.dirty = []
        self.ops = []
        self.cut_at = None
        self.dirty_bytes = self.filled = 0


def apply(beneath: bytes | memoryview | bytearray, ops: list[Op]) -> bytes:
    """`beneath` with patches applied in order."""
    buffer = bytearray(beneath)
    for kind, offset, data in ops:
        if kind == CUT:
            del buffer[offset:]
            continue
        if offset > len(buffer):
            buffer += bytes(offset - len(buffer))
        buffer[offset : offset + len(data)] = data
    return bytes(buffer)


def merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as sorted ranges that do not touch; empty ranges go."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if start == end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
