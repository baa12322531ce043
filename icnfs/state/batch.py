"""A batch, and the overlay of everything accepted that the snapshot does not show yet.

A batch holds the changes that become durable together.  It is open while requests change it, then closed for good and
handed to the committer.  Invariants:

1. A request changes one batch only, in one stretch without an await; so no request is ever split.
2. A closed batch is never changed by the request loop; whatever changes next is copied first (`Inode.batch`).
3. The overlay shows each change until the snapshot does: `Overlay.drop` runs right after the snapshot was renewed, in
   the same stretch, so no read sees neither or both.
4. Within a batch cuts apply before chunks and patches; a chunk or patch whose version is at most a cut's bound, at or
   past its first index, is dead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from icnfs.format.records import ChunkRecord, Entry, Patch
from icnfs.state.inode import Inode
from icnfs.state.names import ChangedNames


@dataclass(frozen=True, slots=True)
class Counters:
    """What one commit leaves behind besides records."""

    files: int = 0
    bytes_used: int = 0
    next_ino: int = 2
    next_version: int = 1
    ino_limit: int = 2
    version_limit: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Contents of `ino` from chunk `first` on are gone, as far as their versions are at most `bound`."""

    ino: int
    first: int
    bound: int


@dataclass(slots=True, eq=False)
class Batch:
    """Changes by record; None means that the record goes."""

    number: int
    generation: int
    inodes: dict[int, Inode | None] = field(default_factory=dict)
    names: dict[tuple[int, int], Entry | None] = field(default_factory=dict)
    xattrs: dict[int, dict[bytes, bytes] | None] = field(default_factory=dict)
    chunks: dict[tuple[int, int], ChunkRecord] = field(default_factory=dict)
    patches: list[tuple[int, int, Patch]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    keys: dict[int, bytes | None] = field(default_factory=dict)
    orphans: dict[int, bool] = field(default_factory=dict)
    settings: dict[str, bytes | None] = field(default_factory=dict)
    dead: list[ChunkRecord] = field(default_factory=list)
    counters: Counters = Counters()
    patch_bytes: int = 0
    next_generation: int = 0
    """The dirty generation that begins when this batch closes: its own, or the next after a cut."""
    awaited: bool = False
    """Whether somebody waits for just this to be durable: then the journal may serve."""
    touched: bool = False
    """Whether anything at all changed."""
    lingering: list[Cut] = field(default_factory=list)
    """Set by the committer: cuts too large to carry out at once, left as tombstones."""

    @property
    def has_changes(self) -> bool:
        """Whether it changes the tree."""
        return bool(self.changes or self.xattrs or self.cuts or self.orphans)

    @property
    def changes(self) -> int:
        """Records that committing will write, about."""
        return len(self.inodes) + len(self.names) + len(self.chunks) + len(self.patches) + len(self.keys)


def merge(batches: Sequence[Batch]) -> Batch:
    """One batch that leaves what `batches`, consecutive and of one generation, leave one after the other.

    It is what the open batch would have become without being closed in between: a record is written once, and what was
    made and went again leaves nothing.  Afterwards each of `batches` has the merged one's `lingering` cuts.
    """
    last = batches[-1]
    merged = Batch(last.number, last.generation, counters=last.counters, next_generation=last.next_generation)
    for batch in batches:
        for place, record in batch.chunks.items():
            old = merged.chunks.get(place)
            if old is not None:
                merged.dead.append(old)
            merged.chunks[place] = record
        merged.inodes.update(batch.inodes)
        merged.names.update(batch.names)
        merged.xattrs.update(batch.xattrs)
        merged.patches += batch.patches
        merged.cuts += batch.cuts
        merged.keys.update(batch.keys)
        merged.orphans.update(batch.orphans)
        merged.settings.update(batch.settings)
        merged.dead += batch.dead
        batch.lingering = merged.lingering
    if merged.chunks:
        merged.patches = [patch for patch in merged.patches if not _is_folded(patch, merged.chunks)]
    return merged


def _is_folded(patch: tuple[int, int, Patch], chunks: dict[tuple[int, int], ChunkRecord]) -> bool:
    ino, index, change = patch
    record = chunks.get((ino, index))
    return record is not None and change.version < record.version


K = TypeVar("K")
V = TypeVar("V")


class Overlay:
    """The newest accepted state of every record that differs from the snapshot's."""

    def __init__(self) -> None:
        self.names: dict[int, ChangedNames] = {}
        self.xattrs: dict[int, dict[bytes, bytes] | None] = {}
        self.chunks: dict[tuple[int, int], ChunkRecord] = {}
        self.patches: dict[tuple[int, int], list[Patch]] = {}
        self.keys: dict[int, bytes | None] = {}
        self.settings: dict[str, bytes | None] = {}

    def set_name(self, parent: int, cookie: int, entry: Entry | None) -> None:
        names = self.names.get(parent)
        if names is None:
            names = self.names[parent] = ChangedNames()
        names.put(cookie, entry)

    def drop(self, done: Sequence[Batch], later: Sequence[Batch]) -> None:
        """Forget what the batches in `done` changed, unless one of the `later` batches changed it again.

        What the overlay shows does not tell: a name removed, made and removed again is None each time.
        """
        names_later = [b.names for b in later]
        _drop(self.xattrs, [b.xattrs for b in done], [b.xattrs for b in later])
        _drop(self.chunks, [b.chunks for b in done], [b.chunks for b in later])
        _drop(self.keys, [b.keys for b in done], [b.keys for b in later])
        _drop(self.settings, [b.settings for b in done], [b.settings for b in later])
        for batch in done:
            for place in batch.names:
                parent, cookie = place
                names = self.names.get(parent)
                if names is not None and cookie in names and not any(place in changed for changed in names_later):
                    names.forget(cookie)
                    if not names:
                        del self.names[parent]
            for ino, index, patch in batch.patches:
                patches = self.patches.get((ino, index))
                if patches is not None:
                    patches.remove(patch)
                    if not patches:
                        del self.patches[ino, index]


def _drop(overlay: dict[K, V], done: list[dict[K, V]], later: list[dict[K, V]]) -> None:
    for changes in done:
        for key in changes:
            if key in overlay and not any(key in changed for changed in later):
                del overlay[key]
