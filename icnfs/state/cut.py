"""A cut: one committed state of the tables, held still while it is published.

The snapshot may already show batches later than the one that was closed for the cut; it is whole all the same, being
one commit.  `generation` is the last dirty generation that is complete in it: what the next publish must begin
after.  Rows of the generation that follows may be in the snapshot too; they are listed, and listed again next time,
which is harmless.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

import lmdb
import trio

from icnfs.errors import FormatError
from icnfs.format import segment as segments
from icnfs.format.records import (
    DIRTY_PREFIX,
    FEATURE_OF,
    PAIR,
    PUBLISHED,
    U64,
    Location,
    Table,
    pack_location,
    unpack_chunk,
)
from icnfs.format.segment import SegmentInfo
from icnfs.state.apply import Writer, unpack_counters
from icnfs.state.batch import Counters
from icnfs.state.reader import Reader

if TYPE_CHECKING:
    from icnfs.state.store import Store

log = logging.getLogger(__name__)

KEEP_STEP = 4096
FORGET_STEP = 4096
"""Rows kept, and notes of dirty ones dropped, in one commit: some 30 ms of the committer's time."""

Row = tuple[int, bytes, bytes | None]
"""(table, key, sealed record or None where it was deleted)"""


class PublishCut:
    """Made by `begin_cut`; use from one thread at a time, and `close` it: it keeps LMDB from reusing pages."""

    def __init__(self, store: Store, generation: int) -> None:
        self.generation = generation
        self.time_ns = time.time_ns()
        self._store = store
        self._meta, self._data = snapshots(store)
        self.reader = Reader(store.env, store.records, self._meta, self._data)
        plain = self.reader.setting("counters")
        assert plain is not None
        counters, self.batch, _, self.dirty_bytes = unpack_counters(plain)
        self.counters: Counters = counters

    def close(self) -> None:
        """Let go, of the transactions too: as long as something refers to one, as tracebacks do, its slot is taken."""
        self._meta.abort()
        self._data.abort()
        del self._meta, self._data, self.reader.meta, self.reader.data

    def _dirty_keys(self, since: int, table: int = 0) -> Iterator[bytes]:
        """table (1) || key of each row, of one `table` or of all, noted dirty after `since`; in order, each once.

        The notes of each generation lie in order, so merging them takes no more memory however many there are.
        """
        last = b""
        for row in merge(*(self._noted(generation, table) for generation in self._generations(since))):
            if row != last:
                yield row
                last = row

    def _generations(self, since: int) -> list[int]:
        """The generations after `since` that have notes."""
        found = []
        with self._meta.cursor(self._store.env.meta_dbs[Table.DIRTY]) as cursor:
            while cursor.set_range(U64.pack(since + 1)):
                since = U64.unpack_from(cursor.key())[0]
                found.append(since)
        return found

    def _noted(self, generation: int, table: int) -> Iterator[bytes]:
        prefix = DIRTY_PREFIX.pack(generation, table) if table else U64.pack(generation)
        for key, _ in self.reader.rows(Table.DIRTY, prefix=prefix):
            yield key[8:]

    def has_changed(self, since: int, table: int = 0) -> bool:
        """Whether anything, or anything of one `table`, was noted dirty after generation `since`."""
        return any(self._dirty_keys(since, table)) if table else bool(self._generations(since))

    def dirty_rows(self, since: int) -> Iterator[Row]:
        """What changed after generation `since`, as it is at the cut, by table and key."""
        for row in self._dirty_keys(since):
            table, key = Table(row[0]), row[1:]
            yield table, key, self.reader.raw(table, key)

    def all_rows(self) -> Iterator[Row]:
        """Every row of the published tables, by table and key: a checkpoint."""
        for table in PUBLISHED:
            for key, sealed in self.reader.rows(table):
                yield table, key, bytes(sealed)

    def features(self, since: int) -> int:
        """What a run requires that holds the rows changed after generation `since`, 0: all rows."""
        return sum(
            flag
            for table, flag in FEATURE_OF.items()
            if self.reader.count(table) or (since and self.has_changed(since, table))
        )

    @property
    def row_count(self) -> int:
        """How many rows `all_rows` gives."""
        return sum(self.reader.count(table) for table in PUBLISHED)

    def unlocated(self) -> Iterator[tuple[int, int]]:
        """(version, sealed bytes) of every chunk of the cut that no location names yet, in order of their files, once.

        One that is damaged or missing here is left out, with a warning: its file is published without it.
        """
        shared: set[int] = set()
        for row in self._dirty_keys(self._store.published_generation, Table.CHUNKS):
            try:
                plain = self.reader.get(Table.CHUNKS, row[1:])
                if plain is None:
                    continue
                record = unpack_chunk(plain)
            except FormatError as error:
                log.warning("chunk %d of inode %d is not published: %s", *reversed(PAIR.unpack(row[1:])), error)
                continue
            if record.version in shared:
                continue
            if self.reader.raw(Table.LOCATIONS, U64.pack(record.version)) is None:
                if self.reader.raw(Table.SHARED, U64.pack(record.version)) is not None:
                    shared.add(record.version)
                if self.reader.has_chunk(record.version):
                    yield record.version, record.length
                else:
                    log.warning("version %d of a chunk is not published: it is not here", record.version)

    def sealed_chunk(self, version: int) -> memoryview | bytes:
        """The sealed chunk, valid until `close`; KeyError where the cut has none."""
        sealed = self.reader.sealed_chunk(version)
        if sealed is None:
            raise KeyError(version)
        return sealed


