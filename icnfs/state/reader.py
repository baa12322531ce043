"""Typed reads of the tables through one pair of LMDB transactions.

The same reads serve the request loop's snapshot, a publish's cut and the committer's own write transaction.  Records
are opened here and come out as values; a record that does not open is `DamagedError`.  Not thread-safe: one thread at
a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import lmdb

from icnfs.crypto.sealing import RECORD_OVERHEAD, RecordSealer
from icnfs.errors import NoVolumeError
from icnfs.format import segment as segments
from icnfs.format.records import (
    PAIR,
    PATCH_HEADER,
    RANKS,
    TRIPLE,
    U64,
    ChunkRecord,
    Entry,
    Location,
    Patch,
    Table,
    unpack_chunk,
    unpack_entry,
    unpack_key,
    unpack_location,
    unpack_patch,
    unpack_xattrs,
)
from icnfs.format.segment import SegmentInfo
from icnfs.state.env import IDENTITY, Environments
from icnfs.state.inode import Inode

_NO_LATER: Final = U64.pack(2**64 - 1)
"""After any version that a key names."""


class Reader:
    """Reads of one state of the tables; `meta` and `data` are the transactions it reads through.

    Records are small: `meta` is to give them as bytes, which are quicker cut up than memoryviews.
    """

    def __init__(self, env: Environments, sealer: RecordSealer, meta: lmdb.Transaction, data: lmdb.Transaction) -> None:
        self.env = env
        self.meta: lmdb.Transaction = meta
        self.data: lmdb.Transaction = data
        self._sealer = sealer
        self._dbs = env.meta_dbs
        self._cursors: dict[Table, lmdb.Cursor] = {}
        self._cursors_of: lmdb.Transaction | None = None

    def get(self, table: Table, key: bytes) -> bytes | None:
        """The opened record, or None."""
        sealed = self.meta.get(key, db=self._dbs[table])
        return None if sealed is None else self._sealer.open(table, key, sealed)

    def raw(self, table: Table, key: bytes) -> bytes | None:
        """The record as it lies in LMDB."""
        sealed = self.meta.get(key, db=self._dbs[table])
        return None if sealed is None else bytes(sealed)

    def rows(self, table: Table, start: bytes = b"", prefix: bytes = b"") -> Iterator[tuple[bytes, bytes | memoryview]]:
        """Sealed rows with keys from `start` on that begin with `prefix`, in order."""
        with self.meta.cursor(self._dbs[table]) as cursor:
            if not cursor.set_range(start or prefix or b"\0"):
                return
            for key, sealed in cursor:
                key = bytes(key)
                if not key.startswith(prefix):
                    return
                yield key, sealed

    def _cursor(self, table: Table) -> lmdb.Cursor:
        """One that is kept, for a look that nothing interrupts; it ends with its transaction."""
        if self._cursors_of is not self.meta:
            self._cursors.clear()
            self._cursors_of = self.meta
        cursor = self._cursors.get(table)
        if cursor is None:
            cursor = self._cursors[table] = self.meta.cursor(self._dbs[table])
        return cursor

    def count(self, table: Table) -> int:
        return int(self.meta.stat(self._dbs[table])["entries"])

    # --- inodes and names -------------------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode | None:
        plain = self.get(Table.INODES, U64.pack(ino))
        return None if plain is None else Inode.unpack(ino, plain)

    def entries(self, parent: int, cookie: int) -> Iterator[Entry]:
        """Entries of a directory whose cookies are at least `cookie`, in order of cookies."""
        unseal, number = self._sealer.open, U64.unpack_from
        prefix = U64.pack(parent)
        with self.meta.cursor(self._dbs[Table.NAMES]) as cursor:
            if not cursor.set_range(PAIR.pack(parent, cookie)):
                return
            for key, sealed in cursor:
                key = bytes(key)
                if not key.startswith(prefix):
                    return
                yield unpack_entry(number(key, 8)[0], unseal(Table.NAMES, key, sealed))

    def named(self, parent: int, first: int, name: bytes) -> list[Entry]:
        """Entries at the cookies of one hash, whose first is `first`, up to the one of that name."""
        found: list[Entry] = []
        cursor = self._cursor(Table.NAMES)
        more = cursor.set_range(PAIR.pack(parent, first))
        last = PAIR.pack(parent, first + RANKS - 1)
        while more:
            key, sealed = cursor.item()
            key = bytes(key)
            if key > last:
                break  # before it is opened: one that is damaged harms no name but its own
            entry = unpack_entry(U64.unpack_from(key, 8)[0], self._sealer.open(Table.NAMES, key, sealed))
            found.append(entry)
            if entry.name == name:
                break
            more = cursor.next()
        return found

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        plain = self.get(Table.XATTRS, U64.pack(ino))
        return {} if plain is None else unpack_xattrs(plain)

    # --- contents ---------------------------------------------------------------------------------------------------

    def chunk(self, ino: int, index: int) -> ChunkRecord | None:
        plain = self.get(Table.CHUNKS, PAIR.pack(ino, index))
        return None if plain is None else unpack_chunk(plain)

    def chunks(self, ino: int, first: int = 0) -> Iterator[tuple[int, ChunkRecord]]:
        """(index, record) of an inode's sealed chunks from `first` on."""
        for key, sealed in self.rows(Table.CHUNKS, PAIR.pack(ino, first), U64.pack(ino)):
            yield U64.unpack_from(key, 8)[0], unpack_chunk(self._sealer.open(Table.CHUNKS, key, sealed))

    def has_record(self, ino: int, index: int) -> bool:
        """Whether there is a record of a sealed chunk."""
        return self.meta.get(PAIR.pack(ino, index), db=self._dbs[Table.CHUNKS]) is not None

    def count_chunks(self, ino: int, below: int) -> int:
        """How many records of sealed chunks with indexes below `below` an inode has."""
        count, end = 0, PAIR.pack(ino, below)
        with self.meta.cursor(self._dbs[Table.CHUNKS]) as cursor:
            if cursor.set_range(PAIR.pack(ino, 0)):
                for key in cursor.iternext(keys=True, values=False):
                    if bytes(key) >= end:
                        break
                    count += 1
        return count

    def patched_in(self, ino: int) -> Iterator[int]:
        """Indexes of an inode's chunks with committed patches, one for each patch."""
        for key, _ in self.rows(Table.PATCHES, prefix=U64.pack(ino)):
            yield U64.unpack_from(key, 8)[0]

    def patch_versions(self, ino: int) -> Iterator[tuple[int, int]]:
        """(index, version) of an inode's committed patches."""
        for key, _ in self.rows(Table.PATCHES, prefix=U64.pack(ino)):
            yield U64.unpack_from(key, 8)[0], U64.unpack_from(key, 16)[0]

    def patches(self, ino: int, index: int) -> list[Patch]:
        """The committed patches of one chunk, oldest first."""
        unseal, number = self._sealer.open, U64.unpack_from
        return [
            unpack_patch(number(key, 16)[0], unseal(Table.PATCHES, key, sealed))
            for key, sealed in self._patch_rows(ino, index)
        ]

    def patch_sizes(self, ino: int, index: int) -> list[tuple[int, int]]:
        """(version, bytes of data) of the committed patches of one chunk, oldest first; none is opened."""
        number, overhead = U64.unpack_from, RECORD_OVERHEAD + PATCH_HEADER
        return [(number(key, 16)[0], len(sealed) - overhead) for key, sealed in self._patch_rows(ino, index)]

    def _patch_rows(self, ino: int, index: int) -> list[tuple[bytes, bytes | memoryview]]:
        prefix = PAIR.pack(ino, index)
        found: list[tuple[bytes, bytes | memoryview]] = []
        cursor = self._cursor(Table.PATCHES)
        more = cursor.set_range(prefix)
        while more:
            key, sealed = cursor.item()
            key = bytes(key)
            if not key.startswith(prefix):
                break
            found.append((key, sealed))
            more = cursor.next()
        return found

    def patched(self, after: tuple[int, int], most: int) -> list[tuple[int, int]]:
        """(inode, index) of the chunks with committed patches, in order: the first `most` that come after `after`."""
        places: list[tuple[int, int]] = []
        with self.meta.cursor(self._dbs[Table.PATCHES]) as cursor:
            place = PAIR.pack(*after)
            while len(places) < most and cursor.set_range(place + _NO_LATER):
                place = bytes(cursor.key()[:16])
                places.append(PAIR.unpack(place))
        return places

    def tombstones(self) -> Iterator[tuple[int, int, int]]:
        """(inode, first index, version bound) of every tombstone."""
        for key, _ in self.rows(Table.TOMBSTONES):
            yield TRIPLE.unpack(key)

    def file_key(self, key_id: int) -> tuple[bytes, int] | None:
        plain = self.get(Table.KEYS, U64.pack(key_id))
        return None if plain is None else unpack_key(plain)

    def sealed_chunk(self, version: int) -> memoryview | bytes | None:
        """A sealed chunk, valid while the transaction is."""
        sealed: memoryview | bytes | None = self.data.get(U64.pack(version), db=self.env.data_db)
        return sealed

    def has_chunk(self, version: int) -> bool:
        return self.data.get(U64.pack(version), db=self.env.data_db) is not None

    # --- where things lie -------------------------------------------------------------------------------------------

    def location(self, version: int) -> Location | None:
        plain = self.get(Table.LOCATIONS, U64.pack(version))
        return None if plain is None else unpack_location(plain)

    def segment(self, segment: bytes) -> SegmentInfo | None:
        plain = self.get(Table.SEGMENTS, segment)
        return None if plain is None else segments.decode(plain)

    def setting(self, name: str) -> bytes | None:
        return self.get(Table.SETTINGS, name.encode())

    def identity(self) -> bytes | None:
        """The record in clear that names the volume; raises `NoVolumeError` when nothing was ever stored."""
        raw = self.meta.get(IDENTITY, db=self._dbs[Table.SETTINGS])
        if raw is None:
            raise NoVolumeError(f"{self.env.root}: the local state is empty")
        return bytes(raw)
