"""A snapshot: the record that keeps one published state, under the generation of its cut.

It is a msgpack array of the fields of `Snapshot`.  What it keeps are the runs that the head of its cut named, each part
of which has its row in `segments`, and every version that its tree names: those below `next_version` that were not dead
by `generation`.  Where versions and parts lie is told by `locations` and `segments`, which are the volume's.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from icnfs.errors import FormatError
from icnfs.format.head import PARTS_MAX, RUNS_MAX
from icnfs.format.segment import ID_SIZE

LAYOUT: Final = 1

KINDS: Final = ("manual", "hourly", "daily", "weekly", "monthly")
"""Who made it: a person, or the schedule."""

NAME_RULE: Final = "1 to 64 letters, digits, dots, hyphens and underscores, the first a letter or a digit"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER_MAX: Final = 2**62


class SnapshotRun(msgspec.Struct, frozen=True, array_like=True):
    """A run as `format.head` describes it, but for its parts, which are segment ids."""

    id: bytes
    since: int
    upto: int
    rows: int
    size: int
    parts: tuple[bytes, ...]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """One snapshot.

    `time_ns` is when its cut was taken (Unix time); `until` the Unix second before which nothing may delete it, 0 for
    none; `enforced` whether enough providers saw to that when it was last set.  `epoch`, `sequence`, `cut`,
    `generation`, `counters` and `runs` are those of the head.
    """

    layout: int
    name: str
    kind: str
    time_ns: int
    until: int
    enforced: bool
    epoch: int
    sequence: int
    cut: int
    generation: int
    counters: tuple[int, int, int, int, int, int]
    runs: tuple[SnapshotRun, ...]

    @property
    def next_version(self) -> int:
        """Every version that the tree names is below."""
        return self.counters[3]

    @property
    def files(self) -> int:
        return self.counters[0]

    @property
    def bytes_used(self) -> int:
        return self.counters[1]

    @property
    def parts(self) -> list[bytes]:
        """The segment id of every part of every run, in order."""
        return [part for run in self.runs for part in run.parts]


def is_name(text: str) -> bool:
    """Whether a snapshot may be called so (NAME_RULE)."""
    return _NAME.fullmatch(text) is not None


def encode(snapshot: Snapshot) -> bytes:
    return msgspec.msgpack.encode(snapshot)


def decode(plain: bytes) -> Snapshot:
    """Total: a snapshot of which every number is within its range and whose runs follow one another, or
    `FormatError`."""
    try:
        snapshot = _DECODER.decode(plain)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"a snapshots record cannot be read: {error}") from None
    _check(snapshot)
    return snapshot


def _check(snapshot: Snapshot) -> None:
    if snapshot.layout != LAYOUT or not is_name(snapshot.name) or snapshot.kind not in KINDS:
        raise FormatError("a snapshots record has no name, or is of a kind or layout that there is not")
    numbers = (
        snapshot.time_ns,
        snapshot.until,
        snapshot.epoch,
        snapshot.sequence,
        snapshot.cut,
        snapshot.generation,
        *snapshot.counters,
    )
    if not all(0 <= number <= _NUMBER_MAX for number in numbers):
        raise FormatError("a snapshots record has a number out of range")
    if not 0 < len(snapshot.runs) <= RUNS_MAX or sum(len(run.parts) for run in snapshot.runs) > PARTS_MAX:
        raise FormatError("a snapshots record has too many runs, or none")
    reached = 0
    for run in snapshot.runs:
        if len(run.id) != ID_SIZE or run.since != reached or not run.since < run.upto <= _NUMBER_MAX:
            raise FormatError("a snapshots record's runs do not follow one another")
        if not (0 <= run.rows <= _NUMBER_MAX and 0 <= run.size <= _NUMBER_MAX and run.parts):
            raise FormatError("a snapshots record's run is out of range")
        if any(len(part) != ID_SIZE for part in run.parts):
            raise FormatError("a snapshots record names a part that none can be")
        reached = run.upto
    if reached != snapshot.generation:
        raise FormatError("a snapshots record's runs do not reach its generation")


_DECODER: Final = msgspec.msgpack.Decoder(Snapshot)
