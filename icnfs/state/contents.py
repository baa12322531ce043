"""What files hold: writing, reading, truncating and folding chunks.

A chunk's contents are, from the bottom: its sealed chunk (in memory until committed, then in `data`, or at the
providers), its patches in order of versions, and the changes of its hot chunk.  Nothing is read in order to write: a
write onto contents that are not at hand is kept as patches.

All methods but `read`, `fold` and `fold_all` are synchronous, so a request's changes are atomic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

import trio

from icnfs.errors import DamagedError, FormatError, IcnfsError
from icnfs.format.records import U64, ChunkRecord, Location, Patch, Table
from icnfs.limits import CHUNK_SIZE, PATCH_LIMIT
from icnfs.state.batch import Batch, Cut
from icnfs.state.committer import CacheJob, Done, SealJob
from icnfs.state.hot import OP_COST, HotChunk, apply
from icnfs.state.inode import Inode

if TYPE_CHECKING:
    from icnfs.state.store import Store

log = logging.getLogger(__name__)

HOT_MAX: Final = 256
"""Unchanged hot chunks kept: at most 32 MiB, so that appending and rewriting find their chunk whole."""

WARM_MAX: Final = 128
"""Sealed chunks kept from the providers until `data` has them: at most 16 MiB."""

KEYS_MAX: Final = 8192
"""File keys kept unwrapped."""


class ColdSource(Protocol):
    """Where chunks come from that the local state does not hold."""

    async def fetch(self, version: int, location: Location, check: Callable[[bytes], bool], deadline: float) -> bytes:
        """The sealed chunk that passes `check`; `deadline` is a trio time.  Raises an `IcnfsError` past it."""
        ...


class _Cold(Exception):
    """A sealed chunk that must be fetched before the request can be answered."""

    def __init__(self, record: ChunkRecord) -> None:
        self.record = record


class Contents:
    """The contents side of a `Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hot: dict[tuple[int, int], HotChunk] = {}
        self._dirty: dict[HotChunk, None] = {}
        self._inflight: dict[int, bytes | memoryview | bytearray] = {}
        self._warm: dict[int, bytes] = {}
        self._fetching: dict[int, trio.Event] = {}
        self._tombs: dict[int, list[Cut]] = {}
        self._keys: dict[int, bytes] = {}
        self._hot_bytes = 0
        self._queued_bytes = 0
        self._patch_bytes = 0
        self.fetches = 0
        """Chunks asked of the source so far."""
        self.to_fold: set[tuple[int, int]] = set()
        for ino, first, bound in store.reader.tombstones():
            self._tombs.setdefault(ino, []).append(Cut(ino, first, bound))

    @property
    def accepted_bytes(self) -> int:
        """Bytes accepted and not yet in LMDB."""
        return self._hot_bytes + self._queued_bytes + self._patch_bytes

    @property
    def hot_bytes(self) -> int:
        """Of the accepted bytes, those no batch has captured."""
        return self._hot_bytes

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(self, node: Inode, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; `node` is an edited inode, whose size and count follow."""
        old_size, old_blocks = node.size, node.blocks
        size = len(data)
        index, start = divmod(offset, CHUNK_SIZE)
        if start + size <= CHUNK_SIZE:
            self._write_piece(node, index, start, data, old_size)
        else:
            view = memoryview(data)
            at = 0
            while at < size:
                piece = min(CHUNK_SIZE - start, size - at)
                self._write_piece(node, index, start, view[at : at + piece], old_size)
                at += piece
                index += 1
                start = 0
        if offset + size > old_size:
            node.size = offset + size
        self._store.bytes_used += (node.blocks - old_blocks) << 9

    def _write_piece(self, node: Inode, index: int, start: int, piece: bytes | memoryview, old_size: int) -> None:
        hot = self._hot.get((node.ino, index))
        if hot is None:
            fresh = index * CHUNK_SIZE >= old_size
            if len(piece) == CHUNK_SIZE:
                if fresh or not self._exists(node.ino, index):
                    node.count += 1
                self._seal(node, index, piece)
                return
            hot = self._heat(node, index, fresh)
        size = len(piece)
        if not hot.changed:
            self._dirty[hot] = None
        hot.write(start, piece)
        self._hot_bytes += size
        buffer = hot.buffer
        if (
            buffer is not None
            and start + size == CHUNK_SIZE
            and len(buffer) == CHUNK_SIZE
            and hot.dirty_bytes >= CHUNK_SIZE // 2
        ):
            self._forget_hot(hot)
            self._seal(node, index, buffer)

    def _heat(self, node: Inode, index: int, fresh: bool) -> HotChunk:
        """A hot chunk for one that is not hot; a chunk that comes to be is counted."""
        ino = node.ino
        record = None if fresh else self._record(ino, index)
        patches = [] if fresh else self._patches(ino, index, record)
        if record is None and not patches:
            node.count += 1
            hot = HotChunk(ino, index, bytearray())
        else:
            weight = sum(len(p.data) + OP_COST for p in patches)
            beneath = self._at_hand(record)
            if beneath is None:
                hot = HotChunk(ino, index, None, weight)
            else:
                whole = apply(beneath, [(p.kind, p.offset, p.data) for p in patches])
                hot = HotChunk(ino, index, bytearray(whole), weight)
        self._hot[ino, index] = hot
        return hot

    def _at_hand(self, record: ChunkRecord | None) -> bytes | bytearray | memoryview | None:
        """The plain chunk beneath, where having it costs nothing."""
        if record is None:
            return b""
        return self._inflight.get(record.version)

    def _forget_hot(self, hot: HotChunk) -> None:
        self._hot_bytes -= hot.dirty_bytes
        self._dirty.pop(hot, None)
        self._hot.pop((hot.ino, hot.index), None)

    def _seal(self, node: Inode, index: int, plain: bytes | memoryview | bytearray) -> None:
        """Make `plain` the whole of a chunk: name a new version and hand it to the committer."""
        store = self._store
        file_key = self.file_key(node)
        record = ChunkRecord(store.new_version(), node.key_id)
        place = (node.ino, index)
        batch = store.batch
        old = batch.chunks.get(place)
        if old is not None:
            batch.dead.append(old)
        batch.chunks[place] = record
        store.overlay.chunks[place] = record
        self._inflight[record.version] = plain
        self._queued_bytes += len(plain)
        store.touch()
        store.committer.submit(SealJob(record, file_key, plain))

    def file_key(self, node: Inode) -> bytes:
        """The file key of an edited inode, made at its first contents."""
        store = self._store
        if not node.key_id:
            node.key_id = store.new_version()
            file_key = store.random_key()
            store.batch.keys[node.key_id] = file_key
            store.overlay.keys[node.key_id] = file_key
            self._remember_key(node.key_id, file_key)
            return file_key
        return self._key(node.key_id)

    def _key(self, key_id: int) -> bytes:
        file_key = self._keys.get(key_id) or self._store.overlay.keys.get(key_id)
        if file_key is None:
            found = self._store.reader.file_key(key_id)
            if found is None:
                raise DamagedError(f"file key {key_id} is missing from the local state; `icnfs recover` rebuilds it")
            file_key = found[0]
            self._remember_key(key_id, file_key)
        return file_key

    def _remember_key(self, key_id: int, file_key: bytes) -> None:
        if len(self._keys) >= KEYS_MAX:
            self._keys.clear()
        self._keys[key_id] = file_key

    # --- capturing --------------------------------------------------------------------------------------------------

    def capture(self, batch: Batch, *, urgent: bool) -> None:
        """Put what changed into `batch`, which is about to close.  Urgent: as patches where they are small."""
        for hot in list(self._dirty):
            buffer = hot.buffer
            weight = hot.dirty_bytes + hot.patch_bytes
            if buffer and (weight > PATCH_LIMIT or (not urgent and len(buffer) <= PATCH_LIMIT)):
                self._hot_bytes -= hot.dirty_bytes
                hot.clean()
                hot.patch_bytes = 0
                self._seal(self._store.edit(hot.ino), hot.index, bytes(buffer))
            else:
                self._capture_patches(hot, batch)
        self._dirty.clear()
        self._cool()

    def _capture_patches(self, hot: HotChunk, batch: Batch) -> None:
        store = self._store
        place = (hot.ino, hot.index)
        self._hot_bytes -= hot.dirty_bytes
        overlay = store.overlay.patches.setdefault(place, [])
        for kind, offset, data in hot.take_ops():
            patch = Patch(store.new_version(), kind, offset, data)
            batch.patches.append((hot.ino, hot.index, patch))
            overlay.append(patch)
            hot.patch_bytes += len(data) + OP_COST
            batch.patch_bytes += len(data) + OP_COST
            self._patch_bytes += len(data) + OP_COST
        if hot.buffer is None:
            del self._hot[place]
        if hot.patch_bytes > PATCH_LIMIT:
            self.to_fold.add(place)
            store.want_upkeep()

    def _cool(self) -> None:
        """Drop the oldest unchanged hot chunks above the limit."""
        excess = len(self._hot) - HOT_MAX
        if excess > 0:
            for place in [p for p, hot in self._hot.items() if not hot.changed][:excess]:
                del self._hot[place]

    def committed(self, done: Done) -> None:
        """Called in the request loop after a commit, the snapshots renewed."""
        for job in done.sealed:
            self._inflight.pop(job.record.version, None)
            self._queued_bytes -= len(job.plain)
        for cached in done.cached:
            self._warm.pop(cached.version, None)
        for batch in done.batches:
            self._patch_bytes -= batch.patch_bytes
            for cut in batch.cuts:
                if cut not in batch.lingering:
                    self.reaped(cut)

    # --- truncating -------------------------------------------------------------------------------------------------

    def truncate(self, node: Inode, size: int) -> None:
        """Set the size of an edited inode; what is cut off reads as zeros should the file grow again."""
        old_size, old_blocks = node.size, node.blocks
        if size < old_size and node.count:
            self._shrink(node, old_size, size)
        node.size = size
        self._store.bytes_used += (node.blocks - old_blocks) << 9

    def _shrink(self, node: Inode, old_size: int, size: int) -> None:
        first, rest = divmod(size, CHUNK_SIZE)
        keep = first + (1 if rest else 0)
        count = node.count
        if keep * CHUNK_SIZE < old_size:
            dense = count == -(-old_size // CHUNK_SIZE)
            count = keep if dense else (self._count(node.ino, keep) if keep else 0)
        place = (node.ino, first)
        if rest and (place in self._hot or self._exists(*place)):
            hot = self._hot.get(place) or self._heat(node, first, False)
            before = hot.dirty_bytes
            hot.cut(rest)
            self._hot_bytes += hot.dirty_bytes - before
            if hot.changed:
                self._dirty[hot] = None
        node.count = count
        if keep * CHUNK_SIZE < old_size:
            self._cut(node.ino, keep)

    def drop(self, node: Inode) -> None:
        """The inode goes, and its contents with it."""
        if node.count:
            self._drop_hot(node.ino, 0)
            self._store.batch.cuts.append(Cut(node.ino, 0, self._store.new_version()))
        if node.key_id:
            self._keys.pop(node.key_id, None)
            self._store.batch.keys[node.key_id] = None
            self._store.overlay.keys[node.key_id] = None

    def _cut(self, ino: int, first: int) -> None:
        self._drop_hot(ino, first)
        cut = Cut(ino, first, self._store.new_version())
        self._tombs.setdefault(ino, []).append(cut)
        self._store.batch.cuts.append(cut)

    def _drop_hot(self, ino: int, first: int) -> None:
        for hot in [h for (i, index), h in self._hot.items() if i == ino and index >= first]:
            self._forget_hot(hot)

    def reaped(self, cut: Cut) -> None:
        """Nothing is left of what `cut` killed."""
        tombs = self._tombs.get(cut.ino)
        if tombs and cut in tombs:
            tombs.remove(cut)
            if not tombs:
                del self._tombs[cut.ino]

    def _count(self, ino: int, below: int) -> int:
        """Chunks of a sparse file with indexes below `below`, which come from an index scan."""
        return sum(1 for index in self.indexes(ino) if index < below)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def read(self, node: Inode, offset: int, size: int, deadline: float) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end only.  `deadline` bounds fetching from the providers."""
        size = min(size, node.size - offset)
        if size <= 0:
            return b""
        index, start = divmod(offset, CHUNK_SIZE)
        if start + size <= CHUNK_SIZE:
            try:
                return self._piece(node.ino, index, start, start + size)
            except _Cold as cold:
                await self._fetch(cold.record, deadline)
                return await self.read(node, offset, size, deadline)
        return await self._read_many(node, offset, size, deadline)

    async def _read_many(self, node: Inode, offset: int, size: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        cold: list[ChunkRecord] = []
        for index, start, end in _pieces(offset, size):
            try:
                parts.append(self._piece(node.ino, index, start, end))
            except _Cold as missing:
                cold.append(missing.record)
        if not cold:
            return b"".join(parts)
        async with trio.open_nursery() as nursery:
            for record in cold:
                nursery.start_soon(self._fetch, record, deadline)
        return await self._read_many(node, offset, size, deadline)

    async def warm_up(self, ino: int, first: int, last: int, deadline: float) -> None:
        """Fetch the cold chunks from `first` to `last`, best effort: read-ahead."""
        if not self._store.has_inode(ino):
            return
        node = self._store.inode(ino)
        async with trio.open_nursery() as nursery:
            for index in range(first, min(last, (node.size - 1) // CHUNK_SIZE) + 1):
                record = self._record(ino, index)
                if record is not None and not self._is_local(record.version):
                    nursery.start_soon(self._try_fetch, record, deadline)

    def _is_local(self, version: int) -> bool:
        return version in self._inflight or version in self._warm or self._store.reader.has_chunk(version)

    async def _try_fetch(self, record: ChunkRecord, deadline: float) -> None:
        try:
            await self._fetch(record, deadline)
        except IcnfsError as error:
            log.debug("read-ahead of version %d failed: %s", record.version, error)

    def _piece(self, ino: int, index: int, start: int, end: int) -> bytes:
        """Exactly end - start bytes of one chunk; `_Cold` when its sealed chunk is not local."""
        hot = self._hot.get((ino, index))
        if hot is not None and hot.buffer is not None:
            return bytes(hot.buffer[start:end]).ljust(end - start, b"\0")
        record = self._record(ino, index)
        patches = self._patches(ino, index, record)
        if hot is None and not patches:
            if record is None:
                return bytes(end - start)
            return self._plain(record, start, end).ljust(end - start, b"\0")
        return self._current(record, patches, hot)[start:end].ljust(end - start, b"\0")

    def _current(self, record: ChunkRecord | None, patches: list[Patch], hot: HotChunk | None) -> bytes:
        """The whole chunk as it stands, trailing zeros perhaps left off."""
        ops = [(p.kind, p.offset, p.data) for p in patches]
        if hot is not None:
            ops += hot.ops
        return apply(b"" if record is None else self._plain(record, 0, CHUNK_SIZE), ops)

    def _plain(self, record: ChunkRecord, start: int, end: int) -> bytes:
        version = record.version
        plain = self._inflight.get(version)
        if plain is not None:
            return bytes(plain[start:end])
        sealed = self._store.reader.sealed_chunk(version)
        if sealed is not None:
            try:
                return self._open(record, sealed, start, end)
            except FormatError:
                log.warning("the local copy of version %d is damaged; asking the providers", version)
        warm = self._warm.get(version)
        if warm is None:
            raise _Cold(record)
        return self._open(record, warm, start, end)

    def _open(self, record: ChunkRecord, sealed: bytes | memoryview, start: int, end: int) -> bytes:
        """Plain bytes of a sealed chunk, as far as it reaches."""
        chunks = self._store.chunks
        end = min(end, chunks.plain_size(len(sealed)))
        if start >= end:
            return b""
        file_key = self._key(record.key_id)
        return chunks.open_range(
            file_key, record.key_id, record.salt_id, record.version, record.tag, sealed, start, end
        )

    async def _fetch(self, record: ChunkRecord, deadline: float) -> None:
        """Bring a sealed chunk into `_warm`; those who want the same one share a fetch."""
        version = record.version
        waiting = self._fetching.get(version)
        if waiting is not None:
            with trio.CancelScope(deadline=deadline):
                await waiting.wait()
            if version in self._warm or self._store.reader.has_chunk(version):
                return
        location = self._store.reader.location(version)
        if location is None:
            raise DamagedError(f"version {version} of a chunk is damaged here and not at the providers yet")
        self.fetches += 1
        event = self._fetching[version] = trio.Event()
        try:
            sealed = await self._store.source.fetch(version, location, self._checker(record), deadline)
        finally:
            self._fetching.pop(version, None)
            event.set()
        while len(self._warm) >= WARM_MAX:
            self._warm.pop(next(iter(self._warm)))
        self._warm[version] = sealed
        if self._store.failure is None:
            self._store.committer.submit(CacheJob(version, sealed))

    def _checker(self, record: ChunkRecord) -> Callable[[bytes], bool]:
        file_key = self._key(record.key_id)

        def check(sealed: bytes) -> bool:
            try:
                self._store.chunks.open(file_key, record.key_id, record.salt_id, record.version, record.tag, sealed)
            except FormatError:
                return False
            return True

        return check

    # --- looking up -------------------------------------------------------------------------------------------------

    def _alive(self, ino: int, index: int, version: int) -> bool:
        tombs = self._tombs.get(ino)
        return not tombs or not any(index >= cut.first and version <= cut.bound for cut in tombs)

    def _record(self, ino: int, index: int) -> ChunkRecord | None:
        record = self._store.overlay.chunks.get((ino, index)) or self._store.reader.chunk(ino, index)
        return record if record is not None and self._alive(ino, index, record.version) else None

    def _patches(self, ino: int, index: int, record: ChunkRecord | None) -> list[Patch]:
        patches = self._store.reader.patches(ino, index)
        patches += self._store.overlay.patches.get((ino, index), ())
        if not patches:
            return patches
        above = 0 if record is None else record.version
        return [p for p in patches if p.version > above and self._alive(ino, index, p.version)]

    def _exists(self, ino: int, index: int) -> bool:
        record = self._record(ino, index)
        return record is not None or bool(self._patches(ino, index, None))

    def indexes(self, ino: int) -> Iterator[int]:
        """Indexes of the chunks that a file has, in no order, each once."""
        found: set[int] = {index for i, index in self._hot if i == ino}
        for (i, index), record in self._store.overlay.chunks.items():
            if i == ino and self._alive(ino, index, record.version):
                found.add(index)
        for index, record in self._store.reader.chunks(ino):
            if self._alive(ino, index, record.version):
                found.add(index)
        for (i, index), patches in self._store.overlay.patches.items():
            if i == ino and any(self._alive(ino, index, p.version) for p in patches):
                found.add(index)
        for key, _ in self._store.reader.rows(Table.PATCHES, prefix=U64.pack(ino)):
            if self._alive(ino, U64.unpack_from(key, 8)[0], U64.unpack_from(key, 16)[0]):
                found.add(U64.unpack_from(key, 8)[0])
        return iter(found)

    def records(self, ino: int) -> Iterator[tuple[int, ChunkRecord | None, int]]:
        """(index, record or None, bytes of patches) of each of a file's chunks, in order: for `icnfs info`."""
        for index in sorted(self.indexes(ino)):
            record = self._record(ino, index)
            yield index, record, sum(len(p.data) for p in self._patches(ino, index, record))

    # --- folding ----------------------------------------------------------------------------------------------------

    async def fold(self, ino: int, index: int, deadline: float) -> None:
        """Seal a patched chunk anew as a whole; raises an `IcnfsError` when what lies beneath cannot be had."""
        while True:
            hot = self._hot.get((ino, index))
            if not self._exists(ino, index) or not self._store.has_inode(ino):
                return
            record = self._record(ino, index)
            try:
                if hot is not None and hot.buffer is not None:
                    plain = bytes(hot.buffer)
                else:
                    plain = self._current(record, self._patches(ino, index, record), hot)
            except _Cold as cold:
                await self._fetch(cold.record, deadline)
                continue
            if plain:
                if hot is not None:
                    self._forget_hot(hot)
                self._seal(self._store.edit(ino), index, plain)
            return

    def patched(self) -> list[tuple[int, int]]:
        """(inode, index) of the chunks with patches that count."""
        places = dict.fromkeys(self._store.reader.patched())
        places.update(dict.fromkeys(p for p, patches in self._store.overlay.patches.items() if patches))
        return [p for p in places if self._patches(*p, self._record(*p))]


def _pieces(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(index, start, end) of the chunks that a range of a file covers."""
    end = offset + size
    while offset < end:
        index, start = divmod(offset, CHUNK_SIZE)
        stop = min(CHUNK_SIZE, start + end - offset)
        yield index, start, stop
        offset += stop - start
