"""What nothing names any more: versions at the providers that are dead, and segments that hold no others.

A version is *dead* once no row of a committed tree names it; its note in `garbage` says in which generation it died.  A
segment of which every version died in generations that are published is needed by no tree from then on.  All of it is
found by looking at the tables of one cut, in steps, so that nobody waits for it.

This module knows neither providers nor graces: `volume.collect` decides.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from icnfs.errors import FormatError
from icnfs.format.records import U64, Table, unpack_chunk
from icnfs.state.apply import Writer
from icnfs.state.cut import PublishCut

NEVER: Final = 2**63
"""When a version died whose note does not say."""

RELEASE_STEP: Final = 1024
"""Versions released in one commit: some 15 ms of the committer's time."""


class Census:
    """Counts the versions that each segment of a cut holds, and those of them that died in generations up to `upto`.

    The cut must have been taken while nothing was being published.  `steps` yields now and then, where its caller may
    pause; the counts are complete when it ends.
    """

    def __init__(self, cut: PublishCut, upto: int) -> None:
        self._reader = cut.reader
        self._upto = upto
        self.held: Counter[bytes] = Counter()
        self.dead: Counter[bytes] = Counter()

    def steps(self) -> Iterator[None]:
        reader = self._reader
        for key, _ in reader.rows(Table.SEGMENTS):
            self.held[key] = 0
        notes = reader.rows(Table.GARBAGE)
        note = next(notes, None)
        for key, _ in reader.rows(Table.LOCATIONS):
            yield
            while note is not None and note[0] < key:
                note = next(notes, None)
            location = _location(self, key)
            if location is None:
                continue
            self.held[location] += 1
            if note is not None and note[0] == key and died(note[1]) <= self._upto:
                self.dead[location] += 1

    def needless(self) -> list[bytes]:
        """Segments that hold nothing that lives, by id."""
        return sorted(id for id, count in self.held.items() if count == self.dead[id])

    def versions(self, segments: Sequence[bytes]) -> Iterator[tuple[bytes, int] | None]:
        """(segment, version) of each dead version that these hold; None now and then, where its caller may pause."""
        wanted = frozenset(segments)
        for key, _ in self._reader.rows(Table.GARBAGE):
            segment = _location(self, key)
            yield (segment, U64.unpack(key)[0]) if segment in wanted and segment is not None else None


def _location(census: Census, key: bytes) -> bytes | None:
    try:
        location = census._reader.location(U64.unpack(key)[0])
    except FormatError:
        return None
    return None if location is None else location.segment


def died(note: bytes | memoryview) -> int:
    """The generation that a note says."""
    return int(U64.unpack(note)[0]) if len(note) == U64.size else NEVER


class Unnamed:
    """Finds versions that have a location and that no chunk names, as a recovery loads them: it brings no notes.

    `steps` yields now and then; `found` holds them when it ends.
    """

    def __init__(self, cut: PublishCut) -> None:
        self._reader = cut.reader
        self.found: array[int] = array("Q")

    def steps(self) -> Iterator[None]:
        reader = self._reader
        named: array[int] = array("Q")
        for key, _ in reader.rows(Table.CHUNKS):
            yield
            plain = reader.get(Table.CHUNKS, key)
            if plain is not None:
                named.append(unpack_chunk(plain).version)
        ordered = array("Q", sorted(named))
        for key, _ in reader.rows(Table.LOCATIONS):
            yield
            version = U64.unpack(key)[0]
            at = bisect_left(ordered, version)
            if (at == len(ordered) or ordered[at] != version) and reader.raw(Table.GARBAGE, key) is None:
                self.found.append(version)


def note_dead(versions: Sequence[int], writer: Writer, generation: int) -> None:
    """A task: note that these died by now."""
    for version in versions:
        key = U64.pack(version)
        if writer.reader.raw(Table.GARBAGE, key) is None and writer.reader.raw(Table.LOCATIONS, key) is not None:
            writer.note_garbage(key, generation)
            writer.doomed.append(version)


def release(segment: bytes, versions: Sequence[int], upto: int, writer: Writer, generation: int) -> None:
    """A task: forget where dead versions lie; what of them is here is erased."""
    for version in versions:
        key = U64.pack(version)
        note = writer.reader.raw(Table.GARBAGE, key)
        location = writer.reader.location(version)
        if note is None or died(note) > upto or location is None or location.segment != segment:
            continue
        writer.delete(Table.LOCATIONS, key, generation)
        if writer.reader.has_chunk(version):
            writer.doomed.append(version)
        else:
            writer.delete(Table.GARBAGE, key, generation)


def forget_segment(segment: bytes, key: bytes, document: Callable[[int], bytes], writer: Writer, gen: int) -> None:
    """A task: forget a segment, and keep a document, made for the commit's generation, of what is to be deleted."""
    writer.delete(Table.SEGMENTS, segment, gen)
    writer.put(Table.CONDEMNED, key, document(gen), 0)


def condemn(rows: Sequence[tuple[bytes, Callable[[int], bytes]]], writer: Writer, generation: int) -> None:
    """A task: keep documents, made for the commit's generation, of what is to be deleted, each under its key."""
    for key, document in rows:
        writer.put(Table.CONDEMNED, key, document(generation), 0)


def settle(key: bytes, document: bytes | None, writer: Writer, _: int) -> None:
    """A task: what is left to be deleted of a document, None for nothing."""
    if document is None:
        writer.delete(Table.CONDEMNED, key, 0)
    else:
        writer.put(Table.CONDEMNED, key, document, 0)
