from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.format.records import PUBLISHED, Location, Table
from icnfs.limits import CHUNK_SIZE
from icnfs.state.cut import begin_cut, finish_publish, seal_location
from icnfs.state.loader import ROOT_INO, Loader
from icnfs.state.store import Store
from tests.state.local import Local, until

Rows = dict[tuple[int, bytes], bytes]


def change(store: Store, noise: random.Random) -> None:
    kind = noise.choice(["create", "create", "write", "remove", "xattr", "truncate"])
    entries = list(store.entries(ROOT_INO, 0))
    if kind == "create" or not entries:
        ino = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1).ino
        store.add_name(ROOT_INO, b"%x" % ino, ino, 8)
        return
    entry = noise.choice(entries)
    node = store.edit(entry.ino)
    if kind == "write":
        offset, size = noise.choice([0, CHUNK_SIZE, 777]), noise.choice([10, 4096, CHUNK_SIZE])
        store.contents.write(node, offset, noise.randbytes(size))
    elif kind == "truncate":
        store.contents.truncate(node, noise.choice([0, 5, CHUNK_SIZE]))
    elif kind == "xattr":
        store.set_xattrs(node, {b"user.n": noise.randbytes(4)})
    else:
        store.remove_name(ROOT_INO, entry)
        store.drop_inode(entry.ino)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), rounds=st.integers(1, 5))
def test_runs_since_a_generation_make_the_checkpoint_of_the_cut(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rounds: int
) -> None:
    """What the runs say, applied in order, is the whole tree; for one run each, and for one that reaches back."""
    local = Local(tmp_path_factory.mktemp("cut") / "state")
    noise = random.Random(seed)
    stepwise: Rows = {}
    since = 0

    async def body(store: Store) -> None:
        nonlocal since
        for _ in range(rounds):
            for _ in range(noise.randrange(1, 12)):
                change(store, noise)
                if noise.random() < 0.2:
                    store.close_batch()
            cut = await begin_cut(store)
            change(store, noise)
            await store.flush()
            for table, key, sealed in cut.dirty_rows(since):
                if sealed is None:
                    stepwise.pop((table, key), None)
                else:
                    stepwise[table, key] = sealed
            whole = {(t, k): s for t, k, s in cut.all_rows()}
            assert stepwise == whole
            assert {(t, k): s for t, k, s in cut.dirty_rows(0) if s is not None} == whole
            assert [(t, k) for t, k, _ in cut.all_rows()] == sorted(whole)
            assert cut.row_count == len(whole)
            since = cut.generation
            cut.close()

    local.run(body, upkeep=False)


def test_a_published_chunk_is_clean_and_an_overwritten_one_is_not_counted_twice(local: Local) -> None:
    async def body(store: Store) -> None:
        node = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1)
        ino = node.ino
        store.contents.write(node, 0, os.urandom(4 * CHUNK_SIZE))
        cut = await begin_cut(store)
        missing = list(cut.unlocated())
        assert len(missing) == 4
        dirty = store.dirty_bytes
        assert dirty == sum(size for _, size in missing)
        store.contents.write(store.edit(ino), 0, os.urandom(CHUNK_SIZE))
        await store.flush()
        rows = [seal_location(store, v, Location(bytes(16), i, 0, size)) for i, (v, size) in enumerate(missing)]
        assert all(len(cut.sealed_chunk(v)) == size for v, size in missing)
        await finish_publish(store, cut, rows, {"head": b"named"}, 0)
        cut.close()
        assert store.dirty_bytes == missing[0][1]
        assert store.get_setting("head") == b"named"
        again = await begin_cut(store)
        assert len(list(again.unlocated())) == 1
        again.close()

    local.run(body, upkeep=False)


def test_generations_survive_reopening_so_nothing_is_missed(local: Local) -> None:
    async def publish(store: Store) -> None:
        cut = await begin_cut(store)
        await finish_publish(store, cut, [], {}, cut.generation)
        cut.close()

    async def touch(store: Store) -> None:
        store.edit(ROOT_INO).mode = stat.S_IFDIR | 0o700
        await store.flush()

    async def look(store: Store) -> None:
        cut = await begin_cut(store)
        rows = list(cut.dirty_rows(store.published_generation))
        assert any(table == Table.INODES for table, _, _ in rows)
        assert store.dirty_floor == store.published_generation
        cut.close()

    local.run(publish, upkeep=False)
    local.run(touch, upkeep=False)
    local.run(look, upkeep=False)


