"""The journal: batches that somebody waits for, made durable by one sequential write before LMDB has them.

A commit of LMDB flushes the disk twice, and an fsync would wait for both; an entry here takes one flush, of blocks
that are written already, so that no metadata of the disk's own file system goes with it.  LMDB follows within
SETTLE_SECONDS, many batches in one commit, and then the journal begins again from its start.

    entry    magic "icnJ" (4), batch number (8), sealed length (4), sealed batch; zeros up to a multiple of 512
    seal     as a record of table 255 whose key is the batch number (8); plain: a msgpack array, see `_Wire`

A few sealed chunks may go with a batch, for a small file's fsync would else flush `data` as well as `meta`.

Numbers are big-endian.  Entries stand one behind the other from the start of the file, their numbers following one
another, all sealed under the newest salt that LMDB has; the first that does not fit ends the journal.  What an earlier
pass or mount left behind never fits: its numbers are lower, or its salt is older.  Each mount draws its salt before its
first batch, so nothing is applied over what another mount did since, though that one missed the journal.

Invariants (kept by the committer):

1. An entry is written only when every earlier batch is in LMDB or in the journal before it.
2. What a batch in the journal names is durable with it: each sealed chunk lies in its entry or one before, or had been
   made durable in `data`.
3. Nothing is overwritten before LMDB has it durably.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from icnfs.crypto.sealing import RecordSealer
from icnfs.errors import FormatError
from icnfs.format.records import (
    U32,
    U64,
    pack_chunk,
    pack_entry,
    pack_patch,
    pack_xattrs,
    unpack_chunk,
    unpack_entry,
    unpack_patch,
    unpack_xattrs,
)
from icnfs.limits import MIB
from icnfs.state.batch import Batch, Counters, Cut
from icnfs.state.inode import Inode

NAME: Final = "journal"
SIZE: Final = 8 * MIB
"""Bytes of the file: two thousand small fsyncs between commits of LMDB, and read in a few milliseconds at a mount."""

TABLE: Final = 255
"""What seals take for the table's number; no table has it."""

_HEADER: Final = Struct(">4sQI")
_MAGIC: Final = b"icnJ"
_SECTOR: Final = 512


Sealed = tuple[int, bytes]
"""(version, sealed chunk)."""


class Entry(NamedTuple):
    """What one entry of the journal holds."""

    batch: Batch
    sealed: list[Sealed]


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    """A batch; each list holds keys and plain records, None for one that goes.  The last three fields are younger."""

    generation: int
    next_generation: int
    counters: tuple[int, int, int, int, int, int]
    inodes: list[tuple[int, bytes | None]]
    names: list[tuple[int, int, bytes | None]]
    xattrs: list[tuple[int, bytes | None]]
    patches: list[tuple[int, int, int, bytes]]
    cuts: list[tuple[int, int, int]]
    keys: list[tuple[int, bytes | None]]
    orphans: list[tuple[int, bool]]
    settings: list[tuple[str, bytes | None]]
    chunks: list[tuple[int, int, bytes]] = []
    dead: list[bytes] = []
    sealed: list[tuple[int, bytes]] = []


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Wire)


