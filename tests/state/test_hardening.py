"""What once went wrong, or was suspected to: races of commits, upkeep, full disks and damage with requests."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from icnfs.errors import DamagedError, FsError, LocalDiskError
from icnfs.format import segment as segments
from icnfs.format.records import PAIR, U64, Location, Table, pack_location
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.limits import ACCEPTED_MAX, CHUNK_SIZE, MIB
from icnfs.state.apply import Writer
from icnfs.state.committer import Committer
from icnfs.state.contents import HOT_MAX
from icnfs.state.cut import PublishCut, begin_cut, finish_publish
from icnfs.state.jobs import CacheJob, Job, SealJob
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.state.upkeep import Budget, Upkeep
from icnfs.vfs.vfs import Vfs
from tests.state.local import Local, deadline, until

REG = stat.S_IFREG | 0o644


def new_file(store: Store, data: bytes = b"") -> int:
    node = store.new_inode(REG, 0, 0, 1)
    if data:
        store.contents.write(node, 0, data)
    return node.ino


class Valve:
    """Holds what is submitted to the committer until it is let through, job by job."""

    def __init__(self, committer: Committer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._through = committer.submit
        self._held: list[Job] = []
        monkeypatch.setattr(committer, "submit", self._held.append)

    async def let_one_through(self, store: Store) -> None:
        self._through(self._held.pop(0))
        number = store.committed + 1
        await store.wait_committed(number)

    def open(self) -> None:
        for job in self._held:
            self._through(job)
        self._held.clear()


class NoRoom:
    """A local disk that takes no chunks while `full`."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        real = store.committer._put_data

        def put_data(sealed: list[SealJob], cached: list[CacheJob]) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(sealed, cached)

        monkeypatch.setattr(store.committer, "_put_data", put_data)
        monkeypatch.setattr(store.env, "give_up_reserve", lambda: False)


# --- overlay and snapshots -----------------------------------------------------------------------------------------


