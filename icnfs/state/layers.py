"""The layers of a chunk's contents, and reading through them.

From the bottom: the sealed chunk (in memory until committed, then in `data`, or at the providers), its patches in order
of versions, and the changes of its hot chunk.  Tombstones hide what they killed in every layer.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from icnfs.errors import DamagedError, FormatError
from icnfs.format.records import U64, ChunkRecord, Location, Patch, Table
from icnfs.limits import ACCEPTED_MAX, CHUNK_SIZE
from icnfs.state.batch import Cut
from icnfs.state.hot import OP_COST, HotChunk, apply
from icnfs.state.inode import Inode
from icnfs.state.jobs import CacheJob

if TYPE_CHECKING:
    from icnfs.state.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

WARM_MAX: Final = 128
"""Sealed chunks kept from the providers until `data` has them: at most 16 MiB."""

CACHING_MAX: Final = ACCEPTED_MAX
"""Bytes of them that wait to be put into `data`: what comes faster than the disk takes it is not kept, for an fsync
waits behind it, and it can be fetched again."""

OPENED_MAX: Final = 64
"""Plain chunks kept from the check of what providers gave, for the read that follows: at most 8 MiB."""

KEYS_MAX: Final = 8192
"""File keys kept unwrapped."""

COMMITTED_MAX: Final = 1024
"""Chunks of which is remembered what the snapshot holds, some 400 bytes each."""


class ColdSource(Protocol):
    """Where chunks come from that the local state does not hold."""

    async def fetch(self, version: int, location: Location, check: Callable[[bytes], bool], deadline: float) -> bytes:
        """The sealed chunk that passes `check`; `deadline` is a trio time.  Raises an `IcnfsError` past it."""
        ...

    def room(self, reader: int) -> int:
        """Bytes that may be fetched ahead for a reader, whichever number it has, now."""
        ...

    def expect(self, reader: int, locations: Sequence[Location], deadline: float) -> Callable[[], Awaitable[None]]:
        """`fetch` will be asked for these next, in this order.  What is returned fetches them, best effort; raises
        no `IcnfsError`, and is to be run once."""
        ...

    def forget(self, reader: int) -> None:
        """What was fetched ahead for a reader is wanted no more."""
        ...


class ColdError(Exception):
    """A sealed chunk that must be fetched before the request can be answered."""

    def __init__(self, record: ChunkRecord) -> None:
        self.record = record


class Layers:
    """The reading side of `Contents`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hot: dict[tuple[int, int], HotChunk] = {}
        self._inflight: dict[int, bytes | memoryview | bytearray] = {}
        self._warm: dict[int, bytes] = {}
        self._caching = 0
        self._opened: dict[int, bytes] = {}
        self._fetching: dict[int, trio.Event] = {}
        self._tombs: dict[int, list[Cut]] = {}
        self._keys: dict[int, bytes] = {}
        self._committed: dict[tuple[int, int], ChunkRecord | None] = {}
        self._unpatched: set[tuple[int, int]] = set()
        self._snapshot: object = None
        for ino, first, bound in store.reader.tombstones():
            self._tombs.setdefault(ino, []).append(Cut(ino, first, bound))

    # --- reading ----------------------------------------------------------------------------------------------------

    def at_hand(self, node: Inode, offset: int, size: int) -> bytes | None:
        """What `read` would give, where that lies in one chunk and need not be fetched; else None."""
        if offset + size > node.size:
            size = node.size - offset
            if size <= 0:
                return b""
        index, start = divmod(offset, CHUNK_SIZE)
        end = start + size
        if end > CHUNK_SIZE:
            return None
        try:
            return self._piece(node.ino, index, start, end)
        except ColdError:
            return None

    async def read(
        self, node: Inode, offset: int, size: int, deadline: float, missed: Callable[[], None] | None = None
    ) -> bytes:
        """Up to `size` bytes from `offset`, fewer at the end only.  `deadline` bounds fetching from the providers.

        `missed` is called whenever something of it must be fetched, before it is.
        """
        size = min(size, node.size - offset)
        if size <= 0:
            return b""
        while True:
            parts: list[bytes] = []
            cold: list[ChunkRecord] = []
            for index, start, end in pieces(offset, size):
                try:
                    parts.append(self._piece(node.ino, index, start, end))
                except ColdError as missing:
                    cold.append(missing.record)
            if not cold:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            if missed is not None:
                missed()
            if len(cold) == 1:
                await self._fetch(cold[0], deadline)
                continue
            async with trio.open_nursery() as nursery:
                for record in cold:
                    nursery.start_soon(self._fetch, record, deadline)

    def cold(self, ino: int, first: int, last: int) -> list[Location]:
        """Where the providers have those of the chunks from `first` to `last` that are not local, in order."""
        found: list[Location] = []
        for index in range(first, last + 1):
            record = self._record(ino, index)
            if record is not None and not self._is_local(record.version):
                location = self._store.reader.location(record.version)
                if location is not None:
                    found.append(location)
        return found

    def _is_local(self, version: int) -> bool:
        return version in self._inflight or version in self._warm or self._store.reader.has_chunk(version)

    def _piece(self, ino: int, index: int, start: int, end: int) -> bytes:
        """Exactly end - start bytes of one chunk; `ColdError` when its sealed chunk is not local."""
        hot = self._hot.get((ino, index))
        if hot is not None and hot.buffer is not None:
            return bytes(hot.buffer[start:end]).ljust(end - start, b"\0")
        record = self._record(ino, index)
        patches = self._patches(ino, index, record)
        if hot is None and not patches:
            if record is None:
                return bytes(end - start)
            plain = self._plain(record, start, end)
            return plain if len(plain) == end - start else plain.ljust(end - start, b"\0")
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
        opened = self._opened.get(version)
        if opened is not None:
            return opened[start:end]
        sealed = self._store.reader.sealed_chunk(version)
        if sealed is not None:
            if end - start == CHUNK_SIZE and isinstance(sealed, memoryview):
                self._store.foresight.passed(sealed)
            try:
                return self._open(record, sealed, start, end)
            except FormatError:
                log.warning("the local copy of version %d is damaged; asking the providers", version)
        warm = self._warm.get(version)
        if warm is None:
            raise ColdError(record)
        return self._open(record, warm, start, end)

    def _open(self, record: ChunkRecord, sealed: bytes | memoryview, start: int, end: int) -> bytes:
        """Plain bytes of a sealed chunk, as far as it reaches."""
        key_id = record.key_id
        return self._store.chunks.open_part(
            self._key(key_id), key_id, record.salt_id, record.version, record.tag, sealed, start, end
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
        event = self._fetching[version] = trio.Event()
        try:
            sealed = await self._store.source.fetch(version, location, self._checker(record), deadline)
        finally:
            self._fetching.pop(version, None)
            event.set()
        while len(self._warm) >= WARM_MAX:
            self._warm.pop(next(iter(self._warm)))
        self._warm[version] = sealed
        if self._store.failure is None and self._store.keeps_cold and self._caching + len(sealed) <= CACHING_MAX:
            self._caching += len(sealed)
            self._store.committer.submit(CacheJob(version, sealed))

    def _checker(self, record: ChunkRecord) -> Callable[[bytes], bool]:
        file_key = self._key(record.key_id)

        def check(sealed: bytes) -> bool:
            try:
                plain = self._store.chunks.open(
                    file_key, record.key_id, record.salt_id, record.version, record.tag, sealed
                )
            except FormatError:
                return False
            while len(self._opened) >= OPENED_MAX:
                self._opened.pop(next(iter(self._opened)))
            self._opened[record.version] = plain
            return True

        return check

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

    # --- looking up -------------------------------------------------------------------------------------------------

    def _alive(self, ino: int, index: int, version: int) -> bool:
        tombs = self._tombs.get(ino)
        return not tombs or not any(index >= cut.first and version <= cut.bound for cut in tombs)

    def _record(self, ino: int, index: int) -> ChunkRecord | None:
        record = self._store.overlay.chunks.get((ino, index)) or self._sealed_beneath(ino, index)
        return record if record is not None and self._alive(ino, index, record.version) else None

    def _patches(self, ino: int, index: int, record: ChunkRecord | None) -> list[Patch]:
        patches = self._beneath(ino, index, self._store.reader.patches)
        above = self._store.overlay.patches.get((ino, index))
        if above:
            patches = patches + above
        if not patches:
            return []
        sealed = 0 if record is None else record.version
        return [p for p in patches if p.version > sealed and self._alive(ino, index, p.version)]

    def _patch_weight(self, ino: int, index: int, sealed: int) -> int:
        """Bytes that the patches upon version `sealed` of a chunk take.

        Those in the snapshot are not opened: their damage shows to whoever reads.
        """
        sizes = self._beneath(ino, index, self._store.reader.patch_sizes)
        sizes += [(p.version, len(p.data)) for p in self._store.overlay.patches.get((ino, index), ())]
        return sum(size + OP_COST for version, size in sizes if version > sealed and self._alive(ino, index, version))

    def _sealed_beneath(self, ino: int, index: int) -> ChunkRecord | None:
        """The sealed chunk that the snapshot holds; remembered while that lasts."""
        known = self._known()
        place = ino, index
        if place not in known:
            known[place] = self._store.reader.chunk(ino, index)
        return known[place]

    def _beneath(self, ino: int, index: int, read: Callable[[int, int], list[T]]) -> list[T]:
        """What `read` tells of the patches in the snapshot; that there are none is remembered."""
        self._known()
        if (ino, index) in self._unpatched:
            return []
        found = read(ino, index)
        if not found:
            self._unpatched.add((ino, index))
        return found

    def _known(self) -> dict[tuple[int, int], ChunkRecord | None]:
        """What is remembered of the snapshot, of few chunks."""
        known = self._committed
        if self._store.reader.meta is not self._snapshot or max(len(known), len(self._unpatched)) >= COMMITTED_MAX:
            known.clear()
            self._unpatched.clear()
            self._snapshot = self._store.reader.meta
        return known

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
        """(index, record or None, bytes of patches) of each of a file's chunks, in order."""
        for index in sorted(self.indexes(ino)):
            record = self._record(ino, index)
            yield index, record, sum(len(p.data) for p in self._patches(ino, index, record))


def pieces(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(index, start, end) of the chunks that a range of a file covers."""
    end = offset + size
    while offset < end:
        index, start = divmod(offset, CHUNK_SIZE)
        stop = min(CHUNK_SIZE, start + end - offset)
        yield index, start, stop
        offset += stop - start
