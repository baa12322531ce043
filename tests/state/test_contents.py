from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.crypto.sealing import RecordSealer
from icnfs.errors import DamagedError, ProviderAwayError
from icnfs.format.records import U64, Location, Table
from icnfs.limits import CHUNK_SIZE, PATCH_LIMIT
from icnfs.state.hot import OP_COST, HotChunk, apply, merge
from icnfs.state.store import Store
from tests.state.local import Local, deadline, until


def new_file(store: Store) -> int:
    return store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1).ino


def write(store: Store, ino: int, offset: int, data: bytes) -> None:
    store.contents.write(store.edit(ino), offset, data)


async def read(store: Store, ino: int, offset: int = 0, size: int = 1 << 30) -> bytes:
    return await store.contents.read(store.inode(ino), offset, size, deadline())


# --- hot chunks ----------------------------------------------------------------------------------------------------

changes = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 200), st.binary(min_size=1, max_size=60)),
        st.tuples(st.just("cut"), st.integers(0, 200), st.just(b"")),
    ),
    max_size=20,
)


@given(st.binary(max_size=200), changes, st.booleans())
def test_the_patches_of_a_hot_chunk_say_what_it_holds(
    base: bytes, ops: list[tuple[str, int, bytes]], whole: bool
) -> None:
    hot = HotChunk(1, 0, bytearray(base) if whole else None)
    model = bytearray(base)
    for kind, at, data in ops:
        if kind == "cut":
            hot.cut(at)
            del model[at:]
        else:
            hot.write(at, data)
            model.extend(bytes(max(0, at - len(model))))
            model[at : at + len(data)] = data
    patched = apply(base, hot.take_ops())
    assert patched.rstrip(b"\0") == bytes(model).rstrip(b"\0")
    if whole:
        assert hot.buffer == model
    assert not hot.changed


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(lambda p: (min(p), max(p)))))
def test_merged_ranges_cover_the_same_bytes_and_do_not_touch(ranges: list[tuple[int, int]]) -> None:
    merged = merge(ranges)
    assert {i for a, b in merged for i in range(a, b)} == {i for a, b in ranges for i in range(a, b)}
    assert all(one[1] < two[0] for one, two in pairwise(merged))


# --- a file against a model ----------------------------------------------------------------------------------------

