"""A head: the small immutable object that names a published state, and the name it bears.

    name     heads/EPOCH-SEQUENCE-WRITER: 16 + 16 + 32 lowercase hex digits; they sort by (epoch, sequence)
    object   magic "icnfshed" (8), format version (2), required features (4), sealed document
    seal     associated data: the 14 bytes before it, epoch (8), sequence (8), token of the provider (16)
    plain    the fields of `Head` as a msgpack array

All numbers are big-endian.  The seal is the same in every format version, so a version or flag that this release does
not know is believed, and reported as `NewerFormatError`, only where the holder of the keys wrote it: one provider
cannot make a volume look newer than it is.  WRITER is a keyed hash of the mount's writer and the provider, so the
copies at two providers cannot be matched by it.  This module knows neither keys nor providers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

import msgspec

from icnfs.errors import FormatError, NewerFormatError
from icnfs.format import segment
from icnfs.format.records import FEATURES
from icnfs.format.segment import SegmentInfo
from icnfs.limits import CHUNK_SIZE, MIB, SHARES_MAX

MAGIC: Final = b"icnfshed"
VERSION: Final = 1
PREFIX: Final = "heads/"
HEAD_MAX: Final = 8 * MIB
"""Largest head object: 16,384 parts of 6 shares take 5 MiB."""

RUNS_MAX: Final = 4096
PARTS_MAX: Final = 16384
"""Parts of all runs together: 256 GiB of records."""

_HEADER: Final = Struct(">8sHI")
_NUMBERS: Final = Struct(">QQ")
_NAME: Final = re.compile(r"heads/([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{32})")
_NUMBER_MAX: Final = 2**62
"""Largest number of any kind: the next one, and room for what is reserved ahead, fit its field too."""

Seal: TypeAlias = Callable[[bytes, bytes], bytes]
"""(associated data, bytes) -> bytes; the opening one raises `DamagedError`."""


class HeadName(NamedTuple):
    """What a head's name says; orders as (epoch, sequence)."""

    epoch: int
    sequence: int
    tag: bytes

    def __str__(self) -> str:
        return f"{PREFIX}{self.epoch:016x}-{self.sequence:016x}-{self.tag.hex()}"


class RunInfo(msgspec.Struct, frozen=True, array_like=True):
    """A run as a head names it: it holds every record last changed in generations `since` < g <= `upto`.

    A run with `since` 0 is a checkpoint: it holds all records.  `size` is in bytes, of all its parts together; each
    part is a segment, described as `format.segment` encodes it.
    """

    id: bytes
    since: int
    upto: int
    rows: int
    size: int
    parts: tuple[bytes, ...]

    @property
    def is_checkpoint(self) -> bool:
        return self.since == 0

    def segments(self) -> list[SegmentInfo]:
        """The parts, in order."""
        return [segment.decode(part) for part in self.parts]


class Head(msgspec.Struct, frozen=True, array_like=True):
    """A published state: the tree as of batch `cut`, recoverable by loading `runs` in order.

    `generation` is the last one the runs cover, `time_ns` when the cut was taken (Unix time), `previous` the (epoch,
    sequence) of the head this one follows.  `counters` is files, bytes used, next inode, next version, and the inodes
    and versions reserved, at the cut.  `keyring` holds the volume's key slots, a document of its own.  `features` are
    those that reading its runs requires.
    """

    volume: bytes
    epoch: int
    sequence: int
    writer: bytes
    previous: tuple[int, int]
    time_ns: int
    cut: int
    generation: int
    chunk_size: int
    k: int
    n: int
    safe: int
    runs: tuple[RunInfo, ...]
    counters: tuple[int, int, int, int, int, int]
    keyring: bytes
    features: int = 0

    @property
    def number(self) -> tuple[int, int]:
        """(epoch, sequence): what orders heads."""
        return self.epoch, self.sequence

    def segments(self) -> list[SegmentInfo]:
        """Every part of every run."""
        return [part for run in self.runs for part in run.segments()]


