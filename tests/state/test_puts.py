"""Rows that batches put into LMDB, by table: counts that no machine changes, held to what they were, and 20 %."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from icnfs.format.records import Table
from icnfs.state.apply import Writer
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.vfs.vfs import Vfs
from tests.state.local import Local

FILES = 100
SLACK = 1.2


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Filled as rows are put."""
    counted: Counter[str] = Counter()
    put_sealed = Writer.put_sealed

    def counting(self: Writer, table: Table, key: bytes, sealed: bytes, generation: int) -> None:
        counted[table.name] += 1
        put_sealed(self, table, key, sealed, generation)

    monkeypatch.setattr(Writer, "put_sealed", counting)
    return counted


def _held(puts: Counter[str], expected: dict[str, int]) -> None:
    over = {table: count for table, count in puts.items() if count > SLACK * expected.get(table, 0)}
    assert not over, f"puts by table grew over {expected}: {over}"
    assert puts.total() > 0


def test_small_files_take_four_rows_each(tmp_path: Path, puts: Counter[str]) -> None:
    async def body(store: Store) -> None:
        vfs = Vfs(store, lambda: 1 << 30)
        await store.flush()
        puts.clear()
        for number in range(FILES):
            handle, _ = vfs.create(ROOT_INO, b"f%d" % number, 0o644, 0, 0, 0)
            await vfs.write(handle.fh, 0, bytes([number]) * 4096)
            vfs.release(handle.fh)
        store.close_batch()
        await store.flush()
        _held(puts, {"INODES": FILES + 1, "NAMES": FILES, "KEYS": FILES, "CHUNKS": FILES, "SETTINGS": 2})

    Local(tmp_path / "state").run(body, upkeep=False)


def test_fsyncs_of_one_file_hardly_put_its_inode(tmp_path: Path, puts: Counter[str]) -> None:
    """What the journal holds is merged before LMDB takes it over: once, or a few times where this process waited."""

    async def body(store: Store) -> None:
        vfs = Vfs(store, lambda: 1 << 30)
        handle, _ = vfs.create(ROOT_INO, b"log", 0o644, 0, 0, 0)
        await store.flush()
        puts.clear()
        for number in range(FILES):
            await vfs.write(handle.fh, number * 100, b"x" * 100)
            await vfs.fsync(handle.fh, True)
        await store.flush()
        vfs.release(handle.fh)
        _held(puts, {"INODES": FILES // 10, "PATCHES": FILES, "KEYS": 1, "SETTINGS": FILES // 5, "CHUNKS": 1})

    Local(tmp_path / "state").run(body, upkeep=False)


def test_renames_put_each_name_once_and_their_folder_once(tmp_path: Path, puts: Counter[str]) -> None:
    async def body(store: Store) -> None:
        vfs = Vfs(store, lambda: 1 << 30)
        for number in range(FILES):
            vfs.mknod(ROOT_INO, b"f%d" % number, 0o100644, 0, 0, 0)
        await store.flush()
        puts.clear()
        for number in range(FILES):
            vfs.rename(ROOT_INO, b"f%d" % number, ROOT_INO, b"g%d" % number)
        await store.flush()
        _held(puts, {"INODES": FILES + 1, "NAMES": FILES, "SETTINGS": 2})

    Local(tmp_path / "state").run(body, upkeep=False)
