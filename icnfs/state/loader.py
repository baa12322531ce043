"""Making a local state: empty, for `init`, or from a checkpoint and runs, for `recover`.

A loader fills a folder that no store has open.  Only `finish` makes it a state that `Store.open` accepts, so a recovery
that was interrupted is never mistaken for a whole one.

Rows come from whoever holds the volume's keys, and are not opened here: each is looked at when it is read, and harms no
more than its file or directory.  What would harm all is refused: rows that no table has, a tree without a root, numbers
that would be handed out again.
"""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb

from icnfs.crypto.keys import MasterKey
from icnfs.crypto.sealing import RecordSealer, Salts
from icnfs.errors import FormatError, LocalDiskError, VolumeExistsError
from icnfs.format.records import FEATURE_OF, PAIR, TRIPLE, U32, U64, Table
from icnfs.format.segment import ID_SIZE
from icnfs.limits import CHUNK_SIZE
from icnfs.state.apply import Writer
from icnfs.state.batch import Counters
from icnfs.state.env import IDENTITY, Environments, pack_identity, require
from icnfs.state.inode import Inode
from icnfs.state.opening import load_salts, put_salt
from icnfs.state.reader import Reader
from icnfs.state.store import INO_STEP, VERSION_STEP

ROOT_INO: Final = 1
"""FUSE's root inode."""

_KEY_SIZES: Final = {
    Table.INODES: U64.size,
    Table.NAMES: PAIR.size,
    Table.XATTRS: U64.size,
    Table.CHUNKS: PAIR.size,
    Table.PATCHES: TRIPLE.size,
    Table.TOMBSTONES: TRIPLE.size,
    Table.KEYS: U64.size,
    Table.LOCATIONS: U64.size,
    Table.SEGMENTS: ID_SIZE,
    Table.ORPHANS: U64.size,
    Table.SALTS: U32.size,
    Table.SNAPSHOTS: U64.size,
    Table.SHARED: U64.size,
}
"""Bytes of a key, by published table."""

NUMBER_MAX: Final = 2**62
"""Inodes and versions stay below: half of what their fields hold, so that reserving ahead never overflows."""


