"""Gathering the facts of `status` from an open volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icnfs.format.segment import SegmentInfo
from icnfs.transfer.messages import ProviderState
from icnfs.volume.health import ProviderHealth
from icnfs.volume.network import Network
from icnfs.volume.status import (
    ChunkPlace,
    FileInfo,
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
    from icnfs.volume.volume import Volume


def status_of(volume: Volume, now_ns: int) -> Status:
    """Everything that `icnfs status` shows; `now_ns` is Unix time."""
    store, publisher, fence = volume.store, volume.publisher, volume.fence
    risk = volume.repair.at_risk(volume.network.lost())
    lacking = volume.repair.lacking_at()
    held = volume.holdings()
    published = publisher.time_ns
    current = fence.claim.current if fence.claim is not None else None
    failure, tally = publisher.failure, volume.collector.tally
    return Status(
        name=volume.config.name,
        volume=store.volume.hex(),
        code=f"{volume.network.k}-of-{volume.network.n}",
        safe=volume.network.safe,
        epoch=max(fence.number[0], current.epoch if current is not None else 0),
        sequence=fence.number[1],
        read_only=store.read_only,
        fenced=str(store.fenced) if store.fenced is not None else "",
        degraded=risk.segments > 0 or failure is not None,
        failure=str(failure) if failure is not None else "",
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
    )


def _provider(volume: Volume, name: str, missing: int, shares: int) -> ProviderStatus:
    facts = volume.network.facts[name]
    state = volume.network.transfer.states().get(name, ProviderState(name))
    foreign = volume.network.foreign.get(name)
    lie = volume.heads.liars.get(name, "")
    kept = volume.collector.refusals.get(name, "")
    return ProviderStatus(
        name=name,
        owner=facts.owner,
        country=facts.country,
        state=_state_word(volume.network, state),
        error=foreign or state.error or lie or (f"refuses to delete: {kept}" if kept else ""),
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


def file_info(volume: Volume, ino: int) -> FileInfo:
    """A file's chunks, one after the other."""
    node = volume.store.inode(ino)
    chunks = tuple(_chunk(volume, *row) for row in volume.store.chunk_rows(ino))
    return FileInfo(ino, node.size, chunks, min((chunk.survives for chunk in chunks), default=None))


def _chunk(volume: Volume, index: int, record: ChunkRecord | None, patch_bytes: int) -> ChunkPlace:
    store = volume.store
    if record is None:
        return ChunkPlace(index, None, 0, patch_bytes, True, "", None, (), -1)
    location = store.locate(record.version)
    segment = store.segment(location.segment) if location is not None else None
    local = store.reader.has_chunk(record.version) or location is None
    if location is None or segment is None:
        return ChunkPlace(index, record.version, record.length, patch_bytes, local, "", None, (), -1)
    owners = {name: facts.owner for name, facts in volume.network.facts.items()}
    return ChunkPlace(
        index,
        record.version,
        record.length,
        patch_bytes,
        local,
        segment.id.hex(),
        location.share,
        _shares(segment, owners),
        survives(segment, owners),
    )


def _shares(segment: SegmentInfo, owners: dict[str, str]) -> tuple[SharePlace, ...]:
    return tuple(
        SharePlace(index, share.provider, owners.get(share.provider, ""), share.stored)
        for index, share in enumerate(segment.shares)
    )
