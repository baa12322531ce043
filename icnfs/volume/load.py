"""Loading a published state into a local state of its own: all of a head, or the tree of one of its snapshots.

A snapshot's tree comes from its runs, and what its record leaves to the volume, where things lie and under which salts,
from those of the head.  Nothing is written at a provider.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from icnfs.errors import DamagedError, FormatError, IcnfsError
from icnfs.format import segment as segment_format
from icnfs.format.head import Head, RunInfo
from icnfs.format.records import PUBLISHED, Table
from icnfs.format.run import RunReader
from icnfs.format.segment import SegmentInfo
from icnfs.format.snapshot import Snapshot
from icnfs.state import snapshots
from icnfs.state.apply import Writer
from icnfs.state.batch import Counters
from icnfs.state.loader import Loader
from icnfs.state.opening import load_salts
from icnfs.state.reader import Reader
from icnfs.state.store import Store
from icnfs.volume import fence as fences
from icnfs.volume.keyring import Keyring
from icnfs.volume.network import Network

PART_SECONDS: Final = 300.0
"""Bound of reading one part of a run, at most 16 MiB."""

PARTS_AHEAD: Final = 2
"""Parts read ahead of loading."""

PLACES: Final = frozenset((Table.LOCATIONS, Table.SEGMENTS, Table.SALTS, Table.SNAPSHOTS))
"""Tables that are the volume's, and no tree's."""

NEW_PLACES: Final = (Table.SALTS, Table.SEGMENTS, Table.LOCATIONS)
"""What changes of the places that an open snapshot reads from, each after what it leans on."""

PUT_STEP: Final = 4096
"""Rows put in one commit, some 30 ms of the committer's time."""

TREE: Final = frozenset(PUBLISHED) - PLACES

Progress = Callable[[int, int], None]
"""(bytes of records loaded, bytes of all)."""


async def load(network: Network, half: Path, head: Head, settings: dict[str, bytes], progress: Progress) -> None:
    """Build the local state of `head`, with these settings, in the empty folder `half`."""

    def fill(loader: Loader, parts: _Parts) -> None:
        _load_runs(network, loader, head.runs, parts, frozenset(PUBLISHED))
        loader.finish(network.master, Counters(*head.counters), head.generation, head.cut, settings)

    await _build(network, half, head, fill, progress)


async def load_past(network: Network, half: Path, head: Head, name: str, progress: Progress) -> Snapshot:
    """Build the local state of the snapshot `name`, as `head` knows it, in the empty folder `half`.

    It is based on a head as the snapshot's was.  Raises `SnapshotError` where there is none of that name.
    """
    found: list[Snapshot] = []

    def fill(loader: Loader, parts: _Parts) -> None:
        _load_runs(network, loader, head.runs, parts, PLACES)
        with loader.reading(network.master) as reader:
            snapshot = snapshots.find(reader, name)
            past = past_of(head, snapshot, reader)
        _load_runs(network, loader, past.runs, parts, TREE)
        counters = Counters(*past.counters[:2], *head.counters[2:])
        settings = {fences.HEAD: fences.encode_base(past)}
        loader.finish(network.master, counters, past.generation, past.cut, settings, apart=True)
        found.append(snapshot)

    await _build(network, half, head, fill, progress)
    return found[0]


async def load_places(network: Network, store: Store, head: Head, since: int) -> None:
    """Bring the open state of a snapshot, which knew generation `since`, up to where things lie as `head` knows it.

    Raises what reading runs does; then some of it may be there, and it can be done again.
    """
    for table in NEW_PLACES:
        for run in head.runs:
            if run.upto > since:
                await _load_new(network, store, run, table)
        load_salts(store.reader, store.records, store.salts)


async def _load_new(network: Network, store: Store, run: RunInfo, table: Table) -> None:
    reader = RunReader(network.open_run, run.id)

    def rows_in(payload: bytes) -> list[tuple[bytes, bytes]]:
        return [(key, value) for t, key, value in reader.feed(payload) if t == table and value is not None]

    def put(rows: Sequence[tuple[bytes, bytes]], writer: Writer, generation: int) -> None:
        for key, value in rows:
            writer.put_sealed(table, key, value, generation)

    for part in run.segments():
        payload = await network.transfer.get_segment(part, network.names_of(part), deadline=PART_SECONDS)
        rows = await trio.to_thread.run_sync(rows_in, payload[: part.size])
        for at in range(0, len(rows), PUT_STEP):
            await store.task(partial(put, rows[at : at + PUT_STEP]))
    reader.close()


