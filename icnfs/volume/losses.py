"""What the records of a volume say would be lost without some of its providers.

A segment is lost when fewer than k of its shares are noted as stored at the providers that are left, and bare when the
loss of one more owner could make it so.  Records tell what was stored, not what is still there: that is for reading to
show.  Segments are judged by the few sets of holders that they have, so that many sets of providers can be tried.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from icnfs.errors import FormatError
from icnfs.format.records import U64, Table
from icnfs.format.segment import SegmentInfo
from icnfs.state.inode import Inode
from icnfs.state.loader import ROOT_INO
from icnfs.state.reader import Reader
from icnfs.state.store import Store
from icnfs.volume.status import survives

log = logging.getLogger(__name__)

STEP: Final = 512
"""Records looked at between two turns of other tasks, some 10 us each."""

WITNESSES: Final = 16
"""Shares of each provider that are chosen to be read."""


@dataclass(frozen=True)
class Standing:
    """How many segments there are, are lost, are bare, and how many more owners may go before any is lost (-1: one
    is lost already)."""

    segments: int
    lost: int
    bare: int
    spare: int


class Holdings:
    """Who holds the segments of one published state; filled by `load`."""

    def __init__(self) -> None:
        self._groups: dict[tuple[object, ...], tuple[SegmentInfo, int]] = {}
        self.unreadable: set[bytes] = set()
        """Segments whose record is damaged."""
        self.witnesses: dict[str, list[SegmentInfo]] = {}
        """By provider, some segments of which it holds a share."""

    async def load(self, reader: Reader, parts: Iterable[SegmentInfo], seed: int) -> None:
        """Take in all segments of `reader`'s tables, and the `parts` of runs; `seed` chooses the witnesses."""
        chosen: dict[str, list[tuple[int, bytes, SegmentInfo]]] = {}
        for count, segment in enumerate(self._all(reader, parts)):
            if count % STEP == 0:
                await trio.lowlevel.checkpoint()
            holders = [share.provider for share in segment.shares if share.stored]
            key = (segment.k, *sorted(holders))
            self._groups[key] = (segment, self._groups.get(key, (segment, 0))[1] + 1)
            rank = -draw(seed, segment.id)
            for provider in holders:
                heap = chosen.setdefault(provider, [])
                if len(heap) < WITNESSES:
                    heapq.heappush(heap, (rank, segment.id, segment))
                elif rank > heap[0][0]:
                    heapq.heapreplace(heap, (rank, segment.id, segment))
        self.witnesses = {name: [segment for *_, segment in heap] for name, heap in chosen.items()}

    def _all(self, reader: Reader, parts: Iterable[SegmentInfo]) -> Iterator[SegmentInfo]:
        for part in parts:
            if reader.raw(Table.SEGMENTS, part.id) is None:
                yield part
        for key, _ in reader.rows(Table.SEGMENTS):
            try:
                segment = reader.segment(key)
            except FormatError as error:
                log.warning("segment %s: %s", key.hex(), error)
                self.unreadable.add(key)
            else:
                assert segment is not None
                yield segment

    def judge(self, owners: Mapping[str, str]) -> Standing:
        """The standing where these providers are left, each with its owner."""
        segments = lost = len(self.unreadable)
        bare, spare = 0, -1 if lost else len(owners)
        for segment, count in self._groups.values():
            left = survives(segment, dict(owners))
            segments += count
            lost += count * (left < 0)
            bare += count * (left == 0)
            spare = min(spare, left)
        return Standing(segments, lost, bare, spare)


def draw(seed: int, what: bytes) -> int:
    """A number of 64 bits that looks drawn, and is the same each time."""
    key = seed.to_bytes(8, "big")
    return int.from_bytes(hashlib.blake2b(what, digest_size=8, key=key).digest(), "big")


async def lost_segments(reader: Reader, owners: Mapping[str, str], unreadable: Collection[bytes]) -> set[bytes]:
    """The ids of the lost segments of contents."""
    lost = set(unreadable)
    holders = dict(owners)
    for count, (key, _) in enumerate(reader.rows(Table.SEGMENTS)):
        if count % STEP == 0:
            await trio.lowlevel.checkpoint()
        if key not in lost:
            segment = reader.segment(key)
            if segment is None or survives(segment, holders) < 0:
                lost.add(key)
    return lost


def files(reader: Reader) -> Iterator[Inode | int]:
    """Every regular file that has a name and contents; the number of an inode whose record is damaged."""
    for key, _ in reader.rows(Table.INODES):
        ino = U64.unpack(key)[0]
        try:
            node = reader.inode(ino)
        except FormatError:
            yield ino
            continue
        if node is not None and node.is_file and node.nlink and node.count:
            yield node


async def files_in(store: Store, lost: Collection[bytes]) -> dict[int, str]:
    """The files of which a chunk lies in a lost segment, or nowhere, by inode, with the reason."""
    found: dict[int, str] = {}
    for count, node in enumerate(files(store.reader)):
        if count % STEP == 0:
            await trio.lowlevel.checkpoint()
        if isinstance(node, Inode) and (why := _lacks(store, node.ino, lost)):
            found[node.ino] = why
    return found


def _lacks(store: Store, ino: int, lost: Collection[bytes]) -> str:
    try:
        for index, record, _ in store.chunk_rows(ino):
            if record is not None:
                location = store.locate(record.version)
                if location is None:
                    return f"chunk {index} is said to lie nowhere"
                if location.segment in lost:
                    return f"chunk {index}: too few shares of segment {location.segment.hex()} would be left"
    except FormatError as error:
        return str(error)
    return ""


async def paths_of(reader: Reader, wanted: Collection[int]) -> dict[int, str]:
    """A path, from the root of the tree, of each inode of `wanted` that has one that can be read."""
    found: dict[int, str] = {}
    waiting = [(ROOT_INO, b"")]
    walked: set[int] = set()
    while waiting and len(found) < len(wanted):
        parent, path = waiting.pop()
        if parent in walked:  # a directory that records put into itself
            continue
        walked.add(parent)
        try:
            for count, entry in enumerate(reader.entries(parent, 0)):
                if count % STEP == 0:
                    await trio.lowlevel.checkpoint()
                here = path + b"/" + entry.name
                if entry.kind == 0o04:
                    waiting.append((entry.ino, here))
                elif entry.ino in wanted and entry.ino not in found:
                    found[entry.ino] = here.decode("utf-8", "backslashreplace")
        except FormatError as error:
            log.warning("%s: %s", path.decode("utf-8", "backslashreplace") or "/", error)
    return found
