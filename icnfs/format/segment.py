"""A segment's description (the value of the `segments` table), and how its payload is laid out in k data shares.

Encoded: msgpack array [1, id, k, n, share_len, size, [[provider, root, stored], ...]]; the first number is the format
version.  A pack's chunk lies whole in one data share, the least filled so far (the first of equals), at its fill:
chunks of one size go round the shares in turn, and chunks of mixed sizes leave little to fill up.  The longest share
sets the length of all.  A run's bytes are cut in k equal parts.  What is left over is filled with random bytes: were it
zeros, each parity share of a pack of one chunk would be that chunk times a constant, and so would be the whole of it.

Promises: decoding takes any bytes and gives a value or a FormatError, and every number is capped.  It does not know
what the payload means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from re import compile as pattern
from typing import Final, Literal

import msgspec

from icnfs.errors import FormatError, NewerFormatError
from icnfs.limits import SEGMENT_MAX, SHARES_MAX

VERSION: Final = 1
ID_SIZE: Final = 16
ROOT_SIZE: Final = 32
ENCODED_MAX: Final = 64 + SHARES_MAX * (32 + ROOT_SIZE + 16)
_PROVIDER: Final = pattern(r"[a-z0-9-]{1,32}")


class ShareInfo(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One share: who holds it, its hash tree's root, and whether it is known to be stored."""

    provider: str
    root: bytes
    stored: bool


class SegmentInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One segment: its code, its sizes in bytes, and its shares by index (0 to k-1 are the data)."""

    id: bytes
    k: int
    n: int
    share_len: int
    size: int
    """Payload bytes, without what fills the shares up: 1 to k * share_len."""
    shares: tuple[ShareInfo, ...]

    def missing(self) -> tuple[int, ...]:
        """Indexes of the shares that are not stored."""
        return tuple(index for index, share in enumerate(self.shares) if not share.stored)

    def bears_out(self, before: SegmentInfo) -> bool:
        """Whether each share lies where `before` says, or came to where it says that one is missing: whoever goes by
        that finds all of them, for missing ones are asked for at the very end."""
        return all(
            new.provider == old.provider and new.stored >= old.stored
            for old, new in zip(before.shares, self.shares, strict=True)
        )

    def stored(self) -> int:
        """How many of the shares are."""
        return sum(share.stored for share in self.shares)


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    id: bytes
    k: int
    n: int
    share_len: int
    size: int
    shares: tuple[ShareInfo, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the chunks of a pack lie: (share, offset) of each, and the length of all shares."""

    share_len: int
    places: tuple[tuple[int, int], ...]


def encode(segment: SegmentInfo) -> bytes:
    """The record's plain bytes.  ValueError where the description is impossible."""
    if fault := _fault(segment):
        raise ValueError(f"a segment cannot have {fault}")
    s = segment
    return msgspec.msgpack.encode(_Wire(VERSION, s.id, s.k, s.n, s.share_len, s.size, s.shares))


def decode(data: bytes) -> SegmentInfo:
    """The description in these bytes.  Raises NewerFormatError for a later version, FormatError for anything else."""
    if len(data) > ENCODED_MAX:
        raise FormatError("a segment's description is too large")
    if data[1:2] > bytes((VERSION,)) and data[1] < 0x80 and data[0] & 0xF0 == 0x90:  # [VERSION, ...] in msgpack
        raise NewerFormatError(f"a segment has format version {data[1]}, this release knows {VERSION}; upgrade icnfs")
    try:
        w = msgspec.msgpack.decode(data, type=_Wire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"a segment's description is malformed: {error}") from None
    segment = SegmentInfo(w.id, w.k, w.n, w.share_len, w.size, w.shares)
    if fault := _fault(segment):
        raise FormatError(f"a segment's description has {fault}")
    return segment


def lay_out(lengths: Sequence[int], k: int) -> Layout:
    """Places for a pack's sealed chunks of these lengths, in their order."""
    fill = [0] * k
    places = []
    for length in lengths:
        share = fill.index(min(fill))
        places.append((share, fill[share]))
        fill[share] += length
    return Layout(max(fill), tuple(places))


def run_share_len(size: int, k: int) -> int:
    """Length of each data share of a run with `size` bytes."""
    return -(-size // k)


def _fault(segment: SegmentInfo) -> str:
    """What is out of range ("" where nothing is)."""
    s = segment
    if len(s.id) != ID_SIZE:
        return "an id of the wrong size"
    if not 1 <= s.k <= s.n <= SHARES_MAX or len(s.shares) != s.n:
        return "an impossible code"
    if not (s.share_len >= 1 and s.k * s.share_len <= SEGMENT_MAX and 1 <= s.size <= s.k * s.share_len):
        return "an impossible size"
    if any(len(share.root) != ROOT_SIZE or not _PROVIDER.fullmatch(share.provider) for share in s.shares):
        return "a share with an impossible provider or root"
    return ""