def parse_name(name: str) -> HeadName | None:
    """What the name of an object under `heads/` says, or None where no head bears such a name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return HeadName(int(match[1], 16), int(match[2], 16), bytes.fromhex(match[3]))


def name_before(epoch: int, sequence: int) -> str:
    """A string that sorts after the names of all earlier heads and before those numbered (epoch, sequence)."""
    return f"{PREFIX}{epoch:016x}-{sequence:016x}"


def encode(head: Head) -> bytes:
    """The plain document, as local state keeps it."""
    return msgspec.msgpack.encode(head)


def decode(plain: bytes) -> Head:
    """Total: a head whose every number is within its range and whose runs follow one another, or `FormatError`."""
    if len(plain) > HEAD_MAX:
        raise FormatError("a head is larger than any can be")
    try:
        head = _DECODER.decode(plain)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"a head's document cannot be read: {error}") from None
    _check(head)
    return head


def seal(head: Head, token: bytes, seal_fixed: Seal) -> bytes:
    """The head object for the provider that `token` stands for; `FormatError` where nobody could read it back."""
    header = _HEADER.pack(MAGIC, VERSION, head.features)
    raw = header + seal_fixed(_bind(header, head.epoch, head.sequence, token), encode(head))
    if len(raw) > HEAD_MAX or _parts(head) > PARTS_MAX:
        raise FormatError(f"the volume's records fill {_parts(head)} segments, more than a head can name")
    return raw


def unseal(raw: bytes, name: HeadName, token: bytes, open_fixed: Seal) -> Head:
    """The head that `raw` holds; `DamagedError` or `FormatError` where it is not the one that its name claims."""
    if not _HEADER.size < len(raw) <= HEAD_MAX or raw[: len(MAGIC)] != MAGIC:
        raise FormatError("not a head")
    header = raw[: _HEADER.size]
    plain = open_fixed(_bind(header, name.epoch, name.sequence, token), raw[_HEADER.size :])
    _, version, features = _HEADER.unpack(header)
    if version > VERSION or features & ~FEATURES:
        raise NewerFormatError(
            f"the newest head is of format {version}, features {features:#x}; upgrade icnfs on this machine"
        )
    head = decode(plain)
    if head.number != (name.epoch, name.sequence):
        raise FormatError("a head under another head's name")
    if head.features != features:
        raise FormatError("a head that requires other features than it says")
    return head


def _bind(header: bytes, epoch: int, sequence: int, token: bytes) -> bytes:
    return header + _NUMBERS.pack(epoch, sequence) + token


def _parts(head: Head) -> int:
    return sum(len(run.parts) for run in head.runs)


def _check(head: Head) -> None:
    numbers = (head.epoch, head.sequence, head.time_ns, head.cut, head.generation, *head.previous, *head.counters)
    if not all(0 <= number <= _NUMBER_MAX for number in numbers):
        raise FormatError("a head's number is out of range")
    if len(head.volume) != 16 or len(head.writer) != 16:
        raise FormatError("a head names no volume or no writer")
    if not (1 <= head.k <= head.n <= SHARES_MAX and head.k <= head.safe <= head.n):
        raise FormatError("a head's code is out of range")
    if not 0 < head.chunk_size <= CHUNK_SIZE:
        raise FormatError("a head's chunk size is out of range")
    if not 0 < len(head.runs) <= RUNS_MAX or _parts(head) > PARTS_MAX:
        raise FormatError("a head has too many runs, or none")
    reached = 0
    for run in head.runs:
        _check_run(run, reached)
        reached = run.upto
    if reached != head.generation:
        raise FormatError("a head's runs do not reach its generation")


def _check_run(run: RunInfo, reached: int) -> None:
    if len(run.id) != 16 or run.since != reached or not run.since < run.upto <= _NUMBER_MAX:
        raise FormatError("a head's runs do not follow one another")
    if not 0 <= run.rows <= _NUMBER_MAX or not run.parts:
        raise FormatError("a head's run is out of range")
    if run.size != sum(part.size for part in run.segments()):
        raise FormatError("a head's run has parts of a wrong size")


_DECODER: Final = msgspec.msgpack.Decoder(Head)
