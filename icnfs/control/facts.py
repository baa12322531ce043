"""The documents that a mount answers with and that `--json` prints; their fields only ever grow.

Times are Unix nanoseconds, sizes bytes.  Paths are text, with bytes that are not UTF-8 escaped.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final

import msgspec

from icnfs.control.stalls import Stalls
from icnfs.format.snapshot import Snapshot
from icnfs.volume.health import HealthCounts, HealthPage, ProviderHealth
from icnfs.volume.keyring import Entry
from icnfs.volume.standing import PolicyReport
from icnfs.volume.status import ChunkPlace, SharePlace, Status

EXTENTS_MAX: Final = 5000
"""Extents in one answer of `info`: with 16 MiB segments, those of an 80 GiB file."""


class MountStatus(msgspec.Struct, frozen=True):
    """A mounted volume."""

    mount_point: str
    pid: int
    since_ns: int
    volume: Status
    stalls: Stalls = Stalls()


class CloneFacts(msgspec.Struct, frozen=True):
    """What a clone, or a restored tree, is made of: files of all kinds, directories among them."""

    files: int


class Published(msgspec.Struct, frozen=True):
    """What `sync` and `umount --drain` reached: the batch that is published, and its head's number.

    `unsafe` names the providers that lack shares while fewer owners than `volume.safe` hold all of it, or key slots
    while too few hold them; never after `sync`.  `suspects` are suspended for wrong answers, and count as holding what
    they said they stored.
    """

    batch: int
    epoch: int
    sequence: int
    unsafe: list[str] = []
    suspects: list[str] = []


class Extent(msgspec.Struct, frozen=True):
    """Chunks `first` to `last` of a file that share their fate: one segment ("" before the first publish), here or not.

    `survives` is how many owners may be lost, -1 for none: only this machine holds them.
    """

    first: int
    last: int
    local: bool
    segment: str
    data_shares: list[int]
    survives: int


class FileFacts(msgspec.Struct, frozen=True):
    """Where a file's contents lie; `segments` by id, `more` where extents were left out."""

    ino: int
    size: int
    chunks: int
    survives: int | None
    extents: list[Extent]
    segments: dict[str, list[SharePlace]]
    more: bool


class KeyFacts(msgspec.Struct, frozen=True):
    """One key of the volume: how many providers of the TOML are to hold its slot, and how many do."""

    id: str
    kind: str
    label: str
    added_ns: int
    providers: int
    stored: int


class HealthFacts(msgspec.Struct, frozen=True):
    """The health of a volume: segments by verdict, the providers, and a page of the segments that are not safe.

    `keys` tells why its keys are not safe, "" where they are.
    """

    safe: int
    counts: HealthCounts
    providers: list[ProviderHealth]
    page: HealthPage
    keys: str = ""


class PolicyFacts(msgspec.Struct, frozen=True):
    """The report under the policy in force, and, where the TOML says something else by now, what is to be done."""

    report: PolicyReport
    toml: str


class SnapshotFacts(msgspec.Struct, frozen=True):
    """A snapshot: when its tree was so, who made it, and until when nothing may delete it (Unix second, 0: none).

    `enforced` tells whether enough providers see to that, by what was known when it was set.
    """

    name: str
    kind: str
    time_ns: int
    until: int
    enforced: bool
    epoch: int
    sequence: int
    files: int
    bytes_used: int


def snapshot_facts(snapshot: Snapshot) -> SnapshotFacts:
    """What may be shown of a snapshot."""
    return SnapshotFacts(
        snapshot.name,
        snapshot.kind,
        snapshot.time_ns,
        snapshot.until,
        snapshot.enforced,
        snapshot.epoch,
        snapshot.sequence,
        snapshot.files,
        snapshot.bytes_used,
    )


def printable_path(path: str | bytes | os.PathLike[str]) -> str:
    """A path as text that JSON can hold."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class FileFold:
    """A file's facts, made of its chunks one after the other: chunks that share their fate are put together.

    Keeps EXTENTS_MAX extents, and the shares of their segments; what comes after them is counted.
    """

    def __init__(self) -> None:
        self._chunks = 0
        self._survives: int | None = None
        self._extents: list[Extent] = []
        self._segments: dict[str, list[SharePlace]] = {}
        self._more = False
        self._run: tuple[str, bool, int] | None = None
        """The fate of the extent that is not ended yet: segment, here or not, survives."""
        self._first = self._last = -1
        self._shares: set[int] = set()

    def add(self, chunk: ChunkPlace) -> None:
        """The next chunk; its index is higher than those before."""
        self._chunks += 1
        if self._survives is None or chunk.survives < self._survives:
            self._survives = chunk.survives
        if self._more:
            return
        fate = chunk.segment, chunk.local, chunk.survives
        if fate != self._run or chunk.index != self._last + 1:
            self._end_extent()
            if chunk.segment and chunk.segment not in self._segments:
                self._segments[chunk.segment] = list(chunk.shares)
            self._more = len(self._extents) == EXTENTS_MAX
            if self._more:
                return
            self._run, self._first = fate, chunk.index
        self._last = chunk.index
        if chunk.share is not None:
            self._shares.add(chunk.share)

    def _end_extent(self) -> None:
        if self._run is not None:
            segment, local, survives = self._run
            shares = sorted(self._shares)
            self._extents.append(Extent(self._first, self._last, local, segment, shares, survives))
            self._run = None
            self._shares.clear()

    def facts(self, ino: int, size: int) -> FileFacts:
        """The file's facts, after its last chunk; `size` is in bytes."""
        self._end_extent()
        return FileFacts(ino, size, self._chunks, self._survives, self._extents, self._segments, self._more)


def key_facts(entry: Entry, keepers: Collection[str], unsure: Collection[str] = ()) -> KeyFacts:
    """What may be shown of a key, where `keepers` are to hold slots; what the `unsure` were given does not count."""
    stored = sum(copy.stored and name in keepers and name not in unsure for name, copy in entry.copies.items())
    meant = sum(name in keepers for name in entry.copies)
    if entry.copies and not meant:  # all who had one have left: each is given one as its place is taken
        meant = len(keepers)
    return KeyFacts(entry.id, entry.kind, entry.label, entry.added_ns, meant, stored)
