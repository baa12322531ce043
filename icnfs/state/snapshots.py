"""Snapshots in the tables: reading them, making and removing them, and telling what they keep."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from icnfs.errors import FormatError, SnapshotError
from icnfs.format import segment as segments
from icnfs.format import snapshot as snapshots
from icnfs.format.records import U64, Table
from icnfs.format.segment import SegmentInfo
from icnfs.format.snapshot import Snapshot
from icnfs.state.apply import Writer
from icnfs.state.reader import Reader


def snapshots_in(reader: Reader) -> Iterator[Snapshot]:
    """All of them, by generation.

    Raises `FormatError` where one cannot be read: then what it keeps is not known.
    """
    for key, _ in reader.rows(Table.SNAPSHOTS):
        try:
            snapshot = snapshots.decode(reader.get(Table.SNAPSHOTS, key) or b"")
        except FormatError as error:
            raise FormatError(
                f"the record of a snapshot is damaged ({error}), so nothing is collected; `icnfs recover` into an "
                "empty state brings it back from the providers"
            ) from None
        if U64.pack(snapshot.generation) != key:
            raise FormatError("a snapshots record lies under another's key")
        yield snapshot


def find(reader: Reader, name: str) -> Snapshot:
    """The snapshot of that name; `SnapshotError` where there is none."""
    for snapshot in snapshots_in(reader):
        if snapshot.name == name:
            return snapshot
    raise SnapshotError(f"there is no snapshot {name}; `icnfs snapshot list` shows those that there are")


class Kept:
    """What snapshots keep: versions, and the parts of runs."""

    def __init__(self, kept: Iterable[Snapshot]) -> None:
        ordered = sorted(kept, key=lambda snapshot: snapshot.generation)
        self._generations = [snapshot.generation for snapshot in ordered]
        self._bounds = list(accumulate((snapshot.next_version for snapshot in ordered), max))
        self.parts = frozenset(part for snapshot in ordered for part in snapshot.parts)
        """Segment ids."""

    def keeps(self, version: int, died: int) -> bool:
        """Whether a version that died in generation `died` is named by the tree of a snapshot.

        Where it is not known when it died, and a later generation is taken, the answer errs towards yes.
        """
        earlier = bisect_left(self._generations, died)
        return earlier > 0 and version < self._bounds[earlier - 1]


def add(snapshot: Snapshot, parts: Sequence[SegmentInfo], writer: Writer, generation: int) -> None:
    """A task: keep what the head just published names; `SnapshotError` where the name is taken."""
    if any(other.name == snapshot.name for other in snapshots_in(writer.reader)):
        raise SnapshotError(f"there is a snapshot {snapshot.name} already; choose another name, or delete it first")
    writer.put(Table.SNAPSHOTS, U64.pack(snapshot.generation), snapshots.encode(snapshot), generation)
    for part in parts:
        if writer.reader.raw(Table.SEGMENTS, part.id) is None:
            writer.put(Table.SEGMENTS, part.id, segments.encode(part), generation)


def lock(snapshot: Snapshot, writer: Writer, generation: int) -> None:
    """A task: put a record with a later date in the place of the one of its generation."""
    if find(writer.reader, snapshot.name).until > snapshot.until:
        raise SnapshotError(f"snapshot {snapshot.name} is locked for longer; no lock is shortened")
    writer.put(Table.SNAPSHOTS, U64.pack(snapshot.generation), snapshots.encode(snapshot), generation)


def remove(snapshot: Snapshot, writer: Writer, generation: int) -> None:
    """A task: keep it no longer; collection finds what only it kept.  `SnapshotError` where a lock came in between."""
    if find(writer.reader, snapshot.name).until > snapshot.until:
        raise SnapshotError(f"snapshot {snapshot.name} was locked just now; nothing deletes it before that ends")
    writer.delete(Table.SNAPSHOTS, U64.pack(snapshot.generation), generation)
