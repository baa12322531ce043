"""What may be named more than once: versions and file keys that clones share, and how it is found out when they no
longer are.

Nobody counts references while files change.  A clone *marks* each version and file key that it names, in `shared`; of
what is marked, nothing dies with the row that named it.  Now and then collection counts, over all rows of one cut, how
often each is named, and unmarks what is named once, and buries what nothing names.

Invariants:

1. A version that more than one row of `chunks` names is marked, and so is a file key that other inodes' rows name.
2. A mark is taken away only by what a cut said that was taken after the last marking, while nobody copied from an
   earlier one: such a copy might still name what the cut does not.
3. While somebody copies from a cut, what dies is marked instead (`Committer.keeping`).  So what the cut names is there
   to be named again, and a crash in between leaves marks that are counted like any other.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from icnfs.errors import DamagedError
from icnfs.format.records import PAIR, U64, ChunkRecord, Patch, Table, pack_chunk, pack_key, pack_patch, unpack_chunk
from icnfs.state.apply import Writer
from icnfs.state.cut import PublishCut
from icnfs.state.inode import Inode
from icnfs.state.reader import Reader

UNMARK_STEP: Final = 1024
"""Marks taken away in one commit: some 15 ms of the committer's time."""

MANY: Final = 2
"""Counts end here: how many more there are makes no difference."""


class Finding(NamedTuple):
    """What a cut says of something marked: named once, at `place` (a key of `chunks` or `inodes`), or nowhere."""

    number: int
    place: bytes


class Count:
    """Counts how often a cut names what was marked before it.

    `steps` yields now and then, where its caller may pause; `findings` are complete when it ends.  Takes 25 bytes of
    memory for a mark.
    """

    def __init__(self, cut: PublishCut) -> None:
        self._reader = cut.reader
        self._generation = cut.generation
        self._numbers: array[int] = array("Q")
        self._times = bytearray()
        self._inos: array[int] = array("Q")
        self._indexes: array[int] = array("Q")

    def steps(self) -> Iterator[None]:
        for key, _ in self._reader.rows(Table.SHARED):
            yield
            if marked_in(self._reader, key) <= self._generation:
                self._numbers.append(U64.unpack(key)[0])
        count = len(self._numbers)
        self._times = bytearray(count)
        self._inos, self._indexes = array("Q", bytes(8 * count)), array("Q", bytes(8 * count))
        if count:
            yield from self._inodes()
            yield from self._chunks()

    def _at(self, number: int) -> int:
        """Where a number is among those that are marked, -1 where it is not."""
        at = bisect_left(self._numbers, number)
        return at if at < len(self._numbers) and self._numbers[at] == number else -1

    def _inodes(self) -> Iterator[None]:
        """Whose the marked file keys are."""
        for key, _ in self._reader.rows(Table.INODES):
            yield
            plain = self._reader.get(Table.INODES, key)
            node = None if plain is None else Inode.unpack(U64.unpack(key)[0], plain)
            if node is not None and node.key_id and (at := self._at(node.key_id)) >= 0:
                self._inos[at] = node.ino

    def _chunks(self) -> Iterator[None]:
        for key, _ in self._reader.rows(Table.CHUNKS):
            yield
            plain = self._reader.get(Table.CHUNKS, key)
            if plain is None:
                continue
            record, (ino, index) = unpack_chunk(plain), PAIR.unpack(key)
            if (at := self._at(record.version)) >= 0:
                self._inos[at], self._indexes[at] = ino, index
                self._times[at] = min(self._times[at] + 1, MANY)
            if (at := self._at(record.key_id)) >= 0 and self._inos[at] != ino:
                self._times[at] = MANY

    def findings(self) -> Iterator[Finding]:
        """All that is named once or nowhere."""
        for at, number in enumerate(self._numbers):
            if self._times[at] < MANY:
                if self._times[at]:
                    yield Finding(number, PAIR.pack(self._inos[at], self._indexes[at]))
                else:
                    yield Finding(number, U64.pack(self._inos[at]) if self._inos[at] else b"")


def marked_in(reader: Reader, key: bytes) -> int:
    """The generation of the last marking; -1 where there is none."""
    plain = reader.get(Table.SHARED, key)
    return int(U64.unpack(plain)[0]) if plain is not None and len(plain) == U64.size else -1


def unmark(findings: Sequence[Finding], upto: int, writer: Writer, generation: int) -> None:
    """A task: act on what a cut of generation `upto` said, as far as it still holds."""
    for number, place in findings:
        key = U64.pack(number)
        marked = marked_in(writer.reader, key)
        if not 0 <= marked <= upto or (place and not _names(writer.reader, place, number)):
            continue
        writer.delete(Table.SHARED, key, generation)
        if not place and not writer.delete(Table.KEYS, key, generation):
            _bury(writer, key, generation)


def _names(reader: Reader, place: bytes, number: int) -> bool:
    """Whether the row at `place` still names what is marked."""
    if len(place) == U64.size:
        node = reader.inode(U64.unpack(place)[0])
        return node is not None and node.key_id == number
    record = reader.chunk(*PAIR.unpack(place))
    return record is not None and record.version == number


def _bury(writer: Writer, key: bytes, generation: int) -> None:
    """A version that nothing names: dead by now, unless that is known."""
    reader, version = writer.reader, U64.unpack(key)[0]
    if reader.raw(Table.GARBAGE, key) is not None:
        return
    sealed = reader.sealed_chunk(version)
    located = reader.raw(Table.LOCATIONS, key) is not None
    if sealed is not None and not located:
        writer.dirty_change -= len(sealed)
    if sealed is not None or located:
        writer.note_garbage(key, generation)
        writer.doomed.append(version)


class Named(NamedTuple):
    """Rows of a copy: (key, what the original's row holds); and the file keys that they refer to, by id."""

    chunks: Sequence[tuple[bytes, ChunkRecord]]
    patches: Sequence[tuple[bytes, Patch]]
    keys: Mapping[int, bytes]


def put_copies(rows: Named, writer: Writer, generation: int) -> None:
    """A task: name once more what another file's rows name, or named.

    `DamagedError`, and nothing changed, where a version is neither here nor at the providers any more.
    """
    reader = writer.reader
    for key, record in rows.chunks:
        version = U64.pack(record.version)
        dead = reader.raw(Table.GARBAGE, version) is not None
        located = reader.raw(Table.LOCATIONS, version) is not None
        if not located and (dead or not reader.has_chunk(record.version)):
            raise DamagedError(f"version {record.version} of a chunk is neither here nor at the providers any more")
        if dead:
            writer.revive(version)
            writer.spared += 1
        writer.mark(version, generation)
        writer.put(Table.CHUNKS, key, pack_chunk(record), generation)
    for key, patch in rows.patches:
        writer.put(Table.PATCHES, key, pack_patch(patch), generation)
    for key_id, file_key in rows.keys.items():
        key = U64.pack(key_id)
        if reader.raw(Table.KEYS, key) is None:
            writer.put(Table.KEYS, key, pack_key(file_key, 1), generation)
        writer.mark(key, generation)