def test_a_loader_rebuilds_the_same_tree(local: Local, tmp_path: Path) -> None:
    noise = random.Random(5)
    loading = Loader(tmp_path / "other", local.volume)

    async def save(store: Store) -> None:
        for _ in range(60):
            change(store, noise)
        cut = await begin_cut(store)
        for table, key, sealed in cut.all_rows():
            loading.put(table, key, sealed)
        loading.commit()
        loading.finish(local.master, cut.counters, cut.generation, cut.batch, {"head": b"x"})
        cut.close()
        expected.extend(sorted((e.name, store.inode(e.ino).size) for e in store.entries(ROOT_INO, 0)))

    async def compare(store: Store) -> None:
        assert sorted((e.name, store.inode(e.ino).size) for e in store.entries(ROOT_INO, 0)) == expected
        assert store.get_setting("head") == b"x"
        assert store.published_generation == store.dirty_floor > 0

    expected: list[tuple[bytes, int]] = []
    local.run(save, upkeep=False)
    local.root = tmp_path / "other"
    local.run(compare)


def test_a_row_noted_in_many_generations_is_given_once_in_the_order_of_keys(local: Local) -> None:
    async def body(store: Store) -> None:
        for round in range(5):
            for name in (b"a", b"b", b"c"):
                if not round:
                    store.add_name(ROOT_INO, name, store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1).ino, 8)
            for entry in list(store.entries(ROOT_INO, 0)):
                store.contents.write(store.edit(entry.ino), 0, os.urandom(CHUNK_SIZE))
            (await begin_cut(store)).close()
        cut = await begin_cut(store)
        keys = [(table, key) for table, key, _ in cut.dirty_rows(0)]
        assert keys == sorted(set(keys))
        assert len(list(cut.unlocated())) == 3
        assert cut.has_changed(cut.generation - 2)
        assert not cut.has_changed(cut.generation)
        cut.close()

    local.run(body, upkeep=False)


def test_loading_rows_out_of_order_or_twice_keeps_the_last_of_each(local: Local, tmp_path: Path) -> None:
    loading = Loader(tmp_path / "other", local.volume)
    rows = [(n * 7919 % 1000).to_bytes(8, "big") for n in range(500)] * 2
    for number, key in enumerate(rows):
        loading.put(Table.INODES, key, b"%d" % number)
        if number % 3 == 0:
            loading.put(Table.INODES, key, None)
        if number % 100 == 0:
            loading.commit()
    loading.put(Table.INODES, max(rows), b"again")
    expected = {key: b"%d" % number for number, key in enumerate(rows)}
    for number in range(len(rows)):
        if number % 3 == 0 and expected[rows[number]] == b"%d" % number:
            del expected[rows[number]]
    expected[max(rows)] = b"again"
    with loading.reading(local.master) as reader:
        assert {key: bytes(sealed) for key, sealed in reader.rows(Table.INODES)} == expected
    loading.abandon()


def test_only_published_tables_are_in_a_checkpoint(local: Local) -> None:
    async def body(store: Store) -> None:
        await store.put_setting("secret-place", b"local")
        cut = await begin_cut(store)
        assert {table for table, _, _ in cut.all_rows()} <= set(PUBLISHED)
        cut.close()

    local.run(body)


def test_orphans_go_at_the_next_opening(local: Local) -> None:
    async def leave(store: Store) -> None:
        node = store.new_inode(stat.S_IFREG | 0o600, 0, 0, 1)
        node.nlink = 0
        store.contents.write(node, 0, os.urandom(CHUNK_SIZE))
        store.set_orphan(node.ino, True)
        await store.flush()
        assert store.files == 2

    async def look(store: Store) -> None:
        await until(store, lambda: store.files == 1 and store.data_usage()[0] < CHUNK_SIZE)
        assert store.bytes_used == 0

    local.run(leave, upkeep=False)
    local.run(look)


def test_a_cut_that_is_closed_takes_no_slot_of_a_reader_whatever_still_looks_at_it(local: Local) -> None:
    """As the tracebacks of publishes that fail, one after another, do until they are collected."""

    async def body(store: Store) -> None:
        held = []
        for _ in range(100):
            cut = await begin_cut(store)
            rows = cut.all_rows()
            next(rows)
            held.append((cut, rows))
            cut.close()
        assert store.env.meta.info()["num_readers"] < 20

    local.run(body)
