"""What nothing names any more: versions at the providers that are dead, and segments that hold no others.

A version is *dead* once no row of a committed tree names it; its note in `garbage` says in which generation it died.  A
segment of which every version died in generations that are published, and is kept by no snapshot, is needed by no tree
from then on.  All of it is found by looking at the tables of one cut, in steps, so that nobody waits for it.

This module knows neither providers nor graces: `volume.collect` decides.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from heapq import merge
from typing import Final

from icnfs.errors import DamagedError, FormatError
from icnfs.format.records import U64, Location, Table, unpack_chunk
from icnfs.state.apply import Writer
from icnfs.state.cut import PublishCut
from icnfs.state.snapshots import Kept, snapshots_in

NEVER: Final = 2**63
"""When a version died whose note does not say."""

RELEASE_STEP: Final = 1024
"""Versions released in one commit: some 15 ms of the committer's time."""


class Census:
    """Counts what each segment of a cut holds: versions, and those of them that nothing needs.

    That is what died in generations up to `upto`, unless a snapshot keeps it.  `present` are the parts of the runs that
    the last head names.  Raises `FormatError` where a snapshot's record cannot be read.

    The cut must have been taken while nothing was being published.  `steps` yields now and then, where its caller may
    pause; the counts are complete when it ends.
    """

    def __init__(self, cut: PublishCut, upto: int, present: Container[bytes] = ()) -> None:
        self._reader = cut.reader
        self._upto = upto
        self._present = present
        self.kept = Kept(snapshots_in(cut.reader))
        self.held: Counter[bytes] = Counter()
        self.dead: Counter[bytes] = Counter()
        self.size: Counter[bytes] = Counter()
        """Bytes of the k data shares of a segment of contents."""
        self.live: Counter[bytes] = Counter()
        """Bytes of the sealed chunks in it that are not dead."""

    def steps(self) -> Iterator[None]:
        """Raises `DamagedError` where it cannot be told where something lies that is needed."""
        reader = self._reader
        for key, _ in reader.rows(Table.SEGMENTS):
            yield
            self.held[key] = 0
            if not self._is_part(key):
                self.size[key] = self._size(key)
        for version, location, needed in self._located():
            yield
            if location is None:
                if needed:
                    raise DamagedError(
                        f"version {version} lies nobody knows where: no segment can be told to be needless"
                    )
                continue
            self.held[location.segment] += 1
            if needed:
                self.live[location.segment] += location.length
            else:
                self.dead[location.segment] += 1

    def _size(self, id: bytes) -> int:
        try:
            segment = self._reader.segment(id)
        except FormatError:
            return 0
        return segment.k * segment.share_len if segment is not None else 0

    def _located(self) -> Iterator[tuple[int, Location | None, bool]]:
        """(version, its place or None where that cannot be read, whether it is needed) of all that have one."""
        reader = self._reader
        notes = reader.rows(Table.GARBAGE)
        note = next(notes, None)
        for key, _ in reader.rows(Table.LOCATIONS):
            while note is not None and note[0] < key:
                note = next(notes, None)
            dead = note is not None and note[0] == key and self._is_needless(key, died(note[1]))
            yield U64.unpack(key)[0], _location(self, key), not dead

    def _is_needless(self, key: bytes, when: int) -> bool:
        return when <= self._upto and not self.kept.keeps(U64.unpack(key)[0], when)

    def needless(self) -> list[bytes]:
        """Segments that hold nothing that lives, by id; parts of runs are such once nothing names them."""
        return sorted(id for id, count in self.held.items() if count == self.dead[id] and not self._is_part(id))

    def _is_part(self, id: bytes) -> bool:
        """Whether a segment is one of a run that a snapshot or the last head names."""
        return id in self.kept.parts or id in self._present

    def versions(self, segments: Sequence[bytes]) -> Iterator[tuple[bytes, int] | None]:
        """(segment, version) of each dead version that these hold; None now and then, where its caller may pause."""
        wanted = frozenset(segments)
        for key, _ in self._reader.rows(Table.GARBAGE):
            found = _location(self, key)
            yield (found.segment, U64.unpack(key)[0]) if found is not None and found.segment in wanted else None

    def living(self, segments: Sequence[bytes]) -> Iterator[tuple[int, Location] | None]:
        """(version, its place) of each other one that these hold; None now and then, where its caller may pause."""
        wanted = frozenset(segments)
        for version, location, needed in self._located() if wanted else ():
            yield (version, location) if needed and location is not None and location.segment in wanted else None


def _location(census: Census, key: bytes) -> Location | None:
    try:
        return census._reader.location(U64.unpack(key)[0])
    except FormatError:
        return None


def died(note: bytes | memoryview) -> int:
    """The generation that a note says."""
    return int(U64.unpack(note)[0]) if len(note) == U64.size else NEVER


SORTED_AT_ONCE: Final = 16384
"""Versions that are sorted in one stretch, some 3 ms."""


class Unnamed:
    """Finds versions that have a location and that no chunk names, as a recovery loads them: it brings no notes.

    `steps` yields now and then; `found` holds them when it ends.
    """

    def __init__(self, cut: PublishCut) -> None:
        self._reader = cut.reader
        self.found: array[int] = array("Q")

    def steps(self) -> Iterator[None]:
        reader = self._reader
        sorted_parts: list[array[int]] = []
        named: array[int] = array("Q")
        for key, _ in reader.rows(Table.CHUNKS):
            yield
            plain = reader.get(Table.CHUNKS, key)
            if plain is not None:
                named.append(unpack_chunk(plain).version)
            if len(named) == SORTED_AT_ONCE:
                sorted_parts.append(array("Q", sorted(named)))
                named = array("Q")
        ordered = merge(sorted(named), *sorted_parts)
        ahead = next(ordered, None)
        for key, _ in reader.rows(Table.LOCATIONS):
            yield
            version = U64.unpack(key)[0]
            while ahead is not None and ahead < version:
                yield
                ahead = next(ordered, None)
            if ahead != version and reader.raw(Table.GARBAGE, key) is None:
                self.found.append(version)


def note_dead(versions: Sequence[int], writer: Writer, generation: int) -> None:
    """A task: note that these died by now; not those that are marked, for something may name them since."""
    for version in versions:
        key = U64.pack(version)
        if writer.is_marked(key):
            continue
        if writer.reader.raw(Table.GARBAGE, key) is None and writer.reader.raw(Table.LOCATIONS, key) is not None:
            writer.note_garbage(key, generation)
            writer.doomed.append(version)


def release(segment: bytes, versions: Sequence[int], upto: int, writer: Writer, generation: int) -> bool:
    """A task: forget where dead versions lie; what of them is here is erased.  False where some are named again."""
    whole = True
    for version in versions:
        key = U64.pack(version)
        note = writer.reader.raw(Table.GARBAGE, key)
        location = writer.reader.location(version)
        if location is None or location.segment != segment:
            continue
        if note is None or died(note) > upto:
            whole = False
            continue
        writer.delete(Table.LOCATIONS, key, generation)
        if writer.reader.has_chunk(version):
            writer.doomed.append(version)
        else:
            writer.delete(Table.GARBAGE, key, generation)
    return whole


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
