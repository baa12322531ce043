from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import lmdb
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.crypto.keys import MasterKey
from icnfs.errors import DamagedError, FsError, LocalDiskError, MountedError, NoVolumeError, VolumeExistsError
from icnfs.format.records import RANKS, Entry, Table
from icnfs.limits import CHUNK_SIZE
from icnfs.state import loader
from icnfs.state.jobs import CacheJob, SealJob
from icnfs.state.loader import ROOT_INO, Loader
from icnfs.state.names import Beneath
from icnfs.state.store import INO_STEP, Store
from tests.state.local import Local, until


def new_file(store: Store) -> int:
    return store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1).ino


def add(store: Store, name: bytes) -> Entry:
    return store.add_name(ROOT_INO, name, new_file(store), 8)


# --- opening -------------------------------------------------------------------------------------------------------


def test_a_state_is_opened_once_at_a_time(local: Local) -> None:
    async def body(store: Store) -> None:
        with pytest.raises(MountedError):
            Store.open(local.root, local.master)

    local.run(body)
    local.run(body)


def test_another_master_key_opens_nothing(local: Local) -> None:
    with pytest.raises(DamagedError):
        Store.open(local.root, MasterKey.random())


def test_a_folder_without_a_state_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoVolumeError):
        Store.open(tmp_path, MasterKey.random())


def test_a_damaged_state_says_so_and_names_the_remedy(local: Local) -> None:
    (local.root / "meta" / "data.mdb").write_bytes(b"\x5a" * 8192)
    with pytest.raises(DamagedError, match="icnfs recover"):
        Store.open(local.root, local.master)


def test_a_state_open_to_others_is_closed_to_them(local: Local) -> None:
    local.root.chmod(0o755)

    async def body(store: Store) -> None:
        assert stat.S_IMODE(local.root.stat().st_mode) == 0o700

    local.run(body)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, which only root may")
def test_a_state_of_another_user_is_refused(local: Local) -> None:
    os.chown(local.root, 12345, -1)
    with pytest.raises(LocalDiskError, match="another user"):
        Store.open(local.root, local.master)


def test_a_state_is_never_overwritten(local: Local) -> None:
    with pytest.raises(VolumeExistsError):
        loader.create(local.root, local.volume, local.master)


def test_a_loading_that_was_interrupted_is_no_state(tmp_path: Path) -> None:
    loading = Loader(tmp_path / "state", bytes(16))
    loading.commit()
    loading._txn.abort()
    loading._env.close()
    with pytest.raises(LocalDiskError):
        Store.open(tmp_path / "state", MasterKey.random())


def test_rows_that_no_run_may_carry_are_refused(tmp_path: Path) -> None:
    loading = Loader(tmp_path / "state", bytes(16))
    for table in (Table.SETTINGS, Table.DIRTY, Table.GARBAGE, 99):
        with pytest.raises(ValueError, match="runs carry"):
            loading.put(table, b"counters", b"forged")
    loading.abandon()
    assert not (tmp_path / "state").exists()


def test_numbers_are_never_handed_out_twice(local: Local) -> None:
    seen: set[int] = set()
    versions: set[int] = set()

    async def body(store: Store) -> None:
        for _ in range(10):
            ino = new_file(store)
            assert ino not in seen
            seen.add(ino)
            version = store.new_version()
            assert version not in versions
            versions.add(version)

    for _ in range(3):
        local.run(body)


def test_inode_numbers_are_reserved_ahead_of_use(local: Local) -> None:
    async def body(store: Store) -> None:
        for _ in range(INO_STEP + 10):
            new_file(store)
            if store.uncommitted > 4000:
                await store.flush()

    local.run(body)
    local.run(body)


# --- durability ----------------------------------------------------------------------------------------------------


def test_what_was_flushed_is_there_after_reopening(local: Local) -> None:
    async def make(store: Store) -> None:
        add(store, b"kept")
        await store.flush()

    async def look(store: Store) -> None:
        entry = store.find(ROOT_INO, b"kept")
        assert entry is not None
        assert store.inode(entry.ino).mode == stat.S_IFREG | 0o644
        assert store.files == 2

    local.run(make)
    local.run(look)


def test_a_batch_closes_by_itself_well_within_a_second(local: Local) -> None:
    async def body(store: Store) -> None:
        add(store, b"soon")
        number = store.batch.number
        begun = time.monotonic()
        with trio.fail_after(5):
            await store.wait_committed(number)
        assert time.monotonic() - begun < 1.0

    local.run(body)


def test_concurrent_flushes_share_commits(local: Local) -> None:
    async def body(store: Store) -> None:
        before = store.committer.commits
        async with trio.open_nursery() as nursery:
            for i in range(50):
                add(store, b"%d" % i)
                nursery.start_soon(store.flush)
        assert store.committer.commits - before < 25

    local.run(body)


