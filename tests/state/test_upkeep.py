from __future__ import annotations

import os
import secrets
import stat

import pytest
import trio

from icnfs.errors import FsError
from icnfs.format import segment as segments
from icnfs.format.records import U64, Location, Table, pack_location
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.limits import CHUNK_SIZE, MIB
from icnfs.state.apply import Writer
from icnfs.state.store import Store
from icnfs.state.upkeep import TICK, Budget, Upkeep
from tests.state.local import Local, until


async def fill(store: Store, chunks: int) -> int:
    ino = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1).ino
    store.contents.write(store.edit(ino), 0, os.urandom(chunks * CHUNK_SIZE))
    await store.flush()
    return ino


async def locate(store: Store, ino: int, *, stored: bool) -> None:
    """Make a file's chunks clean, in a segment whose shares are stored or not."""
    info = SegmentInfo(secrets.token_bytes(16), 1, 1, CHUNK_SIZE, CHUNK_SIZE, (ShareInfo("a", bytes(32), stored),))

    def work(writer: Writer, generation: int) -> None:
        writer.put(Table.SEGMENTS, info.id, segments.encode(info), generation)
        for _, record in list(writer.reader.chunks(ino)):
            location = pack_location(Location(info.id, 0, 0, record.length))
            writer.put(Table.LOCATIONS, U64.pack(record.version), location, generation)
            writer.dirty_change -= record.length

    await store.task(work)


def present(store: Store, ino: int) -> int:
    return sum(store.reader.has_chunk(record.version) for _, record in store.reader.chunks(ino))


def test_clean_chunks_above_the_budget_are_evicted_and_dirty_ones_never(local: Local) -> None:
    async def body(store: Store) -> None:
        dirty = await fill(store, 16)
        clean = await fill(store, 64)
        await locate(store, clean, stored=True)
        await until(store, lambda: present(store, clean) <= 32)
        assert present(store, dirty) == 16

    local.run(body, budget=Budget(clean=2 * MIB, reserve=0))


def test_chunks_of_a_segment_that_is_not_safe_are_kept(local: Local) -> None:
    async def body(store: Store) -> None:
        unsafe = await fill(store, 40)
        await locate(store, unsafe, stored=False)
        clean = await fill(store, 40)
        await locate(store, clean, stored=True)
        await until(store, lambda: present(store, clean) == 0)
        assert present(store, unsafe) == 40

    local.run(body, budget=Budget(clean=0, reserve=0))


def test_writers_stop_at_the_budget_of_dirty_data_and_go_on_when_it_is_published(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.state.standstill.FULL_WAIT", 0.1)

    async def body(store: Store) -> None:
        ino = await fill(store, 40)
        await until(store, lambda: store.full)
        with pytest.raises(FsError):
            await store.wait_room()
        await locate(store, ino, stored=True)
        await until(store, lambda: not store.full)
        await store.wait_room()

    local.run(body, budget=Budget(dirty=4 * MIB, reserve=0))


def test_a_disk_below_its_reserve_takes_no_more_data(local: Local) -> None:
    async def body(store: Store) -> None:
        await until(store, lambda: store.full)

    local.run(body, budget=Budget(reserve=1 << 60))


def test_a_fast_writer_stops_at_the_reserve_before_upkeep_looks_again(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.state.upkeep.TICK", 1000.0)

    async def body(store: Store) -> None:
        data = store.env.root / "data" / "data.mdb"
        disk = data.stat().st_size + 16 * MIB
        monkeypatch.setattr(store.env, "free_bytes", lambda: disk - data.stat().st_size)
        written = 0
        while not store.full and written < 32:
            await fill(store, MIB // CHUNK_SIZE)
            written += 1
        assert store.full
        assert written <= 10

    local.run(body, budget=Budget(reserve=8 * MIB))


def test_what_a_crash_left_unnamed_is_swept_in_steps(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.upkeep.SWEEP_STEP", 2)

    async def leave(store: Store) -> None:
        await fill(store, 1)
        left.extend(store.new_version() + 3 for _ in range(7))
        with store.env.data.begin(write=True, db=store.env.data_db) as txn:
            for version in left:
                txn.put(U64.pack(version), b"left over")
        monkey = store.close_batch
        store.close_batch = lambda **_: store.batch.number - 1  # type: ignore[method-assign]
        assert monkey is not None

    async def look(store: Store) -> None:
        await until(store, lambda: not any(store.reader.has_chunk(version) for version in left))
        assert store.data_usage()[0] >= CHUNK_SIZE

    left: list[int] = []
    local.run(leave, upkeep=False)
    local.run(look)


def test_writers_that_wait_for_commits_do_not_keep_upkeep_busy(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(store: Store) -> None:
        rounds = 0
        make_room = Upkeep._make_room

        async def counted(upkeep: Upkeep) -> None:
            nonlocal rounds
            rounds += 1
            await make_room(upkeep)

        monkeypatch.setattr(Upkeep, "_make_room", counted)
        began = trio.current_time()
        node = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1)
        for i in range(64):
            if store.congested:
                await store.wait_room()
            store.contents.write(store.edit(node.ino), i * MIB, bytes(MIB))
            await trio.lowlevel.checkpoint()
        await store.flush()
        assert rounds <= 2 + (trio.current_time() - began) / TICK

    local.run(body)
