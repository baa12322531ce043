"""Where a file's chunks lie is told of one state of it, while the event loop goes on."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from functools import partial

import pytest
import trio

from icnfs.errors import FsError, LocalDiskError
from icnfs.format.records import PAIR, U64, ChunkRecord, Location, Table, pack_chunk, pack_location
from icnfs.format.segment import SegmentInfo, ShareInfo, encode
from icnfs.limits import CHUNK_SIZE
from icnfs.state.apply import Writer
from icnfs.state.reader import Reader
from icnfs.volume.collect import STEP
from icnfs.volume.status import ChunkPlace
from icnfs.volume.volume import Volume
from tests.volume.world import NAMES, World, chunks_of, files_of, put_file

FIRST_VERSION = 1 << 40
CHUNKS = 6 * STEP
IDS = [bytes([1, number, *bytes(14)]) for number in range(CHUNKS // 128)]
"""Segments that lie at providers only: of 128 chunks each."""


def put_rows(ino: int, writer: Writer, generation: int) -> None:
    """A task: `ino` has CHUNKS published chunks, none of which is here."""
    shares = tuple(ShareInfo(name, bytes(32), name != "ada") for name in NAMES)
    for id in IDS:
        writer.put(Table.SEGMENTS, id, encode(SegmentInfo(id, 4, 6, 1 << 22, 1 << 24, shares)), generation)
    for index in range(CHUNKS):
        version = FIRST_VERSION + index
        record = ChunkRecord(version, 1, 1, 100, bytes(16))
        location = Location(IDS[index // 128 % len(IDS)], index % 4, 0, 100)
        writer.put(Table.CHUNKS, PAIR.pack(ino, index), pack_chunk(record), generation)
        writer.put(Table.LOCATIONS, U64.pack(version), pack_location(location), generation)


async def put_large(volume: Volume) -> int:
    """A file with the rows of CHUNKS chunks; its inode."""
    await volume.loaded.wait()
    ino = await put_file(volume, b"large", b"")
    await volume.store.flush()
    await volume.store.task(partial(put_rows, ino))
    return ino


def test_the_loop_goes_on_while_a_file_of_many_chunks_is_told_of(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        ino = await put_large(volume)
        seen: list[int] = []
        threads: set[int] = set()
        turns: set[int] = set()

        def see(chunk: ChunkPlace) -> None:
            seen.append(chunk.index)
            threads.add(threading.get_ident())

        async def others() -> None:
            while True:
                turns.add(len(seen) // STEP)
                await trio.sleep(0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await volume.info(ino, see)
            nursery.cancel_scope.cancel()
        assert seen == list(range(CHUNKS))
        assert threading.get_ident() not in threads, "no row is read in the event loop"
        assert turns >= set(range(1, CHUNKS // STEP)), "a pause after each step"

    here.run(body)


def test_a_segment_is_opened_once_for_all_of_its_chunks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()
    opened: Counter[bytes] = Counter()
    segment = Reader.segment

    def count(reader: Reader, id: bytes) -> SegmentInfo | None:
        opened[id] += 1
        return segment(reader, id)

    async def body(volume: Volume) -> None:
        ino = await put_large(volume)
        monkeypatch.setattr(Reader, "segment", count)
        chunks = await chunks_of(volume, ino)
        assert [opened[id] for id in IDS] == [1] * len(IDS)
        assert [chunk.segment for chunk in chunks] == [IDS[index // 128 % len(IDS)].hex() for index in range(CHUNKS)]
        assert {(chunk.local, chunk.survives) for chunk in chunks} == {(False, 1)}
        assert len({id(chunk.shares) for chunk in chunks}) == len(IDS), "their chunks share what is known of them"
        assert [share.stored for share in chunks[0].shares] == [name != "ada" for name in NAMES]
        monkeypatch.setattr("icnfs.volume.report.SEGMENTS_KEPT", 3)
        assert await chunks_of(volume, ino) == chunks, "keeping fewer tells the same"

    here.run(body)


def test_a_file_that_is_changed_meanwhile_is_told_of_as_it_was(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        ino = await put_large(volume)
        seen: list[ChunkPlace] = []

        async def change() -> None:
            while not seen:
                await trio.sleep(0)
            volume.store.contents.write(volume.store.edit(ino), (CHUNKS - 1) * CHUNK_SIZE, os.urandom(CHUNK_SIZE))
            await volume.store.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await volume.info(ino, seen.append)
        assert seen[-1].survives == 1
        assert (await chunks_of(volume, ino))[-1].survives == -1

    here.run(body)


def test_chunks_are_told_with_what_is_accepted_only_and_without_what_was_cut_off(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        ino = await put_file(volume, b"f", os.urandom(5 * CHUNK_SIZE))
        assert [(chunk.index, chunk.survives) for chunk in await chunks_of(volume, ino)] == [(i, -1) for i in range(5)]
        await volume.sync()
        store = volume.store
        store.contents.truncate(store.edit(ino), 3 * CHUNK_SIZE)
        store.contents.write(store.edit(ino), 7 * CHUNK_SIZE, b"few bytes")
        found = [(chunk.index, chunk.survives) for chunk in await chunks_of(volume, ino)]
        assert found == [(0, 2), (1, 2), (2, 2), (7, -1)]
        assert await volume.info(ino, lambda _: None) == 7 * CHUNK_SIZE + 9

    here.run(body)


def test_chunks_that_a_tombstone_ended_are_not_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        ino = await put_file(volume, b"f", os.urandom(4 * CHUNK_SIZE))
        await volume.store.flush()
        monkeypatch.setattr("icnfs.state.apply.DIRECT_CUT", 0)
        monkeypatch.setattr(Writer, "reap", lambda *_: False)
        volume.store.contents.truncate(volume.store.edit(ino), CHUNK_SIZE)
        assert [chunk.index for chunk in await chunks_of(volume, ino)] == [0]
        assert [there for there, _, _ in volume.store.reader.tombstones()] == [ino]
        assert {index for index, _ in volume.store.reader.chunks(ino)} == {0, 1, 2, 3}

    here.run(body)


def test_a_disk_that_takes_nothing_hides_only_what_is_not_committed(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        ino = await put_file(volume, b"f", os.urandom(2 * CHUNK_SIZE))
        await volume.sync()
        volume.store.contents.write(volume.store.edit(ino), 2 * CHUNK_SIZE, b"more")
        volume.store.failure = LocalDiskError("the disk is full", errno.ENOSPC)
        assert [chunk.survives for chunk in await chunks_of(volume, ino)][:2] == [2, 2]
        told = volume.status()
        assert told.degraded and told.failure == "the disk is full"
        volume.store.failure = None
        volume.store.full = True
        assert "writers wait" in volume.status().failure
        volume.store.full = False

    here.run(body)


def test_a_file_that_is_gone_is_refused(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", b"x")
        vfs = files_of(volume)
        ino = vfs.lookup(1, b"f").ino
        vfs.unlink(1, b"f")
        with pytest.raises(FsError) as caught:
            await chunks_of(volume, ino)
        assert caught.value.errno == errno.ESTALE

    here.run(body)