def test_a_disk_that_takes_nothing_fails_the_flush_and_loses_nothing(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True

    async def body(store: Store) -> None:
        nonlocal full
        real = store.committer._put_meta

        def put_meta(ordered: object) -> None:
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(ordered)  # type: ignore[arg-type]

        monkeypatch.setattr(store.committer, "_put_meta", put_meta)
        add(store, b"waits")
        with pytest.raises(LocalDiskError):
            await store.flush()
        assert store.find(ROOT_INO, b"waits") is not None
        assert store.congested
        full = False
        await until(store, lambda: store.failure is None)
        await store.flush()
        assert not store.congested

    local.run(body, upkeep=False)

    async def look(store: Store) -> None:
        assert store.find(ROOT_INO, b"waits") is not None

    local.run(look)


def test_a_committer_that_ends_leaves_a_read_only_volume_and_no_fsync_succeeds(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(store: Store) -> None:
        def broken(ordered: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(store.committer, "_put_meta", broken)
        add(store, b"lost")
        for _ in range(2):
            with pytest.raises(LocalDiskError) as caught:
                await store.flush()
            assert caught.value.errno == errno.EIO
        assert store.read_only

    local.run(body, upkeep=False)


def test_a_sync_that_failed_is_not_believed_the_second_time(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed write-back once; a retry must write again what it forgot."""

    async def body(store: Store) -> None:
        real, failures = store.env.sync_data, [True]
        monkeypatch.setattr("icnfs.state.committer.RETRY_SECONDS", 0.01)

        def sync_data() -> None:
            transactions.append(store.env.data.info()["last_txnid"])
            if failures:
                failures.pop()
                raise OSError(errno.EIO, "Input/output error")
            real()

        monkeypatch.setattr(store.env, "sync_data", sync_data)
        monkeypatch.setattr(store.env, "give_up_reserve", lambda: False)
        store.contents.write(store.edit(new_file(store)), 0, b"x" * CHUNK_SIZE)
        store.close_batch()
        await until(store, lambda: len(transactions) == 2)
        assert transactions[1] > transactions[0]

    transactions: list[int] = []
    local.run(body, upkeep=False)


def test_after_a_commit_that_failed_the_next_is_made_durable_before_another(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush of a commit is the one that makes the last commit's meta page durable: the kernel may have forgotten
    it, and the commit after the next writes over pages that the state before both still needs."""

    async def body(store: Store) -> None:
        monkeypatch.setattr("icnfs.state.committer.RETRY_SECONDS", 0.01)
        monkeypatch.setattr("icnfs.state.committer.RELIEF_SECONDS", 0.01)
        monkeypatch.setattr(store.env, "give_up_reserve", lambda: False)
        real, sync, failures = store.committer._write_data, store.env.sync_data, [True]

        def write(sealed: list[SealJob], cached: list[CacheJob]) -> None:
            steps.append("write")
            if failures:
                failures.pop()
                raise lmdb.Error("Input/output error")
            real(sealed, cached)

        monkeypatch.setattr(store.committer, "_write_data", write)
        monkeypatch.setattr(store.env, "sync_data", lambda: (steps.append("sync"), sync()))
        node = store.edit(new_file(store))
        for index in range(8):  # more than a group
            store.contents.write(node, index * CHUNK_SIZE, os.urandom(CHUNK_SIZE))
        await until(store, lambda: "sync" in steps)
        assert steps[:3] == ["write", "write", "sync"]

    steps: list[str] = []
    local.run(body, upkeep=False)


def test_writers_get_enospc_when_no_room_comes(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.standstill.FULL_WAIT", 0.05)

    async def body(store: Store) -> None:
        store.set_full(True)
        with pytest.raises(FsError) as caught:
            await store.wait_room()
        assert caught.value.errno == errno.ENOSPC
        await store.wait_room(growing=False)

    local.run(body, upkeep=False)


# --- names ---------------------------------------------------------------------------------------------------------

name_steps = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "flush", "commit-later", "list"]), st.integers(0, 12)), max_size=40
)


@settings(max_examples=40)
@given(steps=name_steps, colliding=st.booleans())
def test_a_directory_lists_what_was_named_in_order_of_cookies(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], colliding: bool
) -> None:
    local = Local(tmp_path_factory.mktemp("names") / "state")
    model: dict[bytes, int] = {}

    async def body(store: Store) -> None:
        if colliding:
            store.beneath = Beneath(store.reader, FewHashes())  # type: ignore[arg-type]
        for kind, number in steps:
            name = b"name-%d" % number
            entry = store.find(ROOT_INO, name)
            assert (entry.ino if entry else None) == model.get(name)
            if kind == "add" and entry is None:
                model[name] = add(store, name).ino
            elif kind == "remove" and entry is not None:
                store.remove_name(ROOT_INO, entry)
                del model[name]
            elif kind == "flush":
                await store.flush()
            elif kind == "commit-later":
                store.close_batch()
            elif kind == "list":
                check(store)
        check(store)

    def check(store: Store) -> None:
        listed = list(store.entries(ROOT_INO, 0))
        assert {e.name: e.ino for e in listed} == model
        cookies = [e.cookie for e in listed]
        assert cookies == sorted(set(cookies))
        for entry in listed:
            assert next(store.entries(ROOT_INO, entry.cookie)) == entry

    local.run(body)


