"""Gathering the facts of `status` and `info` from an open volume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from icnfs.errors import LocalDiskError
from icnfs.format.segment import SegmentInfo
from icnfs.state.cut import snapshots
from icnfs.state.reader import Reader
from icnfs.transfer.messages import ProviderState
from icnfs.volume.collect import walk
from icnfs.volume.health import ProviderHealth
from icnfs.volume.network import Network
from icnfs.volume.status import (
    ChunkPlace,
    ProviderStatus,
    SharePlace,
    Status,
    Usage,
    share_pools,
    survives,
    usable_bytes,
)
from icnfs.volume.trust import Record

if TYPE_CHECKING:
    from icnfs.format.records import ChunkRecord
    from icnfs.state.store import Store
    from icnfs.volume.volume import Volume

SEGMENTS_KEPT: Final = 8192
"""Segments that a look at one file keeps at hand, about 1 KB each: with 16 MiB segments, those of a 128 GiB file."""


_NO_ROOM: Final = (
    "no room for more data on the local disk: writers wait until enough is published; free some space there, or raise "
    "`cache.dirty` or lower `cache.reserve`"
)


def status_of(volume: Volume, now_ns: int) -> Status:
    """Everything that `icnfs status` shows; `now_ns` is Unix time."""
    store, publisher, fence = volume.store, volume.publisher, volume.fence
    risk = volume.repair.at_risk(volume.network.lost() | volume.network.suspended())
    lacking = volume.repair.lacking_at()
    held = volume.holdings()
    published = publisher.time_ns
    current = fence.claim.current if fence.claim is not None else None
    failure, tally = store.failure or publisher.failure, volume.collector.tally
    why = str(failure) if failure is not None else _NO_ROOM if store.full else ""
    return Status(
        name=volume.config.name,
        volume=store.volume.hex(),
        code=f"{volume.network.k}-of-{volume.network.n}",
        safe=volume.network.safe,
        epoch=max(fence.number[0], current.epoch if current is not None else 0),
        sequence=fence.number[1],
        read_only=store.read_only,
        fenced=str(store.fenced) if store.fenced is not None else "",
        degraded=risk.segments > 0 or failure is not None or bool(volume.unopenable),
        failure=why,
        files=store.files,
        bytes_used=store.bytes_used,
        dirty_bytes=store.dirty_bytes,
        pending=not publisher.is_idle,
        committed_batch=store.committed,
        published_batch=publisher.batch,
        published_ns=published,
        published_age_s=max(now_ns - published, 0) / 1e9 if published else None,
        unsafe_segments=risk.segments,
        missing_shares=sum(lacking.values()),
        lost_shares=risk.shares,
        transfer_restarts=getattr(volume.network.transfer, "restarts", 0),
        providers=tuple(
            _provider(volume, name, lacking.get(name, 0), held[name].segments if name in held else 0)
            for name in volume.network.providers
        ),
        moving=volume.repair.moving,
        health=volume.health().counts(),
        held_bytes=tally.held if tally is not None else None,
        live_bytes=tally.live if tally is not None else None,
        keys=volume.unopenable,
    )


def _provider(volume: Volume, name: str, missing: int, shares: int) -> ProviderStatus:
    facts = volume.network.facts[name]
    state = volume.network.transfer.states().get(name, ProviderState(name))
    foreign = volume.network.foreign.get(name)
    doubt = volume.heads.doubted.get(name, "")
    suspended = ""
    if name in volume.network.suspended():
        reason = volume.audit.trust.records[name].reason
        suspended = f"suspended, for {reason}; drain it, or wait until it is vetted anew"
    kept = volume.collector.refusals.get(name, "")
    return ProviderStatus(
        name=name,
        owner=facts.owner,
        country=facts.country,
        state=_state_word(volume.network, state),
        error=foreign or state.error or doubt or suspended or (f"refuses to delete: {kept}" if kept else ""),
        free_bytes=state.free_bytes,
        latency_s=state.latency_s,
        bytes_up=state.bytes_up,
        bytes_down=state.bytes_down,
        bad_shares=state.bad_shares,
        missing=missing,
        rate_up=state.rate_up,
        rate_down=state.rate_down,
        shares=shares,
        draining=facts.drain,
    )


def _state_word(network: Network, state: ProviderState) -> str:
    """As in icnfs-status(1)."""
    if state.name in network.foreign:
        return "foreign"
    if state.name in network.free:
        return "empty"
    return "refusing" if state.state == "up" and state.writes != "ok" else state.state


def provider_healths(volume: Volume) -> list[ProviderHealth]:
    """What `icnfs health` shows of each provider."""
    lacking, held = volume.repair.lacking_at(), volume.holdings()
    healths = []
    for name in volume.network.providers:
        status = _provider(volume, name, lacking.get(name, 0), held[name].segments if name in held else 0)
        one = volume.audit.trust.records.get(name) or Record(0.0, 0.0)
        health = ProviderHealth(
            name,
            status.owner,
            status.state,
            status.shares,
            status.missing,
            one.standing,
            round(one.since * 1e9),
            one.reason,
            one.right,
            one.there,
            dict(one.outcomes),
        )
        healths.append(health)
    return healths


def usage_of(volume: Volume) -> Usage:
    """Free and total bytes of contents at the providers; what is not published yet is taken off.

    A provider that has not told yet, or is away, is taken to have as little room as the fullest of the others: nothing
    is refused for want of its answer.  Until any has told, it is the room that this machine has to keep writes in.
    """
    told = share_pools(volume.network.transfer.states().values())
    silent = max(volume.network.n - len(told), 0)
    if told:
        room = usable_bytes([*told, *[min(told)] * silent], volume.network.k, volume.network.n)
        room -= volume.store.dirty_bytes
    else:
        room = volume.store.env.free_bytes()
    free = max(room, 0)
    return Usage(free, free + volume.store.bytes_used)


async def look_at_file(volume: Volume, ino: int, see: Callable[[ChunkPlace], None]) -> int:
    """Show `see` each chunk of a file, in the order of their indexes; the file's size in bytes.

    It is one state of the file, held still: everything that was accepted before the call, or, while the disk takes
    nothing, what was committed last.  `see` is called in a thread, one call at a time, and never after the return; the
    event loop goes on meanwhile.  Raises `FsError` where there is no such inode, `FormatError` where a record of it is
    damaged.
    """
    store = volume.store
    node = store.inode(ino)
    with suppress(LocalDiskError):
        await store.flush()
    with _held(store) as reader:
        node = reader.inode(ino) or node
        places = _Places(reader, {name: facts.owner for name, facts in volume.network.facts.items()})
        await walk(_shown(reader, ino, places, see))
    return node.size


@contextmanager
def _held(store: Store) -> Iterator[Reader]:
    """Reads of what is committed, which stays as it is; to be used from one thread at a time.

    Not a cut: none of the dirty generations ends for it.
    """
    meta, data = snapshots(store)
    reader = Reader(store.env, store.records, meta, data)
    try:
        yield reader
    finally:
        meta.abort()
        data.abort()
        del meta, data, reader.meta, reader.data  # as long as something refers to one, its slot is taken


def _shown(reader: Reader, ino: int, places: _Places, see: Callable[[ChunkPlace], None]) -> Iterator[None]:
    """A step for each chunk."""
    for index, record in _rows(reader, ino):
        see(places.of(index, record))
        yield


def _rows(reader: Reader, ino: int) -> Iterator[tuple[int, ChunkRecord | None]]:
    """(index, record) of a file's chunks, in order, each once; None where there are only patches yet."""
    cuts = [(first, bound) for other, first, bound in reader.tombstones() if other == ino]

    def lives(index: int, version: int) -> bool:
        return not any(index >= first and version <= bound for first, bound in cuts)

    sealed: Iterator[tuple[int, ChunkRecord | None]]
    sealed = ((index, record) for index, record in reader.chunks(ino) if lives(index, record.version))
    patched = ((index, None) for index, version in reader.patch_versions(ino) if lives(index, version))
    last = -1
    for index, record in merge(sealed, patched, key=itemgetter(0)):  # of equals, the sealed one comes first
        if index != last:
            yield index, record
        last = index