class Loader:
    """Bulk puts of sealed rows.  `commit` now and then; then `finish`, or `abandon`."""

    def __init__(self, root: Path, volume: bytes, chunk_size: int = CHUNK_SIZE) -> None:
        if (root / "meta" / "data.mdb").exists():
            raise VolumeExistsError(f"{root}: a volume's local state is here already; it is not overwritten")
        self._root = root
        self._volume = volume
        self._env = Environments(root, create=True)
        self._txn: lmdb.Transaction = self._env.meta.begin(write=True)
        self._ends: dict[int, bytes] = {}
        """By table, the last key that was ever put: what comes after it goes to the end without a search."""
        self._txn.put(IDENTITY, pack_identity(volume, chunk_size), db=self._env.meta_dbs[Table.SETTINGS])

    def put(self, table: int, key: bytes, sealed: bytes | None) -> None:
        """One row of a checkpoint or run; None deletes.

        Rows of tables that no run may carry, or with keys that their table cannot have, raise ValueError; a disk that
        takes no more, `LocalDiskError`.
        """
        if _KEY_SIZES.get(table) != len(key):  # type: ignore[call-overload]
            raise ValueError(f"table {table} with a key of {len(key)} bytes is not one that runs carry")
        db = self._env.meta_dbs[Table(table)]
        try:
            if table in FEATURE_OF:
                require(self._txn, self._env.meta_dbs[Table.SETTINGS], FEATURE_OF[Table(table)])
            if sealed is None:
                self._txn.delete(key, db=db)
            elif key > self._ends.get(table, b""):
                self._txn.put(key, sealed, db=db, append=True)
                self._ends[table] = key
            else:
                self._txn.put(key, sealed, db=db)
        except lmdb.Error as error:
            raise self._disk_error(error) from None

    def commit(self) -> None:
        """Make what was put durable and go on; `LocalDiskError` where the disk does not take it."""
        try:
            self._txn.commit()
            self._txn = self._env.meta.begin(write=True)
        except lmdb.Error as error:
            raise self._disk_error(error) from None

    def _disk_error(self, error: lmdb.Error) -> LocalDiskError:
        return LocalDiskError(f"{self._root}: the local disk takes no more ({error}); free some space there")

    def finish(
        self,
        master: MasterKey,
        counters: Counters,
        generation: int,
        batch: int,
        settings: dict[str, bytes],
        root: Inode | None = None,
        apart: bool = False,
    ) -> None:
        """Complete the state and close it.

        `generation` is the last that the loaded runs cover (0: none), `batch` the cut they stand for; numbers that
        `counters` reserves are never handed out again.  `root` is a root directory to put where nothing was loaded.
        A state `apart` is not the volume's own: it publishes nothing (see `Salts.draw`).
        """
        with self._env.data.begin() as data:
            salts = Salts()
            records = RecordSealer(master, self._volume, salts)
            writer = Writer(self._env, records, self._txn, data)
            load_salts(writer.reader, records, salts)
            if root is None:
                self._check(writer.reader, counters)
            salt_id, salt = salts.draw(apart=apart)
            salts.add(salt_id, salt)
            salts.current = salt_id
            put_salt(writer, records, salt_id, salt, generation + 1)
            for name, document in settings.items():
                writer.put(Table.SETTINGS, name.encode(), document, 0)
            for name in ("published", "dirty-floor"):
                writer.put(Table.SETTINGS, name.encode(), str(generation).encode(), 0)
            if root is not None:
                writer.put(Table.INODES, U64.pack(root.ino), root.pack(), generation + 1)
            writer.put_counters(counters, batch, generation + 1, 0)
        self._txn.commit()
        self._env.close()

    def _check(self, reader: Reader, counters: Counters) -> None:
        """Raise `FormatError` where what was loaded cannot be gone on with."""
        node = reader.inode(ROOT_INO)
        if node is None or not node.is_dir:
            raise FormatError("the published tree has no root directory")
        for limit, *tables in (
            (counters.ino_limit, Table.INODES),
            (counters.version_limit, Table.LOCATIONS, Table.KEYS, Table.SHARED),
        ):
            for table in tables:
                if self._last(table) >= limit or not 0 < limit <= NUMBER_MAX:
                    raise FormatError(f"the published {table.name.lower()} have numbers that would be given out again")

    def _last(self, table: Table) -> int:
        """The largest key of a table whose keys are numbers."""
        with self._txn.cursor(self._env.meta_dbs[table]) as cursor:
            return U64.unpack(cursor.key())[0] if cursor.last() else 0

    @contextmanager
    def reading(self, master: MasterKey) -> Iterator[Reader]:
        """Reads of what was put so far."""
        salts = Salts()
        records = RecordSealer(master, self._volume, salts)
        with self._env.data.begin() as data:
            reader = Reader(self._env, records, self._txn, data)
            load_salts(reader, records, salts)
            yield reader

    def abandon(self) -> None:
        """Remove everything again."""
        self._txn.abort()
        self._env.close()
        shutil.rmtree(self._root)


def create(root: Path, volume: bytes, master: MasterKey, *, uid: int = 0, gid: int = 0) -> None:
    """An empty tree: a root directory of mode 0755 owned by `uid`, `gid`.  Raises `VolumeExistsError`."""
    loader = Loader(root, volume)
    node = Inode(ROOT_INO, stat.S_IFDIR | 0o755, uid, gid, time.time_ns())
    node.nlink = 2
    node.parent = ROOT_INO
    counters = Counters(1, 0, 2, 1, 2 + INO_STEP, 1 + VERSION_STEP)
    loader.finish(master, counters, 0, 0, {}, node)