def test_a_name_removed_twice_stays_removed_while_its_batches_commit(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        store.add_name(ROOT_INO, b"n", ino, 8)
        await store.flush()
        valve = Valve(store.committer, monkeypatch)
        for _ in range(2):
            entry = store.find(ROOT_INO, b"n")
            assert entry is not None
            store.remove_name(ROOT_INO, entry)
            store.close_batch()
            store.add_name(ROOT_INO, b"n", ino, 8)
            store.close_batch()
        entry = store.find(ROOT_INO, b"n")
        assert entry is not None
        store.remove_name(ROOT_INO, entry)
        store.close_batch()
        for _ in range(5):
            await valve.let_one_through(store)
            assert store.find(ROOT_INO, b"n") is None
            assert not list(store.entries(ROOT_INO, 0))
        valve.open()

    local.run(body, upkeep=False)


def test_attributes_and_settings_that_return_to_what_they_were_stay_so(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = b"one", b"two"

    async def body(store: Store) -> None:
        ino = new_file(store)
        await store.put_setting("s", two)
        valve = Valve(store.committer, monkeypatch)
        for xattrs, setting in (({}, one), ({b"user.a": b"1"}, two), ({}, one)):
            store.set_xattrs(store.edit(ino), xattrs)
            store.batch.settings["s"] = store.overlay.settings["s"] = setting
            store.close_batch()
        for _ in range(3):
            await valve.let_one_through(store)
            assert store.xattrs(ino) == {}
            assert store.get_setting("s") == one
        valve.open()
        assert not store.overlay.settings
        assert not store.overlay.xattrs

    local.run(body, upkeep=False)


# --- a disk that takes nothing -------------------------------------------------------------------------------------


def test_writers_wait_for_a_disk_that_is_slow(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.standstill.FULL_WAIT", 0.05)

    async def body(store: Store) -> None:
        real, goes_on = store.committer._put_data, threading.Event()

        def put_data(sealed: list[SealJob], cached: list[CacheJob]) -> None:
            goes_on.wait()
            real(sealed, cached)

        async def writer() -> None:
            await store.wait_room()
            had_gone_on.append(goes_on.is_set())

        monkeypatch.setattr(store.committer, "_put_data", put_data)
        new_file(store, b"x" * (ACCEPTED_MAX + 2 * CHUNK_SIZE))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            try:
                await trio.sleep(0.3)
            finally:
                goes_on.set()

    had_gone_on: list[bool] = []
    local.run(body, upkeep=False)
    assert had_gone_on == [True]


def test_upkeep_outlives_a_disk_that_takes_nothing(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.standstill.FULL_WAIT", 0.05)

    async def body(store: Store) -> None:
        disk = NoRoom(store, monkeypatch)
        ino = new_file(store, b"x" * (ACCEPTED_MAX + 2 * CHUNK_SIZE))
        store.contents.to_fold.add((ino, 0))
        store.want_upkeep()
        with pytest.raises(LocalDiskError):
            await store.flush()
        await until(store, lambda: not store.upkeep_wanted.is_set())
        with pytest.raises(FsError):
            await store.wait_room()
        disk.full = False
        await until(store, lambda: store.failure is None)
        await store.flush()
        assert await store.contents.read(store.inode(ino), 0, 4, deadline()) == b"xxxx"
        assert store.contents.accepted_bytes == 0

    local.run(body)


def test_upkeep_begins_on_a_disk_that_takes_nothing(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave(store: Store) -> None:
        node = store.new_inode(REG, 0, 0, 1)
        node.nlink = 0
        store.set_orphan(node.ino, True)

    async def body(store: Store) -> None:
        disk = NoRoom(store, monkeypatch)
        new_file(store, b"x" * CHUNK_SIZE)
        with pytest.raises(LocalDiskError):
            await store.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Upkeep(store, Budget(reserve=0)).run)
            await trio.testing.wait_all_tasks_blocked()
            disk.full = False
            await until(store, lambda: store.files == 2)
            nursery.cancel_scope.cancel()

    local.run(leave, upkeep=False)
    local.run(body, upkeep=False)


def test_what_only_was_to_be_cached_stops_no_commit(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.env.DATA_MAP", 4 * MIB)

    async def body(store: Store) -> None:
        store.committer.submit(CacheJob(store.new_version(), bytes(8 * MIB)))
        new_file(store)
        await store.flush()
        assert store.failure is None

    local.run(body, upkeep=False)


def test_clean_chunks_make_room_on_a_disk_that_others_filled(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.env.DATA_MAP", 12 * MIB)

    async def body(store: Store) -> None:
        clean = new_file(store, os.urandom(8 * MIB))
        await store.flush()
        await locate(store, clean)
        new_file(store, os.urandom(6 * MIB))
        store.close_batch()
        await until(store, lambda: store.contents.accepted_bytes == 0)

    local.run(body)


async def locate(store: Store, ino: int) -> None:
    """Make a file's chunks clean, in a segment that is safe."""

    info = SegmentInfo(os.urandom(16), 1, 1, CHUNK_SIZE, CHUNK_SIZE, (ShareInfo("a", bytes(32), True),))

    def work(writer: Writer, generation: int) -> None:
        writer.put(Table.SEGMENTS, info.id, segments.encode(info), generation)
        for _, record in list(writer.reader.chunks(ino)):
            location = pack_location(Location(info.id, 0, 0, record.length))
            writer.put(Table.LOCATIONS, U64.pack(record.version), location, generation)
            writer.dirty_change -= record.length

    await store.task(work)


# --- what is left over ---------------------------------------------------------------------------------------------


def test_notes_of_dead_versions_go_even_over_a_clean_end(local: Local) -> None:
    async def overwrite(store: Store) -> None:
        ino = new_file(store, os.urandom(CHUNK_SIZE))
        await store.flush()
        store.contents.write(store.edit(ino), 0, os.urandom(CHUNK_SIZE))
        await store.flush()

    async def look(store: Store) -> None:
        await until(store, lambda: bool(store.committer._forgotten))
        store.touch()
        await store.flush()
        assert not store.reader.count(Table.GARBAGE)
        assert store.reader.data.stat(store.env.data_db)["entries"] == 1

    local.run(overwrite, upkeep=False)
    local.run(look)


def test_a_note_goes_only_once_the_erasure_is_durable(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store, os.urandom(CHUNK_SIZE))
        await store.flush()
        store.drop_inode(ino)
        await store.flush()
        await until(store, lambda: not store.data_usage()[0])
        synced: list[int] = []
        real = store.env.sync_data

        def sync_data() -> None:
            synced.append(store.reader.count(Table.GARBAGE))
            real()

        monkeypatch.setattr(store.env, "sync_data", sync_data)
        new_file(store)
        await store.flush()
        assert not store.reader.count(Table.GARBAGE)
        assert synced == [1]

    local.run(body, upkeep=False)


def test_what_one_crash_left_is_swept_after_another(local: Local) -> None:
    """The second crash comes before the first opening's sweep."""

    async def leave(store: Store) -> None:
        with store.env.data.begin(write=True, db=store.env.data_db) as txn:
            txn.put(U64.pack(store.new_version()), b"left over")

    async def look(store: Store) -> None:
        await until(store, lambda: not store.reader.data.stat(store.env.data_db)["entries"])

    async def nothing(store: Store) -> None:
        assert store.reader.count(Table.GARBAGE) == 1

    local.run(leave, upkeep=False)
    local.run(nothing, upkeep=False)
    local.run(look)


def test_a_fetched_chunk_that_died_meanwhile_is_not_kept(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store, os.urandom(CHUNK_SIZE))
        await store.flush()
        version = next(r.version for _, r in store.reader.chunks(ino))
        await locate(store, ino)
        store.drop_inode(ino)
        await store.flush()
        await until(store, lambda: not store.reader.has_chunk(version))
        commits = store.committer.commits
        store.committer.submit(CacheJob(version, b"fetched before it died"))
        await until(store, lambda: store.committer.commits > commits)
        new_file(store)
        await store.flush()
        assert not store.reader.has_chunk(version)

    local.run(body, upkeep=False)


def test_orphans_of_this_opening_are_not_those_of_the_last(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(store: Store) -> None:
        upkeep = Upkeep(store, Budget(reserve=0))
        swept = trio.Event()
        monkeypatch.setattr(upkeep, "_sweep", swept.wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run)
            await trio.testing.wait_all_tasks_blocked()
            node = store.new_inode(REG, 0, 0, 1)
            node.nlink = 0
            store.set_orphan(node.ino, True)
            await store.flush()
            swept.set()
            await trio.testing.wait_all_tasks_blocked()
            assert store.has_inode(node.ino)
            nursery.cancel_scope.cancel()

    local.run(body, upkeep=False)


# --- cuts ----------------------------------------------------------------------------------------------------------


class Between:
    """An LMDB environment that runs something before a transaction begins."""

    def __init__(self, env: object, before: Callable[[], None]) -> None:
        self._env = env
        self._before = before

    def __getattr__(self, name: str) -> object:
        if name == "begin":
            self._before()
        return getattr(self._env, name)


def test_a_cut_holds_every_chunk_that_it_names(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a chunk dies and is erased while the cut's two snapshots are taken."""

    async def body(store: Store) -> None:
        ino = new_file(store, os.urandom(CHUNK_SIZE))
        await store.flush()
        version = next(r.version for _, r in store.reader.chunks(ino))
        real = store.env.data
        did: list[bool] = []

        def overtake() -> None:
            if not did:
                did.append(True)
                with store.env.meta.begin(write=True) as txn:
                    txn.delete(PAIR.pack(ino, 0), db=store.env.meta_dbs[Table.CHUNKS])
                with real.begin(write=True, db=store.env.data_db) as txn:
                    txn.delete(U64.pack(version))

        number, generation = store.close_for_cut()
        await store.wait_committed(number)
        monkeypatch.setattr(store.env, "data", Between(real, overtake))
        cut = PublishCut(store, generation)
        monkeypatch.setattr(store.env, "data", real)
        for named, _ in cut.unlocated():
            cut.sealed_chunk(named)
        cut.close()

    local.run(body, upkeep=False)


def test_dirty_rows_go_only_below_a_floor_that_is_durable(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.cut.FORGET_STEP", 1)

    async def publish(store: Store) -> None:
        new_file(store)
        cut = await begin_cut(store)
        real = store.task
        calls = 0

        async def task(work: Callable[[Writer, int], object]) -> object:
            nonlocal calls
            calls += 1
            if calls > 3:
                raise LocalDiskError("as if the machine died here")
            return await real(work)

        monkeypatch.setattr(store, "task", task)
        with pytest.raises(LocalDiskError):
            await finish_publish(store, cut, [], {}, cut.generation)
        monkeypatch.setattr(store, "task", real)
        cut.close()

    async def look(store: Store) -> None:
        assert store.dirty_floor == store.published_generation > 0
        cut = await begin_cut(store)
        await finish_publish(store, cut, [], {}, cut.generation)
        assert not list(cut.dirty_rows(cut.generation))
        cut.close()

    local.run(publish, upkeep=False)
    local.run(look, upkeep=False)


# --- damage --------------------------------------------------------------------------------------------------------


def test_a_damaged_record_harms_its_file_alone(local: Local) -> None:
    async def body(store: Store) -> None:
        bad = new_file(store, os.urandom(2 * CHUNK_SIZE))
        worse = new_file(store, os.urandom(CHUNK_SIZE))
        good = new_file(store, b"good" * CHUNK_SIZE)
        await store.flush()
        with store.env.meta.begin(write=True, db=store.env.meta_dbs[Table.CHUNKS]) as txn:
            for ino in (bad, worse):
                txn.put(PAIR.pack(ino, 0), b"no sealed record")
        store.edit(good).mode = REG
        await store.flush()
        with pytest.raises(DamagedError):
            await store.contents.read(store.inode(bad), 0, 10, deadline())
        store.contents.truncate(store.edit(bad), 0)
        await store.flush()
        store.contents.write(store.edit(bad), 0, b"new" * CHUNK_SIZE)
        store.drop_inode(worse)
        await store.flush()
        assert await store.contents.read(store.inode(good), 0, 4, deadline()) == b"good"
        assert await store.contents.read(store.inode(bad), 0, 3, deadline()) == b"new"

    local.run(body, upkeep=False)


def test_a_task_that_fails_tells_its_caller_and_changes_nothing(local: Local) -> None:
    async def body(store: Store) -> None:
        def work(writer: Writer, generation: int) -> None:
            writer.put(Table.SETTINGS, b"half", b"done", 0)
            raise DamagedError("a record is damaged")

        ino = new_file(store)
        store.close_batch()
        with pytest.raises(DamagedError):
            await store.task(work)
        await store.flush()
        assert store.get_setting("half") is None
        assert store.reader.inode(ino) is not None

    local.run(body, upkeep=False)


def test_a_damaged_file_key_harms_its_file_alone(local: Local) -> None:
    async def make(store: Store) -> tuple[int, int]:
        bad, good = new_file(store, b"bad" * CHUNK_SIZE), new_file(store, b"good" * CHUNK_SIZE)
        await store.flush()
        key = U64.pack(store.inode(bad).key_id)
        with store.env.meta.begin(write=True, db=store.env.meta_dbs[Table.KEYS]) as txn:
            txn.put(key, txn.get(key)[:-1] + b"?")
        return bad, good

    async def use(store: Store) -> None:
        with pytest.raises(DamagedError):
            store.contents.write(store.edit(bad), 3 * CHUNK_SIZE, b"more")
        store.contents.write(store.edit(good), 0, b"GOOD")
        store.contents.truncate(store.edit(bad), CHUNK_SIZE // 2)
        store.touch()
        await store.wait_committed(store.close_batch())
        assert store.inode(bad).size == CHUNK_SIZE // 2
        assert await store.contents.read(store.inode(good), 0, 8, deadline()) == b"GOODgood"

    bad, good = local.run(make, upkeep=False)
    local.run(use, upkeep=False)


def test_a_key_that_is_damaged_after_a_write_was_accepted_leaves_patches(local: Local) -> None:
    async def make(store: Store) -> int:
        ino = new_file(store, b"x" * CHUNK_SIZE)
        await store.flush()
        key = U64.pack(store.inode(ino).key_id)
        with store.env.meta.begin(write=True, db=store.env.meta_dbs[Table.KEYS]) as txn:
            sound = txn.get(key)
            txn.put(key, sound[:-1] + b"?")
        new_file(store)
        await store.flush()  # the snapshot shows it now
        store.contents.write(store.edit(ino), CHUNK_SIZE, b"accepted")
        store.contents._keys.clear()
        await store.wait_committed(store.close_batch())
        with pytest.raises(DamagedError):
            await store.contents.fold(ino, 1, deadline())
        with store.env.meta.begin(write=True, db=store.env.meta_dbs[Table.KEYS]) as txn:
            txn.put(key, sound)
        return ino

    async def look(store: Store) -> None:
        assert await store.contents.read(store.inode(ino), CHUNK_SIZE, 8, deadline()) == b"accepted"

    ino = local.run(make, upkeep=False)
    local.run(look, upkeep=False)


def test_a_sparse_file_takes_no_more_memory_than_is_accepted(local: Local) -> None:
    async def body(store: Store) -> None:
        vfs = Vfs(store, lambda: 1 << 40)
        handle, _ = vfs.create(ROOT_INO, b"f", REG, os.O_RDWR, 0, 0)
        most = 0
        for index in range(2000):
            await vfs.write(handle.fh, (index + 1) * CHUNK_SIZE - 512, b"y" * 512)
            if index % 16 == 0:
                await trio.lowlevel.checkpoint()
            hot = [len(chunk.buffer) for chunk in store.contents._hot.values() if chunk.buffer is not None]
            most = max(most, sum(hot))
        await store.flush()
        assert store.contents.accepted_bytes == 0
        assert most <= HOT_MAX * CHUNK_SIZE + ACCEPTED_MAX
        assert await store.contents.read(store.inode(handle.ino), 7 * CHUNK_SIZE - 514, 4, deadline()) == b"\0\0yy"

    local.run(body, upkeep=False)


def test_cold_chunks_that_come_faster_than_the_disk_takes_them_are_not_kept(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3 * ACCEPTED_MAX // CHUNK_SIZE
    sealed: dict[int, bytes] = {}

    class Source:
        async def fetch(self, version: int, location: Location, check: object, deadline: float) -> bytes:
            return sealed[version]

        def room(self, reader: int) -> int:
            return 0

        def forget(self, reader: int) -> None:
            pass

    async def body(store: Store) -> None:
        ino = new_file(store, os.urandom(count * CHUNK_SIZE))
        await store.flush()
        versions = [store.reader.chunk(ino, index).version for index in range(count)]  # type: ignore[union-attr]
        with store.env.data.begin(write=True, db=store.env.data_db) as txn:
            for version in versions:
                sealed[version] = bytes(txn.pop(U64.pack(version)))

        def place(writer: Writer, generation: int) -> None:
            for version in versions:
                row = pack_location(Location(bytes(16), 0, 0, len(sealed[version])))
                writer.put(Table.LOCATIONS, U64.pack(version), row, generation)

        await store.task(place)
        valve = Valve(store.committer, monkeypatch)
        for index in range(count):
            await store.contents.read(store.inode(ino), index * CHUNK_SIZE, CHUNK_SIZE, deadline())
        waiting = sum(len(job.sealed) for job in valve._held if isinstance(job, CacheJob))
        assert ACCEPTED_MAX // 2 < waiting <= ACCEPTED_MAX
        monkeypatch.undo()
        valve.open()
        await until(store, lambda: store.contents._caching == 0)
        store.contents._warm.clear()
        await store.contents.read(store.inode(ino), (count - 1) * CHUNK_SIZE, CHUNK_SIZE, deadline())
        await until(store, lambda: store.reader.has_chunk(versions[-1]))

    local.run(body, source=Source(), upkeep=False)  # type: ignore[arg-type]