class FewHashes:
    """A name hash in which everything collides with half of the rest."""

    def cookie_base(self, parent: int, name: bytes) -> int:
        return 5 + len(name) % 2


def test_more_names_of_one_hash_than_ranks_is_enospc(local: Local) -> None:
    async def body(store: Store) -> None:
        store.beneath = Beneath(store.reader, FewHashes())  # type: ignore[arg-type]
        for i in range(RANKS):
            add(store, b"%02d" % i)
        with pytest.raises(FsError) as caught:
            add(store, b"99")
        assert caught.value.errno == errno.ENOSPC
        entry = store.find(ROOT_INO, b"03")
        assert entry is not None
        store.remove_name(ROOT_INO, entry)
        assert add(store, b"99").cookie == entry.cookie

    local.run(body)


def test_a_stale_inode_is_estale(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        store.drop_inode(ino)
        for _ in range(2):
            with pytest.raises(FsError) as caught:
                store.inode(ino)
            assert caught.value.errno == errno.ESTALE
            await store.flush()

    local.run(body)


def test_a_closed_batch_is_not_changed_by_later_requests(local: Local) -> None:
    async def body(store: Store) -> None:
        ino = new_file(store)
        first = store.edit(ino)
        first.mode = stat.S_IFREG | 0o600
        store.close_batch()
        later = store.edit(ino)
        later.mode = stat.S_IFREG | 0o666
        assert first is not later
        assert first.mode == stat.S_IFREG | 0o600
        await store.flush()
        assert store.reader.inode(ino).mode == stat.S_IFREG | 0o666  # type: ignore[union-attr]

    local.run(body)


def test_settings_are_kept(local: Local) -> None:
    async def put(store: Store) -> None:
        await store.put_setting("head", b"\x00doc")

    async def look(store: Store) -> None:
        assert store.get_setting("head") == b"\x00doc"
        await store.put_setting("head", None)
        assert store.get_setting("head") is None

    local.run(put)
    local.run(look)


def test_looking_at_many_inodes_keeps_few_in_memory_though_nothing_is_committed(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.state.store.INODES_MAX", 100)

    async def body(store: Store) -> None:
        inos = [new_file(store) for _ in range(1000)]
        await store.flush()
        for _ in range(2):
            for ino in inos:
                assert store.inode(ino).ino == ino
        changed = store.edit(inos[0])
        for ino in inos:
            store.inode(ino)
        assert store.inode(inos[0]) is changed
        assert len(store._inodes) <= 200

    local.run(body, upkeep=False)


def test_an_inode_that_is_edited_as_soon_as_it_is_read_stays_in_memory(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make(store: Store) -> int:
        return new_file(store)

    ino = local.run(make)
    monkeypatch.setattr("icnfs.state.store.INODES_MAX", 1)

    async def body(store: Store) -> None:
        for _ in range(8):
            new_file(store)
        store.edit(ino).size = 5
        assert store.inode(ino).size == 5

    local.run(body)


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EOPNOTSUPP, errno.ENOSPC])
def test_who_cannot_have_a_reserve_goes_on_without_but_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """There may be room and no inode, or no descriptor, or a quota: writers must not wait for ever."""
    local = Local(tmp_path / "state")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    async def body(store: Store) -> None:
        store.env.give_up_reserve()
        assert store.env.lacks_reserve and not store.env.has_reserve
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", refuse)
            store.env.take_reserve()
        assert store.env.lacks_reserve == (code == errno.ENOSPC)
        assert not (store.env.root / "reserve").exists()
        (store.env.root / "reserve").mkdir()
        store.env.take_reserve()
        assert not store.env.lacks_reserve and not store.env.has_reserve
        (store.env.root / "reserve").rmdir()
        await store.flush()
        store.touch()
        await store.flush()
        assert store.env.has_reserve, "a commit takes it where it can be had"

    local.run(body)