class Journal:
    """The open journal file; used by the committer's thread."""

    def __init__(self, root: Path, records: RecordSealer) -> None:
        """Opens the file as it is, or an empty one: to `read`, then to `prepare`.  Raises OSError."""
        self._records = records
        self._at = 0
        self._root = root
        self._fd = os.open(root / NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        os.close(self._fd)

    def prepare(self) -> None:
        """Make the file whole, and its name durable, whatever an earlier mount came to; LMDB has what was in it.

        Raises OSError where that fails: then there is no journal, and LMDB alone serves.
        """
        if os.fstat(self._fd).st_size != SIZE:
            _fill(self._fd)
        os.fsync(self._fd)
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @property
    def used(self) -> int:
        """Bytes written since `reset`."""
        return self._at

    def append(self, batches: Sequence[Batch], sealed: Sequence[Sealed] = ()) -> bool:
        """Make `batches`, at least one, durable together with the `sealed` chunks; false when there is no room until
        `reset`.  Raises OSError."""
        blob = self._entry(batches[0], sealed)
        if len(batches) > 1:
            blob = b"".join((blob, *(self._entry(batch, ()) for batch in batches[1:])))
        if self._at + len(blob) > SIZE:
            return False
        if os.pwrite(self._fd, blob, self._at) != len(blob):
            raise OSError("the journal was written short")
        os.fdatasync(self._fd)
        self._at += len(blob)
        return True

    def reset(self) -> None:
        """LMDB has all of it."""
        self._at = 0

    def _entry(self, batch: Batch, chunks: Sequence[Sealed]) -> bytes:
        sealed = self._records.seal(TABLE, U64.pack(batch.number), encode(batch, chunks))
        size = _HEADER.size + len(sealed)
        return b"".join((_HEADER.pack(_MAGIC, batch.number, len(sealed)), sealed, bytes(-size % _SECTOR)))

    def read(self, after: int, salt: int) -> list[Entry]:
        """The entries beyond batch `after`, which LMDB has, sealed under its newest `salt`.  Raises OSError."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        entries: list[Entry] = []
        for number, sealed in _entries(data):
            if U32.unpack_from(sealed)[0] != salt or (entries and number != entries[-1].batch.number + 1):
                break
            try:
                entry = decode(number, self._records.open(TABLE, U64.pack(number), sealed))
            except FormatError:
                break
            entries.append(entry)
        kept = [entry for entry in entries if entry.batch.number > after]
        if not kept or kept[0].batch.number != after + 1:
            return []
        return kept


def _fill(fd: int) -> None:
    """Write every block once, so that later writes change no metadata of the disk's file system."""
    os.ftruncate(fd, 0)
    zeros = bytes(MIB)
    for at in range(0, SIZE, MIB):
        if os.pwrite(fd, zeros, at) != MIB:
            raise OSError("the journal was written short")


def _entries(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, sealed) of what looks like entries, from the start."""
    at = 0
    while at + _HEADER.size <= len(data):
        magic, number, length = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + length
        if magic != _MAGIC or length < U32.size or end > len(data):
            return
        yield number, data[at + _HEADER.size : end]
        at = end + -end % _SECTOR


def encode(batch: Batch, sealed: Sequence[Sealed] = ()) -> bytes:
    """The plain entry of a batch and the `sealed` chunks that become durable with it."""
    counters = batch.counters
    return _ENCODER.encode(
        _Wire(
            batch.generation,
            batch.next_generation,
            (
                counters.files,
                counters.bytes_used,
                counters.next_ino,
                counters.next_version,
                counters.ino_limit,
                counters.version_limit,
            ),
            [(ino, None if node is None else node.pack()) for ino, node in batch.inodes.items()],
            [(p, c, None if entry is None else pack_entry(entry)) for (p, c), entry in batch.names.items()],
            [(ino, pack_xattrs(xattrs) if xattrs else None) for ino, xattrs in batch.xattrs.items()],
            [(ino, index, patch.version, pack_patch(patch)) for ino, index, patch in batch.patches],
            [(cut.ino, cut.first, cut.bound) for cut in batch.cuts],
            list(batch.keys.items()),
            list(batch.orphans.items()),
            list(batch.settings.items()),
            [(ino, index, pack_chunk(record)) for (ino, index), record in batch.chunks.items()],
            [pack_chunk(record) for record in batch.dead],
            list(sealed),
        )
    )


def decode(number: int, plain: bytes) -> Entry:
    """Total: an entry, or `FormatError`."""
    try:
        wire = _DECODER.decode(plain)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FormatError(f"a journal entry cannot be read: {error}") from None
    batch = Batch(number, wire.generation)
    batch.next_generation = wire.next_generation
    batch.counters = Counters(*wire.counters)
    batch.inodes = {ino: None if plain is None else Inode.unpack(ino, plain) for ino, plain in wire.inodes}
    batch.names = {(p, c): None if plain is None else unpack_entry(c, plain) for p, c, plain in wire.names}
    batch.xattrs = {ino: None if plain is None else unpack_xattrs(plain) for ino, plain in wire.xattrs}
    batch.patches = [(ino, index, unpack_patch(version, plain)) for ino, index, version, plain in wire.patches]
    batch.cuts = [Cut(*cut) for cut in wire.cuts]
    batch.keys = dict(wire.keys)
    batch.orphans = dict(wire.orphans)
    batch.settings = dict(wire.settings)
    batch.chunks = {(ino, index): unpack_chunk(plain) for ino, index, plain in wire.chunks}
    batch.dead = [unpack_chunk(plain) for plain in wire.dead]
    return Entry(batch, wire.sealed)
