"""Packing sealed chunks into segments: which chunk goes where, and the payload in shared memory.

Chunks are taken in the order of their versions' records, so a file's chunks lie side by side and go round the data
shares: a sequential reader pulls from k providers at once.  This module knows neither where chunks come from nor where
segments go.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
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


@dataclass(frozen=True)
class Pack:
    """A segment to be: `places` are (version, its place), `share_len` the bytes of each of the k data shares."""

    id: bytes
    share_len: int
    places: tuple[tuple[int, Location], ...]


def plan(chunks: Iterable[tuple[int, int]], k: int, target: int = SEGMENT_SIZE) -> list[Pack]:
    """Packs for (version, sealed bytes) in their order, each closed once it holds `target` bytes."""
    packs: list[Pack] = []
    pending: list[tuple[int, int]] = []
    size = 0
    for chunk in chunks:
        pending.append(chunk)
        size += chunk[1]
        if size >= target:
            packs.append(_pack(pending, k))
            pending, size = [], 0
    if pending:
        packs.append(_pack(pending, k))
    return packs


def _pack(chunks: list[tuple[int, int]], k: int) -> Pack:
    segment = secrets.token_bytes(ID_SIZE)
    layout = lay_out([length for _, length in chunks], k)
    places = (
        (version, Location(segment, share, offset, length))
        for (version, length), (share, offset) in zip(chunks, layout.places, strict=True)
    )
    return Pack(segment, layout.share_len, tuple(places))


def fill(pack: Pack, k: int, read: Callable[[int], bytes | memoryview]) -> int:
    """The pack's payload in a new memfd, which the caller closes; blocks on `read`, so call it in a thread."""
    fd = bulk.create("pack")
    try:
        os.ftruncate(fd, k * pack.share_len)
        for version, place in pack.places:
            _write(fd, read(version), place.share * pack.share_len + place.offset)
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