EDGE = CHUNK_SIZE * 3
offsets = st.one_of(
    st.integers(0, EDGE), st.sampled_from([0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE])
)
sizes = st.one_of(st.integers(1, 5000), st.sampled_from([CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE, 40000]))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), offsets, sizes),
        st.tuples(st.just("truncate"), offsets, st.just(0)),
        st.tuples(st.just("read"), offsets, sizes),
        st.tuples(st.sampled_from(["flush", "close", "fold", "reopen"]), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(steps=steps, seed=st.integers(0, 2**32))
def test_a_file_holds_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], seed: int
) -> None:
    local = Local(tmp_path_factory.mktemp("contents") / "state")
    noise = random.Random(seed)
    model = bytearray()
    ino = 0
    pending = list(steps)

    async def body(store: Store) -> None:
        nonlocal ino
        if not ino:
            ino = new_file(store)
        while pending:
            kind, offset, size = pending.pop(0)
            if kind == "write":
                data = noise.randbytes(size)
                write(store, ino, offset, data)
                model.extend(bytes(max(0, offset - len(model))))
                model[offset : offset + size] = data
            elif kind == "truncate":
                store.contents.truncate(store.edit(ino), offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            elif kind == "read":
                assert await read(store, ino, offset, size) == bytes(model[offset : offset + size])
            elif kind == "flush":
                await store.flush()
            elif kind == "close":
                store.close_batch()
            elif kind == "fold":
                for place in filter(lambda place: store.contents.is_patched(*place), store.contents.patched()):
                    await store.contents.fold(*place, deadline())
            elif kind == "reopen":
                break
        assert await read(store, ino) == bytes(model)
        node = store.inode(ino)
        assert node.size == len(model)
        assert node.count == len(list(store.contents.indexes(ino)))
        assert store.bytes_used == node.blocks << 9

    local.run(body)
    while pending:
        local.run(body)
    local.run(body)


def test_holes_cost_nothing_and_read_as_zeros(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        write(store, ino, 5 * CHUNK_SIZE + 17, b"end")
        await store.flush()
        node = store.inode(ino)
        assert node.count == 1
        assert await read(store, ino) == bytes(5 * CHUNK_SIZE + 17) + b"end"
        assert list(store.contents.indexes(ino)) == [5]

    local.run(body)


def test_a_tail_that_was_cut_off_never_comes_back(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        write(store, ino, 0, b"x" * (3 * CHUNK_SIZE))
        await store.flush()
        store.contents.truncate(store.edit(ino), 10)
        store.contents.truncate(store.edit(ino), 3 * CHUNK_SIZE)
        expected = b"x" * 10 + bytes(3 * CHUNK_SIZE - 10)
        assert await read(store, ino) == expected
        await store.flush()
        assert await read(store, ino) == expected

    local.run(body)


def test_a_small_synced_change_does_not_seal_a_chunk(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        write(store, ino, 0, os.urandom(CHUNK_SIZE))
        await store.flush()
        before = store.data_usage()[0]
        write(store, ino, 1000, b"small")
        await store.flush()
        assert store.data_usage()[0] == before
        assert list(store.contents.patched()) == [(ino, 0)]

    local.run(body, upkeep=False)


def test_a_write_opens_no_patch_and_knows_what_they_weigh(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    unseal = RecordSealer.open

    def watched(self: RecordSealer, table: int, key: bytes, sealed: bytes) -> bytes:
        opened.append(table)
        return unseal(self, table, key, sealed)

    async def body(store: Store) -> None:
        ino = new_file(store)
        content = bytearray(os.urandom(CHUNK_SIZE))
        write(store, ino, 0, bytes(content))
        await store.flush()
        sizes = [1, 700, 4096]
        for at, size in enumerate(sizes):
            content[at * 5000 : at * 5000 + size] = b"p" * size
            write(store, ino, at * 5000, b"p" * size)
            if at < 2:
                await store.flush()
            else:
                store.close_batch()  # the newest lies in the overlay still
        monkeypatch.setattr(RecordSealer, "open", watched)
        write(store, ino, 90_000, b"more")
        assert Table.PATCHES not in opened
        assert store.contents._hot[ino, 0].patch_bytes == sum(sizes) + len(sizes) * OP_COST
        content[90_000:90_004] = b"more"
        assert await read(store, ino) == bytes(content)
        assert Table.PATCHES in opened

    local.run(body, upkeep=False)


def test_patches_beyond_the_limit_are_folded(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        content = bytearray(os.urandom(CHUNK_SIZE))
        write(store, ino, 0, bytes(content))
        await store.flush()
        for at in range(0, PATCH_LIMIT + 8192, 4096):
            content[at : at + 4096] = b"p" * 4096
            write(store, ino, at, b"p" * 4096)
            await store.flush()
        await until(store, lambda: sum(p[2] for p in store.chunk_rows(ino)) < PATCH_LIMIT)
        assert await read(store, ino) == bytes(content)

    local.run(body)


def test_overwritten_and_dropped_chunks_leave_the_disk(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        for _ in range(3):
            write(store, ino, 0, os.urandom(8 * CHUNK_SIZE))
            await store.flush()
        assert store.bytes_used == 8 * CHUNK_SIZE
        store.drop_inode(ino)
        await store.flush()
        await until(store, lambda: store.data_usage()[0] < CHUNK_SIZE)
        assert store.bytes_used == 0
        assert store.dirty_bytes == 0

    local.run(body)


def test_a_large_file_is_unlinked_by_one_record_and_reaped_later(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        for index in range(700):
            write(store, ino, index * CHUNK_SIZE, b"one byte more or less")
        await store.flush()
        store.drop_inode(ino)
        await store.flush()
        await until(store, lambda: not list(store.reader.tombstones()))
        assert not list(store.reader.chunks(ino))
        assert not any(store.contents.is_patched(*place) for place in store.contents.patched())

    local.run(body)


# --- chunks that are not here --------------------------------------------------------------------------------------


class Shelf:
    """A source that holds what was taken from the local state."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self.asked: list[int] = []
        self.away = False

    async def fetch(self, version: int, location: Location, check: Callable[[bytes], bool], deadline: float) -> bytes:
        self.asked.append(version)
        await trio.lowlevel.checkpoint()
        if self.away:
            raise ProviderAwayError("a", "no answer")
        assert check(self.chunks[version])
        assert not check(self.chunks[version][:-1])
        return self.chunks[version]


async def shelve(store: Store, shelf: Shelf, ino: int) -> None:
    """Give every sealed chunk of a file a location, and take it out of `data`."""

    def work(writer: object, generation: int) -> None:
        from icnfs.format.records import Table, pack_location
        from icnfs.state.apply import Writer

        assert isinstance(writer, Writer)
        for _, record in list(writer.reader.chunks(ino)):
            sealed = writer.reader.sealed_chunk(record.version)
            assert sealed is not None
            shelf.chunks[record.version] = bytes(sealed)
            location = Location(bytes(16), 0, 0, record.length)
            writer.put(Table.LOCATIONS, U64.pack(record.version), pack_location(location), generation)
            writer.doomed.append(record.version)

    await store.flush()
    await store.task(work)
    await until(store, lambda: not any(store.reader.has_chunk(v) for v in shelf.chunks))


def test_a_cold_chunk_is_fetched_once_and_kept(local: Local) -> None:
    shelf = Shelf()

    async def body(store: Store) -> None:
        ino = new_file(store)
        content = os.urandom(5 * CHUNK_SIZE)
        write(store, ino, 0, content)
        await shelve(store, shelf, ino)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(read, store, ino)
        assert await read(store, ino) == content
        assert sorted(shelf.asked) == sorted(shelf.chunks)
        await until(store, lambda: all(store.reader.has_chunk(v) for v in shelf.chunks))

    local.run(body, source=shelf)


def test_writing_onto_a_cold_chunk_reads_nothing(local: Local) -> None:
    shelf = Shelf()

    async def body(store: Store) -> None:
        ino = new_file(store)
        content = bytearray(os.urandom(2 * CHUNK_SIZE))
        write(store, ino, 0, bytes(content))
        await shelve(store, shelf, ino)
        shelf.away = True
        write(store, ino, 100, b"patch")
        await store.flush()
        assert not shelf.asked
        with pytest.raises(ProviderAwayError):
            await read(store, ino, 0, 200)
        shelf.away = False
        content[100:105] = b"patch"
        assert await read(store, ino) == bytes(content)

    local.run(body, source=shelf, upkeep=True)


def test_a_damaged_local_copy_is_replaced_by_the_providers(local: Local) -> None:
    shelf = Shelf()

    async def body(store: Store) -> None:
        ino = new_file(store)
        content = os.urandom(CHUNK_SIZE)
        write(store, ino, 0, content)
        await shelve(store, shelf, ino)
        version = next(iter(shelf.chunks))
        bad = bytearray(shelf.chunks[version])
        bad[50000] ^= 1
        from icnfs.state.jobs import CacheJob

        store.committer.submit(CacheJob(version, bytes(bad)))
        await until(store, lambda: store.reader.has_chunk(version))
        assert await read(store, ino) == content

    local.run(body, source=shelf)


def test_a_damaged_chunk_that_is_nowhere_else_is_an_error_of_its_file_alone(local: Local) -> None:
    async def body(store: Store) -> None:
        one, two = new_file(store), new_file(store)
        for ino in (one, two):
            write(store, ino, 0, b"z" * CHUNK_SIZE)
        await store.flush()
        record = next(r for _, r in store.reader.chunks(one))
        with store.env.data.begin(write=True, db=store.env.data_db) as txn:
            txn.put(U64.pack(record.version), b"\0" * record.length)
        write(store, new_file(store), 0, b"q" * CHUNK_SIZE)
        await store.flush()
        with pytest.raises(DamagedError):
            await read(store, one)
        assert await read(store, two) == b"z" * CHUNK_SIZE

    local.run(body, upkeep=False)
