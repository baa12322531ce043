"""Writing batches into the tables, inside one LMDB write transaction of `meta`.

Everything that is published is also noted in `dirty` under the batch's generation.  A chunk's version that nothing
names any more is *dead*: it is noted in `garbage` in the same transaction, its data is erased later, and its note
goes then, unless a location still names it at the providers (which only collection may release).  Of a version that is
marked in `shared`, that is found out later: see `marks`.
"""

from __future__ import annotations

import logging
from struct import Struct
from typing import Final

import lmdb

from icnfs.crypto.sealing import RecordSealer
from icnfs.errors import FormatError
from icnfs.format.records import (
    DIRTY_PREFIX,
    FEATURE_OF,
    PAIR,
    PUBLISHED,
    TRIPLE,
    U64,
    ChunkRecord,
    Table,
    pack_chunk,
    pack_entry,
    pack_key,
    pack_patch,
    pack_xattrs,
    unpack_chunk,
)
from icnfs.state.batch import Batch, Counters, Cut
from icnfs.state.env import Environments, require
from icnfs.state.reader import Reader

log = logging.getLogger(__name__)

COUNTERS: Final = Struct(">QQQQQQQQQ")
_PUBLISHED: Final = frozenset(PUBLISHED)

DIRECT_CUT: Final = 256
"""A cut of at most so many rows is carried out at once; a larger one becomes a tombstone for the reaper."""


