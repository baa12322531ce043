"""A file tree in plain dictionaries, and the accounts that a local state must keep of the same tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import trio.testing

from icnfs.format.records import U64, Table, unpack_chunk
from icnfs.limits import CHUNK_SIZE
from icnfs.state.cut import begin_cut
from icnfs.state.inode import Inode
from icnfs.state.loader import ROOT_INO
from icnfs.state.marks import Count, unmark
from icnfs.state.store import Store
from tests.state.local import until


@dataclass(eq=False)
class File:
    """`entries` is None unless it is a directory."""

    ino: int
    data: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[bytes, File] | None = None

    def children(self) -> dict[bytes, File]:
        assert self.entries is not None
        return self.entries

    def walk(self) -> list[File]:
        """This and everything below, each name once."""
        return [self, *(f for child in (self.entries or {}).values() for f in child.walk())]

    def write(self, offset: int, data: bytes) -> None:
        base = self.data.ljust(offset, b"\0")
        self.data = base[:offset] + data + base[offset + len(data) :]

    def truncate(self, size: int) -> None:
        self.data = self.data[:size].ljust(size, b"\0")


def new_tree() -> File:
    return File(ROOT_INO, entries={})


async def settle(store: Store) -> None:
    """Wait until everything is folded, committed, reaped and erased."""

    def quiet() -> bool:
        contents, committer = store.contents, store.committer
        return not (
            store.batch.touched
            or store.committed != store.batch.number - 1
            or store.reader.count(Table.TOMBSTONES)
            or store.abandoned
            or contents.to_fold
            or contents._warm
            or committer._doomed
        )

    await trio.testing.wait_all_tasks_blocked()
    while True:
        await store.flush()
        await until(store, quiet)
        await store.task(lambda writer, generation: None)
        if quiet() and not _stray_notes(store):
            return


async def recount(store: Store) -> None:
    """As collection does: find out what is shared no more."""
    cut = await begin_cut(store)
    count = Count(cut)
    for _ in count.steps():
        pass
    cut.close()
    await store.task(partial(unmark, list(count.findings()), cut.generation))


def check_marks(store: Store) -> None:
    """What is marked in a settled state whose marks were just counted: what several rows name, and only that."""
    reader, owner = store.reader, {}
    for key, _ in reader.rows(Table.INODES):
        owner[store.inode(U64.unpack(key)[0]).key_id] = U64.unpack(key)[0]
    times: Counter[int] = Counter()
    for key, _ in reader.rows(Table.CHUNKS):
        record = unpack_chunk(reader.get(Table.CHUNKS, key) or b"")
        times[record.version] += 1
        if owner.get(record.key_id) != U64.unpack_from(key)[0]:
            times[record.key_id] += 2
    marked = {U64.unpack(key)[0] for key, _ in reader.rows(Table.SHARED)}
    assert marked == {number for number, count in times.items() if count > 1}


def _stray_notes(store: Store) -> set[int]:
    """Dead versions whose note nothing keeps."""
    notes = {U64.unpack(k)[0] for k, _ in store.reader.rows(Table.GARBAGE)}
    return {v for v in notes if store.reader.location(v) is None}


def check_accounts(store: Store) -> None:
    """What a settled state must satisfy whatever was done to it."""
    reader = store.reader
    inodes = {U64.unpack(k)[0]: store.inode(U64.unpack(k)[0]) for k, _ in reader.rows(Table.INODES)}
    assert store.files == len(inodes)
    assert store.bytes_used == sum(node.blocks << 9 for node in inodes.values() if node.is_file)
    _check_names(store, inodes)
    _check_chunks(store, inodes)
    contents, overlay = store.contents, store.overlay
    assert not contents._inflight
    assert not contents._warm
    assert not contents._tombs
    assert not contents._dirty
    assert contents.accepted_bytes == 0
    assert not any((overlay.names, overlay.xattrs, overlay.chunks, overlay.patches, overlay.keys, overlay.settings))


def _check_names(store: Store, inodes: dict[int, Inode]) -> None:
    links: dict[int, int] = {}
    for ino, node in inodes.items():
        entries = list(store.entries(ino, 0)) if node.is_dir else []
        for entry in entries:
            child = inodes[entry.ino]
            assert entry.kind == child.kind
            assert not child.is_dir or child.parent == ino
            links[entry.ino] = links.get(entry.ino, 0) + 1
        if node.is_dir:
            assert node.count == len(entries)
            subdirs = sum(inodes[e.ino].is_dir for e in entries)
            assert node.nlink == (2 + subdirs if node.nlink else 0)
    assert store.reader.count(Table.NAMES) == sum(links.values())
    for ino, node in inodes.items():
        if not node.is_dir:
            assert node.nlink == links.get(ino, 0)
    orphans = {U64.unpack(k)[0] for k, _ in store.reader.rows(Table.ORPHANS)}
    assert orphans == {ino for ino, node in inodes.items() if not node.nlink}
    assert {U64.unpack(k)[0] for k, _ in store.reader.rows(Table.XATTRS)} == {i for i, n in inodes.items() if n.flags}


def _check_chunks(store: Store, inodes: dict[int, Inode]) -> None:
    reader = store.reader
    chunks: dict[int, set[int]] = {}
    named: set[int] = set()
    sealed_under: set[int] = set()
    shared = {key for key, _ in reader.rows(Table.SHARED)}
    dirty = 0
    for key, _ in reader.rows(Table.CHUNKS):
        ino, index = U64.unpack_from(key)[0], U64.unpack_from(key, 8)[0]
        record = unpack_chunk(reader.get(Table.CHUNKS, key) or b"")
        assert record.version not in named or U64.pack(record.version) in shared
        assert record.key_id == inodes[ino].key_id or U64.pack(record.key_id) in shared
        sealed_under.add(record.key_id)
        chunks.setdefault(ino, set()).add(index)
        located = reader.location(record.version) is not None
        assert located or reader.has_chunk(record.version)
        dirty += 0 if located or record.version in named else record.length
        named.add(record.version)
    for key, _ in reader.rows(Table.PATCHES):
        ino, index, version = U64.unpack_from(key)[0], U64.unpack_from(key, 8)[0], U64.unpack_from(key, 16)[0]
        beneath = reader.chunk(ino, index)
        assert beneath is None or beneath.version < version
        chunks.setdefault(ino, set()).add(index)
    assert chunks.keys() <= inodes.keys()
    for ino, node in inodes.items():
        if node.is_file:
            assert node.count == len(chunks.get(ino, ()))
            assert max(chunks.get(ino, ()), default=-1) * CHUNK_SIZE < max(node.size, 1)
    keys = {U64.unpack(k)[0] for k, _ in reader.rows(Table.KEYS)}
    needed = {n.key_id for n in inodes.values() if n.key_id} | sealed_under
    assert needed <= keys
    assert all(U64.pack(key) in shared for key in keys - needed)
    held = {U64.unpack(bytes(k))[0] for k in reader.data.cursor(store.env.data_db).iternext(values=False)}
    waiting = {U64.unpack(key)[0] for key in shared} - named
    assert held <= named | waiting
    dirty += sum(len(reader.sealed_chunk(v) or b"") for v in waiting if reader.location(v) is None)
    notes = {U64.unpack(k)[0] for k, _ in reader.rows(Table.GARBAGE)}
    assert not _stray_notes(store)
    assert not notes & named
    assert store.committer.dirty_bytes == dirty