class _Places:
    """Where chunks lie, by one state of the tables.

    A segment's record is opened once, however many of the chunks lie in it, and all of them share its `SharePlace`s.
    """

    def __init__(self, reader: Reader, owners: dict[str, str]) -> None:
        self._reader = reader
        self._owners = owners
        self._segments: dict[bytes, _Segment | None] = {}

    def of(self, index: int, record: ChunkRecord | None) -> ChunkPlace:
        """The place of the chunk at `index`."""
        if record is None:
            return ChunkPlace(index, None, 0, True, "", None, (), -1)
        version, length = record.version, record.length
        location = self._reader.location(version)
        segment = self._segment(location.segment) if location is not None else None
        local = location is None or self._reader.has_chunk(version)
        if location is None or segment is None:
            return ChunkPlace(index, version, length, local, "", None, (), -1)
        return ChunkPlace(index, version, length, local, segment.id, location.share, segment.shares, segment.survives)

    def _segment(self, id: bytes) -> _Segment | None:
        if id in self._segments:
            return self._segments[id]
        if len(self._segments) >= SEGMENTS_KEPT:
            self._segments.clear()
        info = self._reader.segment(id)
        segment = self._segments[id] = None if info is None else _segment(info, self._owners)
        return segment


class _Segment(NamedTuple):
    """What every chunk of a segment is told of it."""

    id: str
    shares: tuple[SharePlace, ...]
    survives: int


def _segment(info: SegmentInfo, owners: dict[str, str]) -> _Segment:
    shares = tuple(
        SharePlace(index, share.provider, owners.get(share.provider, ""), share.stored)
        for index, share in enumerate(info.shares)
    )
    return _Segment(info.id.hex(), shares, survives(info, owners))
