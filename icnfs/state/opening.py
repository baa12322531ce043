"""What opening a local state takes before requests come: identity, salts, and what a crash left in the journal."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb

from icnfs.crypto.keys import MasterKey
from icnfs.crypto.sealing import RecordSealer, Salts
from icnfs.errors import LocalDiskError
from icnfs.format.records import U32, U64, Table
from icnfs.state.apply import Writer, unpack_counters
from icnfs.state.env import IDENTITY, Environments, check_identity
from icnfs.state.journal import NAME, Journal
from icnfs.state.reader import Reader

log = logging.getLogger(__name__)


def read_identity(env: Environments) -> bytes | None:
    with env.meta.begin() as txn:
        raw = txn.get(IDENTITY, db=env.meta_dbs[Table.SETTINGS])
        return None if raw is None else bytes(raw)


def open_journal(reader: Reader, records: RecordSealer, salts: Salts) -> Journal | None:
    """The journal, what a crash left in it committed and shown by `reader`; None where there can be none.

    Raises `LocalDiskError` where there is one that cannot be taken over: it may hold what an fsync promised.
    """
    root = reader.env.root
    held = (root / NAME).exists()
    try:
        journal = Journal(root, records)
    except OSError as error:
        if held:
            raise LocalDiskError(f"{root / NAME}: cannot be opened: {error}; check the disk", errno.EIO) from None
        log.warning("%s: no journal, so each fsync waits for LMDB: %s", root, error)
        return None
    try:
        try:
            _replay(journal, reader, records, salts)
        except OSError as error:
            raise LocalDiskError(f"{root / NAME}: cannot be taken over: {error}; check the disk", errno.EIO) from None
        journal.prepare()
    except OSError as error:
        journal.close()
        log.warning("%s: no journal, so each fsync waits for LMDB: %s", root, error)
        return None
    except BaseException:
        journal.close()
        raise
    return journal


def _replay(journal: Journal, reader: Reader, records: RecordSealer, salts: Salts) -> None:
    """Commit what a crash left in the journal, and let `reader` see it."""
    plain = reader.setting("counters")
    if plain is None:
        return
    env = reader.env
    _, number, _, dirty_bytes = unpack_counters(plain)
    try:
        entries = journal.read(number, salts.newest)
    except OSError as error:
        raise LocalDiskError(f"{env.root / NAME}: cannot be read: {error}; check the disk", errno.EIO) from None
    if not entries:
        return
    salts.current = salts.newest
    last = entries[-1].batch

    def take_over() -> None:
        with env.data.begin(write=True, db=env.data_db) as data:
            for version, sealed in (chunk for entry in entries for chunk in entry.sealed):
                data.put(U64.pack(version), sealed)
        env.sync_data()
        with env.data.begin() as data, env.meta.begin(write=True) as meta:
            writer = Writer(env, records, meta, data)
            for entry in entries:
                writer.apply(entry.batch)
            writer.put_counters(last.counters, last.number, last.next_generation, dirty_bytes + writer.dirty_change)

    while True:
        try:
            take_over()
            break
        except lmdb.Error as error:
            if not env.give_up_reserve():
                why = f"the local disk takes no more ({env.reason(error)}); free some space there"
                raise LocalDiskError(f"{env.root}: {why}") from None
    log.info("took %d batches from the journal", len(entries))
    reader.data.abort()
    reader.data = env.data.begin(buffers=True)
    reader.meta.abort()
    reader.meta = env.meta.begin()


@contextmanager
def reading(root: Path, master: MasterKey) -> Iterator[Reader]:
    """The records of a local state that nobody else has open, only to be looked at."""
    env = Environments(root)
    try:
        volume, _, _ = check_identity(read_identity(env), root)
        salts = Salts()
        records = RecordSealer(master, volume, salts)
        with env.meta.begin() as meta, env.data.begin() as data:
            reader = Reader(env, records, meta, data)
            load_salts(reader, records, salts)
            yield reader
    finally:
        env.close()


SALT_USE: Final = "salts"


def put_salt(writer: Writer, records: RecordSealer, salt_id: int, salt: bytes, generation: int) -> None:
    key = U32.pack(salt_id)
    writer.put_sealed(Table.SALTS, key, records.seal_fixed(SALT_USE, key, salt), generation)


def load_salts(reader: Reader, records: RecordSealer, salts: Salts) -> None:
    """Make every salt of the volume known; the first record that a wrong master key fails to open."""
    for key, sealed in reader.rows(Table.SALTS):
        salts.add(U32.unpack(key)[0], records.open_fixed(SALT_USE, key, bytes(sealed)))
