"""What files hold: writing, truncating and folding chunks; reading them is in `layers`.

Nothing is read in order to write: a write onto contents that are not at hand is kept as patches.  What changes contents
is synchronous, so a request's changes are atomic; only reading, and folding what must be read first, waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from icnfs.errors import FormatError
from icnfs.format.records import ChunkRecord, Patch
from icnfs.limits import CHUNK_SIZE, PATCH_LIMIT
from icnfs.state.batch import Batch, Cut
from icnfs.state.hot import OP_COST, HotChunk, apply
from icnfs.state.inode import Inode
from icnfs.state.jobs import Done, SealJob
from icnfs.state.layers import ColdError, Layers

if TYPE_CHECKING:
    from icnfs.state.store import Store

log = logging.getLogger(__name__)

HOT_MAX: Final = 256
"""Unchanged hot chunks kept: at most 32 MiB, so that appending and rewriting find their chunk whole."""

PATCHED_STEP: Final = 64
"""Chunks with patches looked up at a time."""


class Contents(Layers):
    """The contents side of a `Store`."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._dirty: dict[HotChunk, None] = {}
        self._hot_bytes = 0
        self._queued_bytes = 0
        self._patch_bytes = 0
        self.to_fold: set[tuple[int, int]] = set()

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
        """Put `data` at `offset`; `node` is an edited inode, whose size and count follow.

        Raises `DamagedError`, nothing being changed, where the file's key cannot be had: nothing of it could be sealed.
        """
        if node.key_id:
            self._key(node.key_id)
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
        filled = hot.filled
        hot.write(start, piece)
        self._hot_bytes += size + hot.filled - filled
        buffer = hot.buffer
        if (
            buffer is not None
            and start + size == CHUNK_SIZE
            and len(buffer) == CHUNK_SIZE
            and hot.dirty_bytes + hot.patch_bytes >= CHUNK_SIZE // 2
        ):
            self._forget_hot(hot)
            self._seal(node, index, buffer)

    def _heat(self, node: Inode, index: int, fresh: bool) -> HotChunk:
        """A hot chunk for one that is not hot; a chunk that comes to be is counted."""
        ino = node.ino
        record = None if fresh else self._record(ino, index)
        beneath = self._at_hand(record)
        if beneath is None:
            assert record is not None
            hot = HotChunk(ino, index, None, self._patch_weight(ino, index, record.version))
        else:
            patches = [] if fresh else self._patches(ino, index, record)
            if record is None and not patches:
                node.count += 1
            whole = apply(beneath, [(p.kind, p.offset, p.data) for p in patches])
            weight = sum(len(p.data) + OP_COST for p in patches)
            hot = HotChunk(ino, index, bytearray(whole), weight)
        self._hot[ino, index] = hot
        return hot

    def _at_hand(self, record: ChunkRecord | None) -> bytes | bytearray | memoryview | None:
        """The plain chunk beneath, where having it costs nothing."""
        if record is None:
            return b""
        return self._inflight.get(record.version)

    def _forget_hot(self, hot: HotChunk) -> None:
        self._hot_bytes -= hot.weight
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

    # --- capturing --------------------------------------------------------------------------------------------------

    def capture(self, batch: Batch, *, urgent: bool) -> None:
        """Put what changed into `batch`, which is about to close.  Urgent: as patches where they are small.

        A chunk in memory is sealed anew only when its patches outweigh a whole one, or it is full: so one that grows by
        small appends is sealed once, and its patches never reach LMDB if that comes before the journal is taken over.
        """
        for hot in list(self._dirty):
            buffer = hot.buffer
            large = hot.dirty_bytes > PATCH_LIMIT or hot.dirty_bytes + hot.patch_bytes > hot.patch_limit
            whole = buffer and (large or (not urgent and len(buffer) <= PATCH_LIMIT))
            if not (whole and self._capture_whole(hot)):
                self._capture_patches(hot, batch)
        self._dirty.clear()
        self._cool()

    def _capture_whole(self, hot: HotChunk) -> bool:
        """Seal a chunk that is in memory whole; false where its file's key is damaged: patches need none."""
        assert hot.buffer is not None
        try:
            node = self._store.edit(hot.ino)
            self.file_key(node)
        except FormatError as error:
            log.warning("a change of inode %d stays a patch: %s", hot.ino, error)
            return False
        self._hot_bytes -= hot.weight
        hot.clean()
        hot.patch_bytes = 0
        self._seal(node, hot.index, bytes(hot.buffer))
        return True

    def _capture_patches(self, hot: HotChunk, batch: Batch) -> None:
        store = self._store
        place = (hot.ino, hot.index)
        self._hot_bytes -= hot.weight
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
        if hot.patch_bytes > hot.patch_limit:
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
            self._caching -= len(cached.sealed)
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
            before = hot.weight
            hot.cut(rest)
            self._hot_bytes += hot.weight - before
            if hot.changed:
                self._dirty[hot] = None
        node.count = count
        if keep * CHUNK_SIZE < old_size:
            self._cut(node.ino, keep, old_size)

    def drop(self, node: Inode) -> None:
        """The inode goes, and its contents with it."""
        if node.count:
            self._drop_hot(node.ino, 0, node.size)
            self._store.batch.cuts.append(Cut(node.ino, 0, self._store.new_version()))
        if node.key_id:
            self._keys.pop(node.key_id, None)
            self._store.batch.keys[node.key_id] = None
            self._store.overlay.keys[node.key_id] = None

    def _cut(self, ino: int, first: int, size: int) -> None:
        self._drop_hot(ino, first, size)
        cut = Cut(ino, first, self._store.new_version())
        self._tombs.setdefault(ino, []).append(cut)
        self._store.batch.cuts.append(cut)

    def _drop_hot(self, ino: int, first: int, size: int) -> None:
        """Hot chunks from `first` on go; all lie below `size`.  Thousands are hot while small files are written."""
        last = -(-size // CHUNK_SIZE)
        if last - first < len(self._hot):
            places = [(ino, index) for index in range(first, last) if (ino, index) in self._hot]
        else:
            places = [(i, index) for i, index in self._hot if i == ino and index >= first]
        for place in places:
            self._forget_hot(self._hot[place])

    def reaped(self, cut: Cut) -> None:
        """Nothing is left of what `cut` killed."""
        tombs = self._tombs.get(cut.ino)
        if tombs and cut in tombs:
            tombs.remove(cut)
            if not tombs:
                del self._tombs[cut.ino]

    def _count(self, ino: int, below: int) -> int:
        """Chunks of a sparse file with indexes below `below`, of which there may be a million: none is opened."""
        if ino in self._tombs:
            return sum(1 for index in self.indexes(ino) if index < below)
        reader, overlay = self._store.reader, self._store.overlay
        others = {index for places in (self._hot, overlay.chunks) for i, index in places if i == ino}
        others.update(index for (i, index), patches in overlay.patches.items() if i == ino and patches)
        others.update(reader.patched_in(ino))
        unsealed = sum(1 for index in others if index < below and not reader.has_record(ino, index))
        return reader.count_chunks(ino, below) + unsealed

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
            except ColdError as cold:
                await self._fetch(cold.record, deadline)
                continue
            if plain:
                node = self._store.edit(ino)
                self.file_key(node)  # before anything is forgotten: it may be damaged
                if hot is not None:
                    self._forget_hot(hot)
                self._seal(node, index, plain)
            return

    def patched(self) -> Iterator[tuple[int, int]]:
        """(inode, index) of the chunks that may have patches that count, see `is_patched`; some perhaps twice.

        To be consumed at leisure: chunks patched meanwhile may or may not be among them.
        """
        places = self._store.reader.patched((0, 0), PATCHED_STEP)
        while places:
            yield from places
            places = self._store.reader.patched(places[-1], PATCHED_STEP)
        yield from list(self._store.overlay.patches)

    def is_patched(self, ino: int, index: int) -> bool:
        """Whether the chunk has patches that count."""
        return bool(self._patches(ino, index, self._record(ino, index)))
