from __future__ import annotations

import math
import os
import shutil
import stat
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import lmdb
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import FormatError, LocalDiskError
from icnfs.format.records import CUT, DATA, ChunkRecord, Entry, Patch, Table
from icnfs.limits import CHUNK_SIZE
from icnfs.state import journal
from icnfs.state.apply import Writer
from icnfs.state.batch import Batch, Counters, Cut
from icnfs.state.env import Environments
from icnfs.state.inode import Inode
from icnfs.state.jobs import Task
from icnfs.state.journal import Journal
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from tests.state.local import Local, deadline, until


@pytest.fixture(autouse=True, params=["thread", "loop"])
def unsettled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """LMDB takes nothing over by itself, so what is durable is so by the journal; who writes that where either may."""
    monkeypatch.setattr("icnfs.state.committer.QUICK", -1.0 if request.param == "thread" else math.inf)
    monkeypatch.setattr("icnfs.state.journaled.SETTLE_SECONDS", 1000.0)
    monkeypatch.setattr("icnfs.state.store.BATCH_SECONDS", 1000.0)
    return str(request.param)


def make(store: Store, name: bytes, data: bytes) -> None:
    node = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1)
    store.add_name(ROOT_INO, name, node.ino, 8)
    store.contents.write(node, 0, data)


async def content(store: Store, name: bytes) -> bytes | None:
    entry = store.find(ROOT_INO, name)
    return None if entry is None else await store.contents.read(store.inode(entry.ino), 0, 1 << 20, deadline())


def crash(local: Local, to: Path) -> Local:
    """The local state as a crash leaves it now; the original goes on."""
    shutil.copytree(local.root, to, ignore=shutil.ignore_patterns("lock.mdb", "reserve"))
    copy = object.__new__(Local)
    copy.root, copy.master, copy.volume = to, local.master, local.volume
    return copy


def test_what_was_persisted_survives_a_crash_before_lmdb_has_it(local: Local, tmp_path: Path) -> None:
    copies: list[Local] = []

    async def body(store: Store) -> None:
        for i in range(5):
            make(store, b"%d" % i, b"data %d" % i)
            await store.persist()
        assert store.durable == store.batch.number - 1 > store.committed
        copies.append(crash(local, tmp_path / "copy"))
        make(store, b"later", b"not promised")
        copies.append(crash(local, tmp_path / "copy 2"))

    async def look(store: Store) -> None:
        assert [await content(store, b"%d" % i) for i in range(5)] == [b"data %d" % i for i in range(5)]
        assert await content(store, b"later") is None
        assert store.files == 6
        make(store, b"after", b"goes on")
        await store.persist()

    local.run(body, upkeep=False)
    for copy in copies:
        copy.run(look, upkeep=False)

        async def look_again(store: Store) -> None:
            assert await content(store, b"after") == b"goes on"

        copy.run(look_again, upkeep=False)


