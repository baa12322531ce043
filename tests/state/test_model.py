"""The store under Vfs against a tree in memory: any requests, commits, folds, publishes, evictions, crashes.

A crash is a copy of LMDB's files at any moment, as kill -9 leaves them; it must show the tree as of one batch, none
older than the last flush.  `ICNFS_MODEL_EXAMPLES` runs more examples than the few of a quick test.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.errors import FsError
from icnfs.format.records import Location
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.limits import CHUNK_SIZE
from icnfs.state.apply import unpack_counters
from icnfs.state.copying import Copy
from icnfs.state.cut import begin_cut, finish_publish, seal_location, seal_segment
from icnfs.state.journal import Journal
from icnfs.state.reader import Reader
from icnfs.state.store import Store
from icnfs.state.upkeep import Budget
from icnfs.vfs.attributes import SetAttr
from icnfs.vfs.handles import Handle
from icnfs.vfs.rename import RENAME_EXCHANGE, RENAME_NOREPLACE
from icnfs.vfs.vfs import Vfs
from tests.state.local import Local, deadline
from tests.state.tree import File, check_accounts, check_marks, new_tree, recount, settle

EXAMPLES = int(os.environ.get("ICNFS_MODEL_EXAMPLES", "25"))
NAMES = [b"a", b"b", b"c"]
CHANGES = ["create", "mkdir", "write", "write", "append", "truncate", "link", "unlink", "rename", "xattr", "clone"]
REST = [
    "hold",
    "let-go",
    "flush",
    "fsync",
    "close",
    "fold",
    "publish",
    "read",
    "reopen",
    "crash",
    "yield",
    "settle",
    "recount",
]

TIGHT = {
    "icnfs.state.apply.DIRECT_CUT": 1,
    "icnfs.state.upkeep.REAP_STEP": 2,
    "icnfs.state.upkeep.EVICT_STEP": 3,
    "icnfs.state.contents.HOT_MAX": 1,
    "icnfs.state.layers.KEYS_MAX": 1,
    "icnfs.state.contents.PATCH_LIMIT": 5000,
    "icnfs.state.hot.PATCH_LIMIT": 5000,
    "icnfs.state.cut.FORGET_STEP": 3,
    "icnfs.state.store.INODES_MAX": 1,
    "icnfs.state.store.BATCH_SECONDS": 0.002,
    "icnfs.state.store.BATCH_CHANGES": 4,
}
"""Bounds that a few files reach."""

offsets = st.one_of(st.integers(0, 3 * CHUNK_SIZE), st.sampled_from([0, 1, CHUNK_SIZE - 1, CHUNK_SIZE]))
sizes = st.one_of(st.integers(1, 6000), st.sampled_from([CHUNK_SIZE, CHUNK_SIZE + 1, 40000]))
step = st.tuples(st.sampled_from(CHANGES + REST), st.integers(0, 1 << 16), st.integers(0, 1 << 16), offsets, sizes)
Step = tuple[str, int, int, int, int]


class Shelf:
    """The providers: what was published, by version."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}

    async def fetch(self, version: int, location: Location, check: Callable[[bytes], bool], deadline: float) -> bytes:
        await trio.lowlevel.checkpoint()
        assert check(self.chunks[version])
        return self.chunks[version]


