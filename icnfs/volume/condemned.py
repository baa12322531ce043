"""Objects that are to be deleted at providers once their grace is over: what is kept of them, and how it is written.

Encoded: msgpack array [generation, segment, [[provider, object], ...]], under time (8, Unix nanoseconds) and 8 random
bytes, so that they lie in the order in which they were condemned.  A head that holds `generation` must be durable
before they go.  `segment` is the one whose shares they are, b"" for heads.  Local: a machine that is lost takes it with
it, and leaves orphans.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

import msgspec

from icnfs.errors import FormatError
from icnfs.format.head import Head, HeadName
from icnfs.format.records import U64
from icnfs.format.segment import SegmentInfo
from icnfs.volume.network import Network


class Condemned(msgspec.Struct, frozen=True, array_like=True):
    """Objects that nothing needs from `generation` on."""

    generation: int
    segment: bytes
    objects: tuple[tuple[str, str], ...]
    """(provider, name) of each."""


def make_key(time_ns: int) -> bytes:
    """A new key for what is condemned now."""
    return U64.pack(time_ns) + secrets.token_bytes(8)


def time_of(key: bytes) -> int:
    """When it was condemned (Unix nanoseconds)."""
    return int(U64.unpack_from(key)[0])


def writer_of(condemned: Condemned) -> Callable[[int], bytes]:
    """Encodes it for the generation in which it is committed."""
    return lambda generation: encode(msgspec.structs.replace(condemned, generation=generation))


def encode(condemned: Condemned) -> bytes:
    return msgspec.msgpack.encode(condemned)


def decode(data: bytes) -> Condemned:
    """Raises `FormatError` for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=Condemned)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"a note of what is to be deleted cannot be read: {error}") from None


def shares_of(network: Network, segment: SegmentInfo) -> tuple[tuple[str, str], ...]:
    """(provider, object) of every share, stored or not: one that is not may have come all the same."""
    return tuple(zip((share.provider for share in segment.shares), network.names_of(segment), strict=True))


def of_segments(network: Network, segments: Iterable[SegmentInfo]) -> list[Condemned]:
    """Every share of these."""
    return [Condemned(0, segment.id, shares_of(network, segment)) for segment in segments]


def of_head(network: Network, head: Head) -> Condemned:
    """Every copy that there may be of a head."""
    names = (
        (provider, str(HeadName(head.epoch, head.sequence, network.names.writer_tag(provider, head.writer))))
        for provider in network.providers
    )
    return Condemned(0, b"", tuple(names))


def of_moves(network: Network, before: SegmentInfo, after: SegmentInfo) -> list[Condemned]:
    """The old places of shares that lie elsewhere now."""
    names = network.names_of(before)
    left = tuple(
        (old.provider, names[index])
        for index, (old, new) in enumerate(zip(before.shares, after.shares, strict=True))
        if old.provider != new.provider and new.stored
    )
    return [Condemned(0, before.id, left)] if left else []