def snapshots(store: Store) -> tuple[lmdb.Transaction, lmdb.Transaction]:
    """Snapshots of `meta` and `data` in which everything lies that `meta` names; each takes a slot until it is let go.

    What `meta` names is erased only after a later commit of it; so there was none before `data` was held still.
    """
    env = store.env
    while True:
        meta, data = env.meta.begin(buffers=True), env.data.begin(buffers=True)
        if env.meta.info()["last_txnid"] == meta.id():
            return meta, data
        meta.abort()
        data.abort()


async def begin_cut(store: Store) -> PublishCut:
    """Close the open batch, wait until it is durable, and hold that state still."""
    number, generation = store.close_for_cut()
    await store.wait_committed(number)
    return PublishCut(store, generation)


def seal_location(store: Store, version: int, location: Location) -> Row:
    key = U64.pack(version)
    return Table.LOCATIONS, key, store.records.seal(Table.LOCATIONS, key, pack_location(location))


def seal_segment(store: Store, info: SegmentInfo) -> Row:
    return Table.SEGMENTS, info.id, store.records.seal(Table.SEGMENTS, info.id, segments.encode(info))


async def finish_publish(
    store: Store,
    cut: PublishCut,
    rows: Iterable[Row],
    documents: dict[str, bytes],
    keep_since: int,
    conclude_with: Callable[[Writer, int], None] = lambda _writer, _generation: None,
) -> None:
    """A durable head names the cut: keep its location and segment rows, and the publisher's `documents` as settings.

    `rows` are committed in their order and, where they are many, in steps, so that nobody's commit waits for all of
    them; each segment must come before what lies in it.  After a crash in between, the next publish leaves out what has
    a location, as if it had uploaded that itself, and carries the row.
    `conclude_with` is done in the commit that concludes it.
    Dirty rows up to generation `keep_since` are not needed again, and are forgotten in steps.
    """
    rest = iter(rows)
    some = await _take(rest)
    while len(some) == KEEP_STEP:
        await store.task(partial(_keep_rows, cut.generation, some))
        some = await _take(rest)

    def conclude(writer: Writer, generation: int) -> None:
        _keep_rows(cut.generation, some, writer, generation)
        for name, document in {**documents, "published": str(cut.generation).encode()}.items():
            writer.put(Table.SETTINGS, name.encode(), document, 0)
        conclude_with(writer, cut.generation)
        if keep_since > store.dirty_floor:
            writer.put(Table.SETTINGS, b"dirty-floor", str(keep_since).encode(), 0)

    await store.task(conclude)
    store.published_generation = cut.generation
    if keep_since > store.dirty_floor:
        store.dirty_floor = keep_since
        while await store.task(lambda writer, _: _forget(writer, keep_since)):
            pass


async def _take(rows: Iterator[Row]) -> list[Row]:
    return await trio.to_thread.run_sync(lambda: list(islice(rows, KEEP_STEP)))


def _keep_rows(of_cut: int, rows: Sequence[Row], writer: Writer, generation: int) -> None:
    for table, key, sealed in rows:
        assert sealed is not None
        writer.put_sealed(Table(table), key, sealed, of_cut)
        if table == Table.LOCATIONS:
            _clean(writer, key, generation)


def _clean(writer: Writer, key: bytes, generation: int) -> None:
    """A version has a location now: it is dirty no more, unless it died meanwhile (and was discounted then)."""
    reader = writer.reader
    if reader.raw(Table.GARBAGE, key) is not None:
        return
    sealed = reader.sealed_chunk(U64.unpack(key)[0])
    if sealed is None:
        writer.note_garbage(key, generation)
    else:
        writer.dirty_change -= len(sealed)


def _forget(writer: Writer, keep_since: int) -> bool:
    """Drop some dirty rows; false when there was none left."""
    end = DIRTY_PREFIX.pack(keep_since + 1, 0)
    keys: list[bytes] = []
    for key, _ in writer.reader.rows(Table.DIRTY):
        if key >= end or len(keys) == FORGET_STEP:
            break
        keys.append(key)
    for key in keys:
        writer.delete(Table.DIRTY, key, 0)
    return bool(keys)


def put_segments(infos: Sequence[SegmentInfo], writer: Writer, generation: int) -> None:
    """A task: segments whose shares changed place; published with the next run."""
    for info in infos:
        writer.put(Table.SEGMENTS, info.id, segments.encode(info), generation)


async def move_chunks(store: Store, info: SegmentInfo, moves: Sequence[tuple[int, Location, Location]]) -> None:
    """Versions lie in segment `info`, which is stored, from now on: (version, where it lay, where it lies).

    One that lies elsewhere by now is left alone.  Published with the next run.  Many are moved in steps: after a crash
    in between, each lies where its row says.
    """

    def step(some: Sequence[tuple[int, Location, Location]], writer: Writer, generation: int) -> None:
        writer.put(Table.SEGMENTS, info.id, segments.encode(info), generation)
        for version, old, new in some:
            if writer.reader.location(version) == old:
                writer.put(Table.LOCATIONS, U64.pack(version), pack_location(new), generation)

    for at in range(0, len(moves), KEEP_STEP):
        store.touch()
        await store.task(partial(step, moves[at : at + KEEP_STEP]))


def segments_at(cut: PublishCut, *, all_of_them: bool = False) -> Iterator[SegmentInfo]:
    """The segments of a cut's records; one that cannot be read is left out, with a warning, or raises `FormatError`."""
    for key, _ in cut.reader.rows(Table.SEGMENTS):
        try:
            segment = cut.reader.segment(key)
        except FormatError as error:
            if all_of_them:
                raise
            log.warning("segment %s: %s", key.hex(), error)
            continue
        if segment is not None:
            yield segment