class Writer:
    """One write transaction; `doomed` collects the versions whose data may be erased once it is durable.

    `keeping`: what dies is only marked, for a cut that is being copied from may name it again.
    """

    def __init__(
        self,
        env: Environments,
        sealer: RecordSealer,
        meta: lmdb.Transaction,
        data: lmdb.Transaction,
        *,
        keeping: bool = False,
    ) -> None:
        self.reader = Reader(env, sealer, meta, data)
        self.doomed: list[int] = []
        self.dirty_change = 0
        """Bytes of sealed chunks that became dirty, less those that ceased to be."""
        self.spared = 0
        """Times that something marked lost what named it, or was marked: there may be something to be found out."""
        self._cuts: dict[int, list[Cut]] = {}
        self._meta = meta
        self._dbs = env.meta_dbs
        self._dirty_db = env.meta_dbs[Table.DIRTY]
        self._sealer = sealer
        self._keeping = keeping
        self._any_marked = keeping or self.reader.count(Table.SHARED) > 0

    # --- rows -------------------------------------------------------------------------------------------------------

    def put(self, table: Table, key: bytes, plain: bytes, generation: int) -> None:
        """Seal and put; published tables are noted dirty in `generation`."""
        self.put_sealed(table, key, self._sealer.seal(table, key, plain), generation)

    def put_sealed(self, table: Table, key: bytes, sealed: bytes, generation: int) -> None:
        self._meta.put(key, sealed, db=self._dbs[table])
        if table in _PUBLISHED:
            self._meta.put(DIRTY_PREFIX.pack(generation, table) + key, b"", db=self._dirty_db)
            if table in FEATURE_OF:
                require(self._meta, self._dbs[Table.SETTINGS], FEATURE_OF[table])

    def delete(self, table: Table, key: bytes, generation: int) -> bool:
        """Delete; true if there was such a row."""
        if not self._meta.delete(key, db=self._dbs[table]):
            return False
        if table in _PUBLISHED:
            self._meta.put(DIRTY_PREFIX.pack(generation, table) + key, b"", db=self._dirty_db)
        return True

    # --- batches ----------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """All of `batch`, in the order that its invariants ask for."""
        generation = batch.generation
        self._cuts = {}
        for cut in batch.cuts:
            self._cut(cut, batch)
            self._cuts.setdefault(cut.ino, []).append(cut)
        for record in batch.dead:
            self._bury(record, generation, named=False)
        for (ino, index), chunk in batch.chunks.items():
            self._put_chunk(ino, index, chunk, batch)
        for ino, index, patch in batch.patches:
            if not self._is_cut(ino, index, patch.version):
                self.put(Table.PATCHES, TRIPLE.pack(ino, index, patch.version), pack_patch(patch), generation)
        for ino, node in batch.inodes.items():
            if node is None:
                self.delete(Table.INODES, U64.pack(ino), generation)
            else:
                self.put(Table.INODES, U64.pack(ino), node.pack(), generation)
        for (parent, cookie), entry in batch.names.items():
            key = PAIR.pack(parent, cookie)
            if entry is None:
                self.delete(Table.NAMES, key, generation)
            else:
                self.put(Table.NAMES, key, pack_entry(entry), generation)
        self._apply_rare(batch, generation)

    def _apply_rare(self, batch: Batch, generation: int) -> None:
        for ino, xattrs in batch.xattrs.items():
            if xattrs:
                self.put(Table.XATTRS, U64.pack(ino), pack_xattrs(xattrs), generation)
            else:
                self.delete(Table.XATTRS, U64.pack(ino), generation)
        for key_id, file_key in batch.keys.items():
            if file_key is None:
                self._bury_key(U64.pack(key_id), generation)
            else:
                self.put(Table.KEYS, U64.pack(key_id), pack_key(file_key, 1), generation)
        for ino, orphan in batch.orphans.items():
            if orphan:
                self.put(Table.ORPHANS, U64.pack(ino), b"", generation)
            else:
                self.delete(Table.ORPHANS, U64.pack(ino), generation)
        for name, document in batch.settings.items():
            if document is None:
                self.delete(Table.SETTINGS, name.encode(), generation)
            else:
                self.put(Table.SETTINGS, name.encode(), document, generation)

    def put_counters(self, counters: Counters, number: int, generation: int, dirty_bytes: int) -> None:
        """What the next opening needs besides records."""
        plain = COUNTERS.pack(
            counters.files,
            counters.bytes_used,
            counters.next_ino,
            counters.next_version,
            counters.ino_limit,
            counters.version_limit,
            number,
            generation,
            max(dirty_bytes, 0),
        )
        self.put(Table.SETTINGS, b"counters", plain, generation)

    def _put_chunk(self, ino: int, index: int, chunk: ChunkRecord, batch: Batch) -> None:
        key = PAIR.pack(ino, index)
        if self._is_cut(ino, index, chunk.version):
            self._bury(chunk, batch.generation, named=False)
            return
        old = self.reader.raw(Table.CHUNKS, key)
        if old is not None:
            self._bury_row(key, old, batch.generation)
        self.dirty_change += chunk.length
        self.put(Table.CHUNKS, key, pack_chunk(chunk), batch.generation)
        stale = [k for k, _ in self.reader.rows(Table.PATCHES, key, key) if U64.unpack_from(k, 16)[0] < chunk.version]
        for patch_key in stale:
            self.delete(Table.PATCHES, patch_key, batch.generation)

    def _is_cut(self, ino: int, index: int, version: int) -> bool:
        return any(index >= cut.first and version <= cut.bound for cut in self._cuts.get(ino, ()))

    # --- what goes --------------------------------------------------------------------------------------------------

    def note_garbage(self, key: bytes, generation: int) -> None:
        """The version died in `generation`: trees of later cuts do not name it."""
        self._meta.put(key, U64.pack(generation), db=self._dbs[Table.GARBAGE])

    def note_unnamed(self, first: int, end: int) -> None:
        """Note as dead whatever lies in `data` from version `first` on, below `end`."""
        with self.reader.data.cursor(self.reader.env.data_db) as cursor:
            if cursor.set_range(U64.pack(first)):
                for key in cursor.iternext(keys=True, values=False):
                    if U64.unpack(key)[0] >= end:
                        break
                    self.note_garbage(bytes(key), 0)

    # --- what may be named more than once -----------------------------------------------------------------------------

    def mark(self, key: bytes, generation: int) -> None:
        """Note that a version, or a file key, may be named more than once."""
        self.put(Table.SHARED, key, U64.pack(generation), generation)
        self._any_marked = True

    def is_marked(self, key: bytes) -> bool:
        return self._any_marked and self._meta.get(key, db=self._dbs[Table.SHARED]) is not None

    def revive(self, key: bytes) -> None:
        """Something names a dead version again: it has no note any more."""
        self._meta.delete(key, db=self._dbs[Table.GARBAGE])

    def _spares(self, key: bytes, generation: int) -> bool:
        """Whether a version, or a file key, may still be named although a row that named it goes."""
        if not self._any_marked:
            return False
        marked = self.is_marked(key)
        if self._keeping and not marked:
            self.mark(key, generation)
            marked = True
        self.spared += marked
        return marked

    def _bury_key(self, key: bytes, generation: int) -> None:
        if not self._spares(key, generation):
            self.delete(Table.KEYS, key, generation)

    def _bury(self, record: ChunkRecord, generation: int, *, named: bool) -> None:
        """`record`'s version died in `generation`, if it is not marked; `named`: a committed row named it."""
        key = U64.pack(record.version)
        if named and self._any_marked:
            self.spared += self.is_marked(U64.pack(record.key_id))  # perhaps the last that is sealed under it
            if self._spares(key, generation):
                return
        self.note_garbage(key, generation)
        self.doomed.append(record.version)
        if named and self._meta.get(key, db=self._dbs[Table.LOCATIONS]) is None:
            self.dirty_change -= record.length

    def _bury_row(self, key: bytes, sealed: bytes, generation: int) -> None:
        record = self._record(key, sealed)
        if record is not None:
            self._bury(record, generation, named=True)

    def _record(self, key: bytes, sealed: bytes | memoryview) -> ChunkRecord | None:
        """None where the row is damaged: what it named stays in `data`, which harms nothing else."""
        try:
            return unpack_chunk(self._sealer.open(Table.CHUNKS, key, sealed))
        except FormatError as error:
            log.warning("chunk %d of inode %d goes: %s", *reversed(PAIR.unpack(key)), error)
            return None

    def _cut(self, cut: Cut, batch: Batch) -> None:
        if not self.reap(cut, batch.generation, DIRECT_CUT):
            key = TRIPLE.pack(cut.ino, cut.first, cut.bound)
            self.put(Table.TOMBSTONES, key, b"", batch.generation)
            batch.lingering.append(cut)

    def reap(self, cut: Cut, generation: int, most: int) -> bool:
        """Erase up to `most` rows that `cut` killed; true when none is left."""
        prefix = U64.pack(cut.ino)
        start = PAIR.pack(cut.ino, cut.first)
        left = most
        dead = []
        for key, sealed in self.reader.rows(Table.CHUNKS, start, prefix):
            record = self._record(key, sealed)
            if record is None or record.version <= cut.bound:
                dead.append((key, record))
                left -= 1
                if not left:
                    break
        for key, record in dead:
            self.delete(Table.CHUNKS, key, generation)
            if record is not None:
                self._bury(record, generation, named=True)
        stale = []
        for key, _ in self.reader.rows(Table.PATCHES, start, prefix):
            if not left:
                break
            if U64.unpack_from(key, 16)[0] <= cut.bound:
                stale.append(key)
                left -= 1
        for key in stale:
            self.delete(Table.PATCHES, key, generation)
        return left > 0


def unpack_counters(plain: bytes) -> tuple[Counters, int, int, int]:
    """(counters, batch number, generation, dirty bytes)."""
    files, used, next_ino, next_version, ino_limit, version_limit, number, generation, dirty = COUNTERS.unpack(plain)
    return Counters(files, used, next_ino, next_version, ino_limit, version_limit), number, generation, dirty
