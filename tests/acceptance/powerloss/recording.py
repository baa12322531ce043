"""What a recorded run wrote and synced, and the states in which a power loss may have left its files.

At a moment of the recording every write is *durable* (it returned before a sync of its file was issued, and that sync
has returned; or it was made through an O_DSYNC descriptor and has returned), *pending* (issued, not durable), or not
yet made.  A state holds all durable writes and of the pending ones none, all, a random subset, or random 512-byte
sectors: disks and page caches keep no order.  Sizes follow the writes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

SECTOR: Final = 512

_HEADER: Final = struct.Struct("=IIQQQ")
_OPEN, _WRITE, _WROTE, _SYNC, _SYNCED, _SIZE, _MARK = range(1, 8)
_DURABLE_FD: Final = 0x80000000
_NEVER: Final = 1 << 62


class Loss(Enum):
    """What becomes of pending writes."""

    NONE = "none"
    """None of them reached the disk."""
    ALL = "all"
    SUBSET = "subset"
    TORN = "torn"


@dataclass(slots=True)
class Write:
    """One write, by the numbers of the records at which it was issued, returned, and became durable."""

    file: int
    issued: int
    offset: int
    data: bytes | None
    """None: a change of size to `offset`."""
    returned: int = _NEVER
    durable: int = _NEVER


@dataclass(frozen=True, slots=True)
class Mark:
    """What the program said, and when."""

    number: int
    text: str


@dataclass(frozen=True)
class Recording:
    """`names[file]` is a path below the recorded folder; `writes` and `marks` are in order; `length` counts records."""

    names: dict[int, str]
    writes: list[Write]
    marks: list[Mark]
    length: int
    syncs: list[int]
    """Numbers of the records at which a sync was issued or returned, or a durable write returned."""


def load(log: Path) -> Recording:
    """Reads a recorder's log."""
    raw = log.read_bytes()
    names: dict[int, str] = {}
    writes: list[Write] = []
    marks: list[Mark] = []
    syncs: list[int] = []
    by_number: dict[int, Write] = {}
    volatile: dict[int, list[Write]] = {}
    at = number = 0
    while at < len(raw):
        kind, file, offset, length, _ = _HEADER.unpack_from(raw, at)
        at += _HEADER.size
        payload = b""
        if kind in (_OPEN, _WRITE, _MARK):
            payload = raw[at : at + length]
            at += length
        if kind == _OPEN:
            names[file] = payload.decode()
        elif kind == _WRITE:
            by_number[number] = Write(file, number, offset, payload)
            writes.append(by_number[number])
            volatile.setdefault(file, []).append(by_number[number])
        elif kind == _SIZE:
            writes.append(Write(file, number, length, None, returned=number))
            volatile.setdefault(file, []).append(writes[-1])
        elif kind == _WROTE:
            write = by_number.pop(offset)
            write.returned = number
            if length != len(write.data or b""):
                raise ValueError("a short write was recorded; this rebuilder does not know what it left")
            if file & _DURABLE_FD:
                write.durable = number
                syncs.append(number)
        elif kind == _SYNC:
            syncs.append(number)
        elif kind == _SYNCED:
            syncs.append(number)
            file &= ~_DURABLE_FD
            for write in volatile.get(file, ()):
                if write.returned < offset:
                    write.durable = min(write.durable, number)
            volatile[file] = [write for write in volatile.get(file, ()) if write.durable == _NEVER]
        elif kind == _MARK:
            marks.append(Mark(number, payload.decode()))
        number += 1
    return Recording(names, writes, marks, number, syncs)


@dataclass(frozen=True, slots=True)
class Crash:
    """A power loss just after record `moment`."""

    moment: int
    loss: Loss
    seed: int


def draw_crashes(recording: Recording, count: int, seed: int, first: int = 0) -> list[Crash]:
    """`count` crashes in order of moment, not before record `first`, all kinds of loss in turn.

    Half of the moments lie within a few records of a sync: there an order that is wrong shows.
    """
    chance = random.Random(seed)
    syncs = [s for s in recording.syncs if s >= first] or [first]
    kinds = list(Loss)
    crashes = []
    for i in range(count):
        if i % 2:
            moment = chance.choice(syncs) + chance.randint(-3, 1)
        else:
            moment = chance.randrange(first, recording.length)
        crashes.append(Crash(min(max(moment, first), recording.length - 1), kinds[i // 2 % 4], chance.getrandbits(32)))
    return sorted(crashes, key=lambda crash: crash.moment)


class Rebuilder:
    """Makes the states of crashes; ask in order of moment, for what has become durable for good is kept applied."""

    def __init__(self, recording: Recording, base: Path) -> None:
        """`base` holds the recorded folder's files as they were before the first record, durable."""
        self._recording = recording
        self._images = {
            file: bytearray((base / name).read_bytes() if (base / name).exists() else b"")
            for file, name in recording.names.items()
        }
        self._settled = 0

    def rebuild(self, crash: Crash, into: Path, skip: Sequence[str] = ()) -> int:
        """Writes the files of the state below `into`; the number of pending writes that there were."""
        writes = self._recording.writes
        while self._settled < len(writes) and writes[self._settled].durable <= crash.moment:
            _apply(self._images[writes[self._settled].file], writes[self._settled])
            self._settled += 1
        images = {file: bytearray(image) for file, image in self._images.items()}
        chance = random.Random(crash.seed)
        pending = 0
        for write in self._still_open(crash.moment):
            if write.durable <= crash.moment:
                _apply(images[write.file], write)
                continue
            pending += 1
            for piece in _survivors(write, crash.loss, chance):
                _apply(images[write.file], piece)
        for file, name in self._recording.names.items():
            if not name.endswith(tuple(skip)):
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(images[file])
        return pending

    def _still_open(self, moment: int) -> Iterator[Write]:
        for i in range(self._settled, len(self._recording.writes)):
            write = self._recording.writes[i]
            if write.issued > moment:
                return
            yield write


def _apply(image: bytearray, write: Write) -> None:
    if write.data is None:
        if write.offset < len(image):
            del image[write.offset :]
        else:
            image.extend(bytes(write.offset - len(image)))
        return
    if write.offset > len(image):
        image.extend(bytes(write.offset - len(image)))
    image[write.offset : write.offset + len(write.data)] = write.data


def _survivors(write: Write, loss: Loss, chance: random.Random) -> Iterator[Write]:
    """The parts of a pending write that reached the disk."""
    if loss is Loss.ALL or (loss is Loss.SUBSET and chance.random() < 0.5):
        yield write
    if loss is not Loss.TORN:
        return
    if write.data is None or chance.random() < 0.3:
        if chance.random() < 0.5:
            yield write
        return
    at = 0
    while at < len(write.data):
        end = at + SECTOR - (write.offset + at) % SECTOR
        if chance.random() < 0.5:
            yield Write(write.file, write.issued, write.offset + at, write.data[at:end])
        at = end