def test_a_full_disk_keeps_nobody_from_taking_over_what_the_journal_holds(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reserve is for that."""
    copies: list[Local] = []

    async def body(store: Store) -> None:
        make(store, b"f", b"promised")
        await store.persist()
        copies.append(crash(local, tmp_path / "copy"))

    local.run(body, upkeep=False)
    real = Environments.sync_data

    def full(env: Environments) -> None:
        if (env.root / "reserve").exists():
            raise lmdb.Error("No space left on device")
        real(env)

    async def look(store: Store) -> None:
        assert await content(store, b"f") == b"promised"
        assert store.env.lacks_reserve

    with monkeypatch.context() as patch:
        patch.setattr(Environments, "sync_data", full)
        patch.setattr(
            Environments, "take_reserve", lambda env: (env.root / "reserve").touch() if not env.lacks_reserve else None
        )
        copies[0].run(look, upkeep=False)


def test_the_journal_never_holds_less_than_lmdb_lacks(local: Local, tmp_path: Path) -> None:
    """Batches by LMDB and by the journal in turn: each crash finds all that was promised by then."""
    copies: list[Local] = []

    async def body(store: Store) -> None:
        for i in range(9):
            make(store, b"%d" % i, os.urandom(CHUNK_SIZE) if i % 3 == 1 else b"small")
            await (store.flush() if i % 4 == 3 else store.persist())
            copies.append(crash(local, tmp_path / f"copy {i}"))

    local.run(body, upkeep=False)
    for i, copy in enumerate(copies):

        async def look(store: Store, i: int = i) -> None:
            assert {e.name for e in store.entries(ROOT_INO, 0)} == {b"%d" % j for j in range(i + 1)}

        copy.run(look, upkeep=False)


def test_the_loop_writes_the_journal_where_the_thread_rests_and_the_disk_is_quick(
    local: Local, monkeypatch: pytest.MonkeyPatch, unsettled: str
) -> None:
    async def body(store: Store) -> None:
        append, by_the_loop = Journal.append, []

        def appended(*given: Any) -> bool:
            by_the_loop.append(threading.current_thread() is threading.main_thread())
            return append(*given)

        await store.flush()
        while store.committer._submitted != store.committer._worked_off:
            time.sleep(0.001)
        monkeypatch.setattr(Journal, "append", appended)
        make(store, b"one", b"1")
        await store.persist()
        started, blocked = threading.Event(), threading.Event()
        store.committer.submit(Task(lambda _: (started.set(), blocked.wait()), lambda result: None))
        started.wait()
        make(store, b"behind the task", b"2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.persist)
            await trio.testing.wait_all_tasks_blocked()
            assert store.durable < store.batch.number - 1
            blocked.set()
        assert by_the_loop[0] == (unsettled == "loop")
        assert not any(by_the_loop[1:])

    local.run(body, upkeep=False)


def test_a_torn_entry_ends_the_journal(local: Local, tmp_path: Path) -> None:
    copies: list[Local] = []

    async def body(store: Store) -> None:
        await store.flush()  # what opening commits shares no commit with these
        for i in range(3):
            make(store, b"%d" % i, b"x" * 600)
            await store.persist()
        copies.append(crash(local, tmp_path / "copy"))

    async def look(store: Store) -> None:
        assert {e.name for e in store.entries(ROOT_INO, 0)} == {b"0"}

    local.run(body, upkeep=False)
    path = copies[0].root / journal.NAME
    data = bytearray(path.read_bytes())
    second = data.index(b"icnJ", 1)
    data[second + 700] ^= 1
    path.write_bytes(data)
    copies[0].run(look, upkeep=False)


def test_entries_of_another_mount_are_not_taken_for_this_ones(local: Local, tmp_path: Path) -> None:
    """An unpromised entry that survived behind a torn one must not follow what a later mount wrote before it."""
    copies: list[Local] = []

    async def first(store: Store) -> None:
        await store.flush()
        for i in range(3):
            make(store, b"old-%d" % i, b"x")
            await store.persist()
        copies.append(crash(local, tmp_path / "copy"))

    async def second(store: Store) -> None:
        assert {e.name for e in store.entries(ROOT_INO, 0)} == {b"old-0"}
        make(store, b"new", b"y" * 700)
        await store.persist()
        copies.append(crash(copies[0], tmp_path / "copy 2"))

    async def third(store: Store) -> None:
        assert {e.name for e in store.entries(ROOT_INO, 0)} == {b"old-0", b"new"}

    local.run(first, upkeep=False)
    path = copies[0].root / journal.NAME
    data = bytearray(path.read_bytes())
    data[data.index(b"icnJ", 1) + 40] ^= 1
    path.write_bytes(data)
    copies[0].run(second, upkeep=False)
    copies[1].run(third, upkeep=False)


def test_a_full_journal_hands_over_to_lmdb(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.journal.SIZE", 8192)

    async def body(store: Store) -> None:
        for i in range(30):
            make(store, b"%d" % i, b"x" * 500)
            await store.persist()
        assert 0 < store.batch.number - 1 - store.committed < 20

    async def look(store: Store) -> None:
        assert len(list(store.entries(ROOT_INO, 0))) == 30

    local.run(body, upkeep=False)
    local.run(look, upkeep=False)


def test_a_journal_that_fails_is_given_up_and_nothing_is_lost(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(store: Store) -> None:
        make(store, b"one", b"1")
        await store.persist()

        def fail(*_: object) -> bool:
            raise OSError("no")

        monkeypatch.setattr(Journal, "append", fail)
        make(store, b"two", b"2")
        await store.persist()
        assert store.committed == store.durable == store.batch.number - 1

    local.run(body, upkeep=False)


def test_chunks_go_with_the_batch_that_names_them_or_before_it(local: Local, tmp_path: Path) -> None:
    """Few by the journal; many by `data`, which is flushed before the journal names them."""
    copies: list[Local] = []
    data = [os.urandom(size) for size in (CHUNK_SIZE, 2 * CHUNK_SIZE, 40_000, 7 * CHUNK_SIZE, 50_000)]

    async def body(store: Store) -> None:
        synced: list[int] = []
        real = store.env.sync_data
        monkeypatch.setattr(store.env, "sync_data", lambda: (synced.append(store.durable), real()))
        for i, content in enumerate(data):
            make(store, b"%d" % i, content)
            await store.persist()
            assert synced == [4] * (i >= 3)
            copies.append(crash(local, tmp_path / f"copy {i}"))
        assert store.contents.accepted_bytes == 50_000

    with pytest.MonkeyPatch.context() as monkeypatch:
        local.run(body, upkeep=False)
    for i, copy in enumerate(copies):

        async def look(store: Store, i: int = i) -> None:
            for j, expected in enumerate(data):
                assert await content(store, b"%d" % j) == (expected if j <= i else None)
            assert store.dirty_bytes >= sum(map(len, data[: i + 1]))

        copy.run(look, upkeep=False)
        copy.run(look, upkeep=False)


def test_chunks_that_lie_in_data_are_flushed_before_the_journal_names_them(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.state.journaled.HOLD_MAX", CHUNK_SIZE // 2)  # no whole chunk waits for its batch

    async def body(store: Store) -> None:
        order: list[str] = []
        sync, append = store.env.sync_data, Journal.append

        def appended(*given: Any) -> bool:
            order.append("journal")
            return append(*given)

        monkeypatch.setattr(store.env, "sync_data", lambda: (order.append("data"), sync()))
        monkeypatch.setattr(Journal, "append", appended)
        make(store, b"big", os.urandom(9 * CHUNK_SIZE))
        await until(store, lambda: not store.contents.accepted_bytes)
        for name in (b"one", b"two"):
            make(store, name, b"small")
            await store.persist()
        assert order == ["data", "journal", "journal"]
        assert store.committed < store.durable

    local.run(body, upkeep=False)


def test_what_was_overwritten_in_the_journal_never_reaches_lmdb(local: Local, tmp_path: Path) -> None:
    copies: list[Local] = []

    async def body(store: Store) -> None:
        node = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1)
        store.add_name(ROOT_INO, b"f", node.ino, 8)
        for i in range(6):
            store.contents.write(store.edit(node.ino), 0, bytes([i]) * CHUNK_SIZE)
            store.contents.write(store.edit(node.ino), 8192 * i, b"p" * 4096)
            await store.persist()
        copies.append(crash(local, tmp_path / "copy"))
        before = store.env.data.info()["last_pgno"]
        await store.flush()
        assert store.reader.data.stat(store.env.data_db)["entries"] == 1
        assert store.env.data.info()["last_pgno"] - before < 2 * CHUNK_SIZE // 4096
        assert not store.reader.count(Table.GARBAGE)
        await look(store)

    async def look(store: Store) -> None:
        expected = bytearray(b"\5" * CHUNK_SIZE)
        expected[8192 * 5 : 8192 * 5 + 4096] = b"p" * 4096
        assert await content(store, b"f") == bytes(expected)
        assert store.dirty_bytes - store.contents.accepted_bytes in range(CHUNK_SIZE, CHUNK_SIZE + 8192)

    local.run(body, upkeep=False)
    local.run(look)
    copies[0].run(look)


def test_a_journal_that_holds_enough_is_taken_over_at_once(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.journaled.SETTLE_BATCHES", 8)

    async def body(store: Store) -> None:
        for i in range(30):
            make(store, b"%d" % i, b"x")
            await store.persist()
            assert store.durable - store.committed <= 16
        await store.flush()
        assert len(list(store.entries(ROOT_INO, 0))) == 30

    local.run(body, upkeep=False)


u63 = st.integers(0, 2**63 - 1)
u32 = st.integers(0, 2**32 - 1)
small = st.binary(max_size=40)
names = st.binary(min_size=1, max_size=20).filter(lambda n: not set(n) & {0, 47} and n not in (b".", b".."))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    batch = Batch(draw(u63), draw(u63))
    batch.next_generation = batch.generation + draw(st.integers(0, 1))
    batch.counters = Counters(*draw(st.tuples(*[u63] * 6)))
    for ino in draw(st.lists(u63, max_size=3)):
        batch.inodes[ino] = draw(st.sampled_from([None, Inode(ino, stat.S_IFREG | 0o600, 1, 2, 3)]))
    for parent, cookie, name in draw(st.lists(st.tuples(u63, u63, names), max_size=3)):
        batch.names[parent, cookie] = draw(st.sampled_from([None, Entry(cookie, 9, 8, name)]))
    batch.xattrs = draw(st.dictionaries(u63, st.none() | st.dictionaries(names, small, min_size=1), max_size=2))
    patches = st.tuples(u63, u63, st.builds(Patch, u63, st.just(DATA), st.integers(0, 99), small))
    batch.patches = [*draw(st.lists(patches, max_size=3)), (1, 2, Patch(3, CUT, 4, b""))]
    records = st.builds(ChunkRecord, u63, u63, u32, u32, st.binary(min_size=16, max_size=16))
    batch.chunks = draw(st.dictionaries(st.tuples(u63, u63), records, max_size=2))
    batch.dead = draw(st.lists(records, max_size=2))
    batch.cuts = draw(st.lists(st.builds(Cut, u63, u63, u63), max_size=2))
    batch.keys = draw(st.dictionaries(u63, st.none() | st.binary(min_size=32, max_size=32), max_size=2))
    batch.orphans = draw(st.dictionaries(u63, st.booleans(), max_size=2))
    batch.settings = draw(st.dictionaries(st.text(max_size=5), st.none() | small, max_size=2))
    return batch


@given(batches(), st.lists(st.tuples(u63, small), max_size=2))
def test_a_batch_comes_back_as_it_was(batch: Batch, chunks: list[journal.Sealed]) -> None:
    back, sealed = journal.decode(batch.number, journal.encode(batch, chunks))
    assert sealed == chunks
    for field in fields(Batch):
        if field.name not in ("inodes", "patch_bytes", "awaited", "touched", "lingering"):
            assert getattr(back, field.name) == getattr(batch, field.name)
    packed = {ino: node and node.pack() for ino, node in batch.inodes.items()}
    assert {ino: node and node.pack() for ino, node in back.inodes.items()} == packed


@given(st.binary(max_size=300))
def test_any_bytes_give_a_batch_or_a_format_error(data: bytes) -> None:
    try:
        journal.decode(1, data)
    except FormatError:
        pass


def test_a_salt_drawn_anew_does_not_end_the_journal(local: Local, tmp_path: Path) -> None:
    """Awaited batches right behind the draw, before the loop hears of it, are promised as any."""
    copies: list[Local] = []

    async def body(store: Store) -> None:
        make(store, b"before", b"1")
        await store.persist()
        old = store.salts.current
        started, blocked = threading.Event(), threading.Event()

        def hold(writer: Writer) -> None:
            started.set()
            blocked.wait()

        store.committer.submit(Task(hold, lambda result: None))
        started.wait()
        draw = store.committer.commits + 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._draw_salt)
            await trio.testing.wait_all_tasks_blocked()
            blocked.set()
            while store.committer.commits < draw:  # without an await: the loop does not hear that it is committed
                time.sleep(0.001)
            make(store, b"behind", b"2")
            store.close_batch(urgent=True, awaited=True)
            while len(store.committer._journaled.jobs) < 1:
                time.sleep(0.001)
        make(store, b"after", b"3")
        await store.persist()
        assert store.committed < store.durable
        assert store.salts.current == store.salts.newest == old + 1
        copies.append(crash(local, tmp_path / "copy"))

    async def look(store: Store) -> None:
        assert {e.name for e in store.entries(ROOT_INO, 0)} == {b"before", b"behind", b"after"}

    local.run(body, upkeep=False)
    copies[0].run(look, upkeep=False)


def test_draws_that_meet_in_one_commit_leave_one_salt(local: Local) -> None:
    async def body(store: Store) -> None:
        blocked = threading.Event()
        store.committer.submit(Task(lambda writer: blocked.wait(), lambda result: None))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._draw_salt)
            nursery.start_soon(store._draw_salt)
            await trio.testing.wait_all_tasks_blocked()
            blocked.set()
        make(store, b"one", os.urandom(CHUNK_SIZE))
        await store.flush()

    async def look(store: Store) -> None:
        assert len(await content(store, b"one") or b"") == CHUNK_SIZE

    local.run(body, upkeep=False)
    local.run(look, upkeep=False)


def test_a_journal_that_a_mount_missed_is_not_applied_over_it(local: Local, tmp_path: Path) -> None:
    """Its numbers were used again: a mount of an older release, or a copy that was put together."""
    copies: list[Local] = []

    async def first(store: Store) -> None:
        for i in range(5):
            make(store, b"old-%d" % i, b"x")
            await store.persist()
        copies.append(crash(local, tmp_path / "copy"))

    async def second(store: Store) -> None:
        make(store, b"new", b"y")
        await store.flush()

    async def third(store: Store) -> None:
        assert {e.name for e in store.entries(ROOT_INO, 0)} == {b"new"}

    local.run(first, upkeep=False)
    path = copies[0].root / journal.NAME
    data = path.read_bytes()
    path.unlink()
    copies[0].run(second, upkeep=False)
    path.write_bytes(data)
    copies[0].run(third, upkeep=False)


def test_a_journal_that_cannot_be_read_is_not_passed_over(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(store: Store) -> None:
        pass

    def fail(*_: object) -> list[Batch]:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "read", fail)
        with pytest.raises(LocalDiskError, match="cannot be read"):
            local.run(look, upkeep=False)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "__init__", fail)
        with pytest.raises(LocalDiskError, match="cannot be opened"):
            Store.open(local.root, local.master)
    local.run(look, upkeep=False)


def test_a_journal_of_another_size_is_read_before_it_is_made_anew(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Local] = []

    async def body(store: Store) -> None:
        make(store, b"one", b"1")
        await store.persist()
        copies.append(crash(local, tmp_path / "copy"))

    async def look(store: Store) -> None:
        assert await content(store, b"one") == b"1"

    local.run(body, upkeep=False)
    monkeypatch.setattr("icnfs.state.journal.SIZE", 2 * journal.SIZE)
    copies[0].run(look, upkeep=False)


@pytest.mark.parametrize("fails", [False, True])
def test_a_disk_that_takes_nothing_at_replay_is_told_and_loses_nothing(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """One that is full, and one that fails: what the journal holds is not passed over as if there were none."""
    copies: list[Local] = []

    async def body(store: Store) -> None:
        make(store, b"one", b"1")
        await store.persist()
        copies.append(crash(local, tmp_path / "copy"))

    async def look(store: Store) -> None:
        assert await content(store, b"one") == b"1"

    def full(*_: object) -> None:
        raise lmdb.DiskError("full")

    def fail(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    local.run(body, upkeep=False)
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "put_counters", full)
        if fails:
            patch.setattr(Environments, "give_up_reserve", fail)
        with pytest.raises(LocalDiskError, match="cannot be taken over" if fails else "takes no more"):
            Store.open(copies[0].root, local.master)
    copies[0].run(look, upkeep=False)