class Machine:
    """Takes steps on a store and on the model alike."""

    def __init__(self, root: Path, seed: int) -> None:
        self.local = Local(root)
        self.noise = random.Random(seed)
        self.shelf = Shelf()
        self.tree = new_tree()
        self.after: dict[int, File] = {0: copy.deepcopy(self.tree)}
        self.seen = 1
        self.flushed = 0
        self.held: list[tuple[Handle, File]] = []
        self.copies = 0
        self.survived = 0

    def run(self, steps: list[Step]) -> None:
        left = list(steps)

        async def body(store: Store) -> None:
            self.store = store
            self.vfs = Vfs(store, lambda: 1 << 40)
            self.held = []
            self.after = {store.committed: copy.deepcopy(self.tree)}
            self.seen = store.batch.number
            await self.compare()
            while left:
                kind, one, two, offset, size = left.pop(0)
                if self.vfs.congested:
                    await self.vfs.wait_room()
                self.note()
                if kind == "reopen":
                    return
                if kind == "crash":
                    self.crash()
                    return
                await self.take(kind, one, two, offset, size)
                self.note()
            await self.finish()

        while left:
            self.local.run(body, source=self.shelf, budget=Budget(clean=0, reserve=0))
        self.local.run(body, source=self.shelf, budget=Budget(clean=0, reserve=0))

    def note(self) -> None:
        """Remember the tree as of each batch that closed since the last step."""
        now = self.store.batch.number
        if now != self.seen:
            self.after |= dict.fromkeys(range(self.seen, now), copy.deepcopy(self.tree))
            self.seen = now

    async def finish(self) -> None:
        await self.compare()
        for handle, _ in self.held:
            self.vfs.release(handle.fh)
        self.held = []
        await settle(self.store)
        check_accounts(self.store)
        await recount(self.store)
        await settle(self.store)
        check_accounts(self.store)
        check_marks(self.store)
        await self.compare()

    # --- steps --------------------------------------------------------------------------------------------------------

    async def take(self, kind: str, one: int, two: int, offset: int, size: int) -> None:
        method = getattr(self, "do_" + kind.replace("-", "_"))
        try:
            await method(one, two, offset, size)
        except FsError:
            assert kind in CHANGES, kind

    def directory(self, number: int) -> File:
        directories = [f for f in self.tree.walk() if f.entries is not None]
        return directories[number % len(directories)]

    def place(self, number: int) -> tuple[File, bytes]:
        return self.directory(number // len(NAMES)), NAMES[number % len(NAMES)]

    def file(self, number: int) -> File | None:
        files = [f for f in self.tree.walk() if f.entries is None] + [f for _, f in self.held]
        return files[number % len(files)] if files else None

    async def do_create(self, one: int, two: int, offset: int, size: int) -> None:
        parent, name = self.place(one)
        handle, node = self.vfs.create(parent.ino, name, 0o644, os.O_RDWR, 0, 0)
        assert name not in parent.children()
        self.vfs.release(handle.fh)
        parent.children()[name] = File(node.ino)

    async def do_mkdir(self, one: int, two: int, offset: int, size: int) -> None:
        parent, name = self.place(one)
        node = self.vfs.mkdir(parent.ino, name, 0o755, 0, 0)
        assert name not in parent.children()
        parent.children()[name] = File(node.ino, entries={})

    async def do_write(self, one: int, two: int, offset: int, size: int) -> None:
        file = self.file(one)
        if file is not None:
            handle = self.vfs.open(file.ino, os.O_RDWR)
            data = self.noise.randbytes(size)
            await self.vfs.write(handle.fh, offset, data)
            file.write(offset, data)
            self.vfs.release(handle.fh)

    async def do_append(self, one: int, two: int, offset: int, size: int) -> None:
        file = self.file(one)
        if file is not None and len(file.data) < 5 * CHUNK_SIZE:
            await self.do_write(one, two, len(file.data), size)

    async def do_truncate(self, one: int, two: int, offset: int, size: int) -> None:
        file = self.file(one)
        if file is not None:
            self.vfs.setattr(file.ino, SetAttr(size=offset))
            file.truncate(offset)

    async def do_link(self, one: int, two: int, offset: int, size: int) -> None:
        file = self.file(one)
        if file is not None:
            parent, name = self.place(two)
            self.vfs.link(file.ino, parent.ino, name)
            assert name not in parent.children()
            parent.children()[name] = file

    async def do_unlink(self, one: int, two: int, offset: int, size: int) -> None:
        parent, name = self.place(one)
        file = parent.children().get(name)
        if file is not None and file.entries is not None:
            self.vfs.rmdir(parent.ino, name)
            assert not file.entries
        else:
            self.vfs.unlink(parent.ino, name)
        del parent.children()[name]

    async def do_rename(self, one: int, two: int, offset: int, size: int) -> None:
        (parent, name), (new_parent, new_name) = self.place(one), self.place(two)
        flags = (0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)[size % 4]
        self.vfs.rename(parent.ino, name, new_parent.ino, new_name, flags)
        source, target = parent.children()[name], new_parent.children().get(new_name)
        if flags == RENAME_EXCHANGE:
            assert target is not None
            parent.children()[name], new_parent.children()[new_name] = target, source
        elif target is not source:
            assert target is None or (not target.entries and flags != RENAME_NOREPLACE)
            del parent.children()[name]
            new_parent.children()[new_name] = source

    async def do_xattr(self, one: int, two: int, offset: int, size: int) -> None:
        file = self.tree.walk()[one % len(self.tree.walk())]
        if two % 3:
            self.vfs.setxattr(file.ino, b"user.x", b"%d" % two)
            file.xattrs[b"user.x"] = b"%d" % two
        else:
            self.vfs.removexattr(file.ino, b"user.x")
            del file.xattrs[b"user.x"]

    async def do_clone(self, one: int, two: int, offset: int, size: int) -> None:
        """Perhaps given up once it has a few entries."""
        parent, name = self.place(one)
        source = self.tree.walk()[two % len(self.tree.walk())]
        appear = self.vfs._appear

        def appears(copied: Copy, *where: object) -> None:
            self.note()
            appear(copied, *where)  # type: ignore[arg-type]
            parent.children()[name] = self.cloned(source, copied.top, {})

        entries = size % 5 or 1000
        with pytest.MonkeyPatch.context() as patch, trio.CancelScope() as scope:
            patch.setattr(self.vfs, "_appear", appears)
            await self.vfs.clone(source.ino, parent.ino, name, 0, lambda done: done < entries or scope.cancel())
        self.flushed = await self.store.flush()

    def cloned(self, file: File, ino: int, known: dict[File, File]) -> File:
        """The model's file once more, as the store has it under `ino`."""
        new = known.setdefault(file, File(ino, file.data, dict(file.xattrs)))
        assert new.ino == ino, "hard links within a tree stay hard links"
        if file.entries is not None:
            inos = {entry.name: entry.ino for entry in self.store.entries(ino, 0)}
            new.entries = {name: self.cloned(child, inos[name], known) for name, child in file.entries.items()}
        return new

    async def do_recount(self, one: int, two: int, offset: int, size: int) -> None:
        await recount(self.store)

    async def do_hold(self, one: int, two: int, offset: int, size: int) -> None:
        file = self.file(one)
        if file is not None:
            self.held.append((self.vfs.open(file.ino, os.O_RDWR), file))

    async def do_let_go(self, one: int, two: int, offset: int, size: int) -> None:
        if self.held:
            self.vfs.release(self.held.pop(one % len(self.held))[0].fh)

    async def do_flush(self, one: int, two: int, offset: int, size: int) -> None:
        self.flushed = await self.store.flush()

    async def do_fsync(self, one: int, two: int, offset: int, size: int) -> None:
        if self.held:
            handle, file = self.held[one % len(self.held)]
            number = self.vfs.getattr(file.ino).batch
            await self.vfs.fsync(handle.fh, False)
            self.flushed = max(self.flushed, number)

    async def do_close(self, one: int, two: int, offset: int, size: int) -> None:
        self.store.close_batch()

    async def do_yield(self, one: int, two: int, offset: int, size: int) -> None:
        self.store.want_upkeep()
        for _ in range(one % 8):
            await trio.lowlevel.checkpoint()

    async def do_settle(self, one: int, two: int, offset: int, size: int) -> None:
        await settle(self.store)
        check_accounts(self.store)

    async def do_fold(self, one: int, two: int, offset: int, size: int) -> None:
        for place in filter(lambda place: self.store.contents.is_patched(*place), self.store.contents.patched()):
            await self.store.contents.fold(*place, deadline())

    async def do_read(self, one: int, two: int, offset: int, size: int) -> None:
        file = self.file(one)
        if file is not None:
            handle = self.vfs.open(file.ino, os.O_RDONLY)
            assert await self.vfs.read(handle.fh, offset, size) == file.data[offset : offset + size]
            self.vfs.release(handle.fh)

    async def do_publish(self, one: int, two: int, offset: int, size: int) -> None:
        """As the publisher does; or it fails after the cut."""
        store = self.store
        cut = await begin_cut(store)
        if one % 4:
            share = ShareInfo("p", bytes(32), True)
            info = SegmentInfo(self.noise.randbytes(16), 1, 1, CHUNK_SIZE, CHUNK_SIZE, (share,))
            places = list(cut.unlocated())
            for version, length in places:
                self.shelf.chunks[version] = bytes(cut.sealed_chunk(version))
                assert len(self.shelf.chunks[version]) == length
            rows = [seal_location(store, version, Location(info.id, 0, 0, length)) for version, length in places]
            keep = store.dirty_floor if one % 3 else cut.generation
            await finish_publish(store, cut, sorted([*rows, seal_segment(store, info)]), {}, keep)
        cut.close()

    # --- ends ---------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Copy the files as they are; nothing commits meanwhile, and the journal may grow."""
        self.copies += 1
        old, new = self.local.root, self.local.root.with_name(f"state-{self.copies}")
        env = self.store.env
        with env.meta.begin(write=True) as meta, env.data.begin(write=True) as data:
            plain = Reader(env, self.store.records, meta, data).setting("counters")
            assert plain is not None
            shutil.copytree(old, new, ignore=shutil.ignore_patterns("reserve", "lock.mdb"))
        self.local.root = new
        self.survived = unpack_counters(plain)[1]
        journal = Journal(new, self.store.records)
        for entry in journal.read(self.survived, self.store.salts.newest):
            self.survived = entry.batch.number
        journal.close()
        assert self.survived >= self.flushed
        self.tree = copy.deepcopy(self.after[max(n for n in self.after if n <= self.survived)])

    async def compare(self) -> None:
        for file in self.tree.walk():
            node = self.vfs.getattr(file.ino)
            assert bool(stat.S_ISDIR(node.mode)) == (file.entries is not None)
            attributes = {name: self.vfs.getxattr(file.ino, name) for name in self.vfs.listxattr(file.ino)}
            assert attributes == file.xattrs
            if file.entries is None:
                assert node.size == len(file.data)
                assert await self.store.contents.read(node, 0, 1 << 30, deadline()) == file.data
            else:
                listed = {e.name: e.ino for e in self.store.entries(file.ino, 0)}
                assert listed == {name: child.ino for name, child in file.entries.items()}
        for _, file in self.held:
            assert await self.store.contents.read(self.vfs.getattr(file.ino), 0, 1 << 30, deadline()) == file.data


@settings(max_examples=EXAMPLES)
@given(steps=st.lists(step, max_size=60), seed=st.integers(0, 2**32), tight=st.booleans())
def test_a_store_is_the_tree_that_requests_made(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step], seed: int, tight: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icnfs.state.committer.IDLE_SECONDS", 0.005)
        for place, bound in TIGHT.items() if tight else ():
            patch.setattr(place, bound)
        root = tmp_path_factory.mktemp("model")
        Machine(root / "state", seed).run(steps)
        shutil.rmtree(root)