async def load_tree(network: Network, half: Path, past: Head, salts: Mapping[bytes, bytes], progress: Progress) -> None:
    """Build a local state in the empty folder `half` that has a snapshot's tree, and does not tell where things lie.

    `past` is the head that it was made of (`past_of`), `salts` are the rows of that table.
    """

    def fill(loader: Loader, parts: _Parts) -> None:
        for key, sealed in salts.items():
            loader.put(Table.SALTS, key, sealed)
        _load_runs(network, loader, past.runs, parts, TREE)
        loader.finish(network.master, Counters(*past.counters), past.generation, past.cut, {}, apart=True)

    await _build(network, half, past, fill, progress)


def past_of(head: Head, snapshot: Snapshot, reader: Reader) -> Head:
    """The head that a snapshot was made of, with its parts where they lie now."""
    runs = tuple(
        RunInfo(run.id, run.since, run.upto, run.rows, run.size, tuple(_part(reader, part) for part in run.parts))
        for run in snapshot.runs
    )
    return msgspec.structs.replace(
        head,
        epoch=snapshot.epoch,
        sequence=snapshot.sequence,
        time_ns=snapshot.time_ns,
        cut=snapshot.cut,
        generation=snapshot.generation,
        counters=snapshot.counters,
        runs=runs,
    )


def _part(reader: Reader, id: bytes) -> bytes:
    segment = reader.segment(id)
    if segment is None:
        raise DamagedError(f"no record tells where part {id.hex()} of the snapshot lies")
    return segment_format.encode(segment)


# --- parts ------------------------------------------------------------------------------------------------------------


class _Parts:
    """For the thread that loads: parts of runs, read ahead in the order in which they were asked for."""

    def __init__(self, network: Network, progress: Progress) -> None:
        self._network = network
        self._progress = progress
        self._wanted, self._asked = trio.open_memory_channel[SegmentInfo](float("inf"))
        self._send, self._receive = trio.open_memory_channel[bytes | IcnfsError](PARTS_AHEAD)
        self._done = self._all = 0

    async def read(self) -> None:
        """Read what is asked for, until cancelled; an error goes to who takes the part."""
        async for part in self._asked:
            try:
                names = self._network.names_of(part)
                payload = await self._network.transfer.get_segment(part, names, deadline=PART_SECONDS)
            except IcnfsError as error:
                await self._send.send(error)
            else:
                await self._send.send(payload[: part.size])

    def want(self, parts: Sequence[SegmentInfo]) -> None:
        """In the thread: these are to be read next."""
        self._all += sum(part.size for part in parts)
        for part in parts:
            trio.from_thread.run_sync(self._wanted.send_nowait, part)

    def take(self) -> bytes:
        """In the thread: the next part; raises what stood in the way."""
        payload = trio.from_thread.run(self._receive.receive)
        if isinstance(payload, IcnfsError):
            raise payload
        return payload

    def took(self, size: int) -> None:
        """In the thread: so much more is loaded."""
        self._done += size
        trio.from_thread.run_sync(self._progress, self._done, self._all)


async def _build(
    network: Network, half: Path, head: Head, fill: Callable[[Loader, _Parts], None], progress: Progress
) -> None:
    """Have `fill` make a local state in `half`, with the head's keys.

    A thread of its own owns the loader (LMDB's write transactions belong to their thread) while parts are read ahead.
    """
    Keyring.decode(head.keyring).save(half)
    parts = _Parts(network, progress)
    failures: list[IcnfsError] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.read)
        try:
            await trio.to_thread.run_sync(_fill, half, head, fill, parts)
        except IcnfsError as error:
            failures.append(error)
        nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


def _fill(half: Path, head: Head, fill: Callable[[Loader, _Parts], None], parts: _Parts) -> None:
    """In the thread: make the local state, or leave none."""
    loader = Loader(half, head.volume, head.chunk_size)
    finished = False
    try:
        fill(loader, parts)
        finished = True
    finally:
        if not finished:
            loader.abandon()


def _load_runs(
    network: Network, loader: Loader, runs: Sequence[RunInfo], parts: _Parts, tables: Collection[int]
) -> None:
    """In the thread: the rows of some tables of these runs."""
    parts.want([part for run in runs for part in run.segments()])
    for run in runs:
        for size in _load_run(network, loader, run, parts, tables):
            parts.took(size)


def _load_run(network: Network, loader: Loader, run: RunInfo, parts: _Parts, tables: Collection[int]) -> Iterator[int]:
    """In the thread: one run; yields the bytes of each part once it is loaded."""
    reader = RunReader(network.open_run, run.id)
    rows = 0
    try:
        for _ in run.parts:
            payload = parts.take()
            for table, key, value in reader.feed(payload):
                rows += 1
                if table in tables or table not in PUBLISHED:
                    loader.put(table, key, value)
            loader.commit()
            yield len(payload)
        reader.close()
    except ValueError as error:
        raise FormatError(f"a run holds what no run may: {error}") from None
    if rows != run.rows:
        raise DamagedError(f"a run holds {rows} records where its head says {run.rows}")
