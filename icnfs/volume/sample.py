"""Which files a drill reads, and what their reading says of all.

Files fall into classes by size, since a small one costs a round trip and a large one bandwidth.  A sample takes the
same number from each class while it has any, so that small and large ones are met however few there are of either; in a
class every file is as likely as any other, and one seed draws one sample.  Of a large file a part is read.  What all
files would take is told class by class, by the rate at which the sample's were read.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

from icnfs.format.records import U64
from icnfs.limits import CHUNK_SIZE, KIB, MIB
from icnfs.state.inode import Inode
from icnfs.volume.losses import draw

BOUNDS: Final = (16 * KIB, 128 * KIB, MIB, 16 * MIB)
"""Bytes of the largest file of each class but the last."""

PART: Final = 128
"""Chunks that are read of a larger file in a sample, one after another: 16 MiB."""


@dataclass
class SizeClass:
    """Files of one class: how many, their bytes (holes left out), and what reading some of them took."""

    files: int = 0
    bytes: int = 0
    chosen: list[tuple[int, int]] = field(default_factory=list)
    """(rank, inode), a heap: those drawn first."""
    read_bytes: int = 0
    seconds: float = 0.0


class Sample:
    """A choice of `most` files, all of them if it is None.  Show it every file by `see`; then it knows `classes`."""

    def __init__(self, most: int | None, seed: int) -> None:
        self._most = most
        self._seed = seed
        self.classes = [SizeClass() for _ in range(len(BOUNDS) + 1)]

    def see(self, node: Inode) -> None:
        """One more file."""
        held = held_bytes(node)
        kind = self.classes[sum(held > bound for bound in BOUNDS)]
        kind.files += 1
        kind.bytes += held
        rank = -draw(self._seed, U64.pack(node.ino))
        if self._most is None or len(kind.chosen) < self._most:
            heapq.heappush(kind.chosen, (rank, node.ino))
        elif self._most and rank > kind.chosen[0][0]:
            heapq.heapreplace(kind.chosen, (rank, node.ino))

    def files(self) -> list[tuple[SizeClass, list[int]]]:
        """The inodes that are to be read, by class."""
        ranked = [sorted(kind.chosen, reverse=True) for kind in self.classes]
        left = sum(map(len, ranked)) if self._most is None else self._most
        take = [0] * len(ranked)
        while left > 0 and any(take[i] < len(ranked[i]) for i in range(len(ranked))):
            for i, each in enumerate(ranked):
                if left > 0 and take[i] < len(each):
                    take[i] += 1
                    left -= 1
        return [
            (kind, [ino for _, ino in each[:count]])
            for kind, each, count in zip(self.classes, ranked, take, strict=True)
        ]

    def bytes_of(self, held: int) -> int:
        """Bytes that are read of a file that holds so many."""
        return held if self._most is None else min(held, PART * CHUNK_SIZE)

    def part(self, ino: int, indexes: list[int]) -> list[int]:
        """Those of a file's chunks that are to be read: all, or in a sample PART in a row."""
        if self._most is None or len(indexes) <= PART:
            return indexes
        first = draw(self._seed, b"part" + U64.pack(ino)) % (len(indexes) - PART + 1)
        return indexes[first : first + PART]

    def all_seconds(self) -> float | None:
        """What reading all files would take; None where nothing was read and there is something to read.

        A class of which nothing was read is taken to be read at the rate of all that was.
        """
        read = sum(kind.read_bytes for kind in self.classes)
        if not read:
            return None if any(kind.bytes for kind in self.classes) else 0.0
        pace = sum(kind.seconds for kind in self.classes) / read
        return sum(kind.bytes * (kind.seconds / kind.read_bytes if kind.read_bytes else pace) for kind in self.classes)


def held_bytes(node: Inode) -> int:
    """Bytes of a file without its holes, about."""
    return min(node.size, node.count * CHUNK_SIZE)
