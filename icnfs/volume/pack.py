"""Packing sealed chunks into segments: which chunk goes where, and the payload in shared memory.

Chunks are taken in the order of their versions' records, so a file's chunks lie side by side and go round the data
shares: a sequential reader pulls from k providers at once.  This module knows neither where chunks come from nor where
segments go.
"""

from __future__ import annotations

import os
import secrets
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from icnfs.erasure import hashtree
from icnfs.erasure.code import Code
from icnfs.format.records import Location
from icnfs.format.segment import ID_SIZE, lay_out
from icnfs.limits import KIB, SEGMENT_SIZE
from icnfs.transfer import bulk

SMALL: Final = 256 * KIB
"""A payload up to this is coded in the front too, in about 1 ms, so that its roots are known before it is uploaded."""


CHUNKS_MAX: Final = 1 << 16
"""Chunks in one pack, however small: what is held of them while it is made takes some 30 MB."""


@dataclass(frozen=True, eq=False)
class Pack:
    """A segment to be: `share_len` is the bytes of each of the k data shares.

    A publish may hold a million chunks: of each, 17 bytes are kept.
    """

    id: bytes
    share_len: int
    versions: array[int]
    shares: bytes
    offsets: array[int]
    lengths: array[int]

    def __len__(self) -> int:
        """How many chunks it holds."""
        return len(self.versions)

    @property
    def size(self) -> int:
        """Bytes of its chunks."""
        return sum(self.lengths)

    @property
    def places(self) -> Iterator[tuple[int, Location]]:
        """(version, its place), in the order in which they were packed."""
        for version, share, offset, length in zip(self.versions, self.shares, self.offsets, self.lengths, strict=True):
            yield version, Location(self.id, share, offset, length)

    def ascending(self) -> Iterator[tuple[int, Location]]:
        """As `places`, by version."""
        for at in sorted(range(len(self.versions)), key=self.versions.__getitem__):
            yield self.versions[at], Location(self.id, self.shares[at], self.offsets[at], self.lengths[at])


def plan(chunks: Iterable[tuple[int, int]], k: int, target: int = SEGMENT_SIZE) -> list[Pack]:
    """Packs for (version, sealed bytes) in their order; one is closed at `target` bytes or CHUNKS_MAX chunks."""
    packs: list[Pack] = []
    versions, lengths, size = array("Q"), array("I"), 0
    for version, length in chunks:
        versions.append(version)
        lengths.append(length)
        size += length
        if size >= target or len(versions) >= CHUNKS_MAX:
            packs.append(_pack(versions, lengths, k))
            versions, lengths, size = array("Q"), array("I"), 0
    if versions:
        packs.append(_pack(versions, lengths, k))
    return packs


def _pack(versions: array[int], lengths: array[int], k: int) -> Pack:
    layout = lay_out(lengths, k)
    shares = bytes(share for share, _ in layout.places)
    offsets = array("I", (offset for _, offset in layout.places))
    return Pack(secrets.token_bytes(ID_SIZE), layout.share_len, versions, shares, offsets, lengths)


def fill(pack: Pack, k: int, read: Callable[[int], bytes | memoryview]) -> int:
    """The pack's payload in a new memfd, which the caller closes; blocks on `read`, so call it in a thread."""
    fd = bulk.create("pack")
    try:
        ends = [share * pack.share_len for share in range(k)]
        for version, place in pack.places:
            at = place.share * pack.share_len + place.offset
            _write(fd, read(version), at)
            ends[place.share] = at + place.length
        for share, end in enumerate(ends, 1):
            _write(fd, os.urandom(share * pack.share_len - end), end)
    except BaseException:
        os.close(fd)
        raise
    return fd


def roots(fd: int, k: int, n: int, share_len: int) -> tuple[bytes, ...]:
    """The roots of all n shares of a small payload, coded here."""
    payload = memoryview(os.pread(fd, k * share_len, 0))
    data: list[memoryview | bytes] = [payload[i * share_len : (i + 1) * share_len] for i in range(k)]
    return tuple(hashtree.tree(share)[1] for share in (*data, *Code(k, n).encode(data)))


def _write(fd: int, data: bytes | memoryview, at: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, at)
        rest, at = rest[done:], at + done
