"""Storing a segment: code it once, prove that it decodes, then store every share at its provider at the same time.

The proof comes before the first upload: the data is rebuilt from the parity that was just made and compared, so bad
memory or a bad coder is found while the contents are still at hand.  Coding, proof and hashing go over the segment
together, COLUMN bytes of each share at a time, while those lie in the processor's cache; nothing is copied after.  No
share's failure stops another; each is reported by index, and the caller decides whether what was stored is enough.

Memory of a segment from its order to its answer: the payload (shared with the front, which asks for UPLOADS_AT_ONCE of
them) and n - k parity shares; 24 MiB for 16 MiB coded 4-of-6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
import trio

from icnfs.erasure import hashtree
from icnfs.erasure.code import COLUMN, Code
from icnfs.errors import DamagedError, ProviderAwayError, ProviderError, ProviderRefusedError
from icnfs.format import share as share_format
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.limits import LEAF_SIZE
from icnfs.providers.base import Buffer, Pieces
from icnfs.transfer.fetch import code_for, recover_shares
from icnfs.transfer.lane import Lane
from icnfs.transfer.late import Late, Storing
from icnfs.transfer.messages import Order
from icnfs.transfer.shares import Segment, Shares, share_event

DIRECT_PATIENCE: Final = 4.0
"""A share that is to be moved is read where it lies for so many times the longest patience of a read; then rebuilt."""


@dataclass(frozen=True)
class PutResult:
    """What became of an upload: the root of every share (n), and the error of each share that was not stored.

    Shares of `late` are still on their way: their end is told (`Engine`'s notify, `TransferClient.heard`) afterwards.
    """

    roots: tuple[bytes, ...]
    errors: dict[int, ProviderError] = field(default_factory=dict)
    late: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Coded:
    """One share ready to be stored: its file, of which the payload is not copied, and its root."""

    file: Pieces
    root: bytes


def code_segment(order: Order, payload: memoryview) -> list[Coded]:
    """The n shares of a payload of k * share_len bytes, proven to decode.  Raises DamagedError if they do not."""
    size = order.share_len
    data = [payload[index * size : (index + 1) * size] for index in range(order.k)]
    code = code_for(order.k, order.n)
    parity: list[list[bytes]] = [[] for _ in range(order.n - order.k)]
    hashes: list[list[bytes]] = [[] for _ in range(order.n)]
    for at in range(0, size, COLUMN):
        column = [share[at : at + COLUMN] for share in data]
        made = code.encode(column)
        prove(code, column, made)
        for pieces, piece in zip(parity, made, strict=True):
            pieces.append(piece)
        every: list[Buffer] = [*column, *made]
        for listed, share_piece in zip(hashes, every, strict=True):
            listed.append(hashtree.leaves(share_piece, at // LEAF_SIZE))
    parts: list[Sequence[bytes | memoryview]] = [*([share] for share in data), *parity]
    return [_coded(b"".join(leaf_hashes), size, part) for leaf_hashes, part in zip(hashes, parts, strict=True)]


def coded(payload: bytes | memoryview) -> Coded:
    """A share with its header and root; the payload must not change any more."""
    return _coded(hashtree.leaves(payload), len(payload), [payload])


def _coded(listed: bytes, size: int, parts: Sequence[bytes | memoryview]) -> Coded:
    return Coded(Pieces(share_format.pack_header(size, listed), *parts), hashtree.root(listed, size))


def prove(code: Code, data: Sequence[Buffer], parity: Sequence[Buffer]) -> None:
    """Rebuild data from every parity share, in full, and compare.  Raises DamagedError.

    Up to k parity shares at a time stand in for as many data shares: a wrong byte in any of them shows, since every
    coefficient of the code is non-zero.  Costs about as much as the coding did.
    """
    for start in range(0, len(parity), code.k):
        group = parity[start : start + code.k]
        have: dict[int, Buffer] = {code.k + start + index: share for index, share in enumerate(group)}
        have |= dict(enumerate(data[: code.k - len(group)]))
        replaced = range(code.k - len(group), code.k)
        rebuilt = code.rebuild(have, replaced)
        if any(rebuilt[index] != bytes(data[index]) for index in replaced):
            raise DamagedError("a segment's shares do not decode to its contents: this machine's memory may be failing")


async def put_segment(
    shares: Shares,
    late: Late,
    order: Order,
    payload: memoryview,
    only: Sequence[int] | None,
    enough: int,
    until: float,
) -> PutResult:
    """Code the payload and store its shares, or those of `only`, until `until` (a trio time).

    A share that is not stored by then is reported as ProviderAwayError.  Once `enough` of them are stored the slow ones
    are waited for no longer (see `late`).  Raises DamagedError (see `prove`).
    """
    lanes = _lanes(shares, order.providers)
    made = await shares.compute(len(payload), lambda: code_segment(order, payload))
    info = SegmentInfo(
        order.id,
        order.k,
        order.n,
        order.share_len,
        order.size,
        tuple(ShareInfo(name, share.root, True) for name, share in zip(order.providers, made, strict=True)),
    )
    wanted = range(order.n) if only is None else only
    roots, chosen = tuple(share.root for share in made), {index: made[index] for index in wanted}
    del made
    # Nothing may come between the answer and whoever it is given to: what is heard of late shares must come after it.
    storing = await _store(shares, late, Segment(info, order.names), chosen, lanes, enough, until)
    return PutResult(roots, storing.errors, frozenset(storing.late))


async def complete_segment(
    shares: Shares,
    late: Late,
    segment: Segment,
    missing: Sequence[int],
    providers: Sequence[str],
    targets: Sequence[str],
    until: float,
) -> PutResult:
    """Store share `missing[i]` at `providers[i]` as `targets[i]`: read where it is, or rebuilt from any k others.

    Raises TooFewProvidersError where k other shares cannot be had, DamagedError where what they give is not what the
    segment's roots say, ProviderAwayError where nothing was rebuilt by `until` (a trio time).
    """
    info, lanes = segment.info, _lanes(shares, providers)
    with trio.move_on_at(until):
        payloads = await _regain(shares, segment, missing)
        made = await shares.compute(
            len(missing) * info.share_len,
            lambda: {index: coded(payload) for index, payload in zip(missing, payloads, strict=True)},
        )
        if wrong := [index for index in missing if made[index].root != info.shares[index].root]:
            raise DamagedError(f"segment {info.id.hex()}: shares {wrong} were rebuilt, and do not fit their roots")
        holders = dict(enumerate(info.shares)) | {
            index: ShareInfo(provider, info.shares[index].root, True)
            for index, provider in zip(missing, providers, strict=True)
        }
        moved = msgspec.structs.replace(info, shares=tuple(holders[index] for index in range(info.n)))
        called = dict(enumerate(segment.names)) | dict(zip(missing, targets, strict=True))
        renamed = Segment(moved, tuple(called[index] for index in range(info.n)))
        storing = await _store(shares, late, renamed, made, lanes, len(made), until)
        return PutResult(tuple(share.root for share in info.shares), storing.errors)
    raise ProviderAwayError("", f"segment {info.id.hex()} could not be read in time to rebuild what it lacks")


async def _regain(shares: Shares, segment: Segment, missing: Sequence[int]) -> list[memoryview]:
    """The payloads of shares that are to be stored anew: each from where it lies, at 1/k of the traffic, or rebuilt."""
    found: dict[int, memoryview] = {}
    for index in missing:
        if shares.sound(segment, index):
            lane = shares.lane(segment.info.shares[index].provider)
            longest = lane.health.reads.longest(segment.info.share_len) if lane else 0.0
            with suppress(ProviderError), trio.move_on_after(DIRECT_PATIENCE * longest):
                found[index] = await shares.read_whole(segment, index)
    lacking = [index for index in missing if index not in found]
    if lacking:
        rebuilt = await recover_shares(shares, segment, lacking, never=lacking)
        found |= dict(zip(lacking, rebuilt, strict=True))
    return [found[index] for index in missing]


def _lanes(shares: Shares, providers: Iterable[str]) -> dict[str, Lane | None]:
    """To the places that are meant by these names now: whoever has one of them later may be another."""
    return {provider: shares.lane(provider) for provider in providers}


async def _store(
    shares: Shares,
    late: Late,
    segment: Segment,
    made: Mapping[int, Coded],
    lanes: Mapping[str, Lane | None],
    enough: int,
    until: float,
) -> Storing:
    """Store all of `made` at once until `until`; what became of it."""
    info = segment.info

    async def put(index: int, share: Coded) -> None:
        provider = info.shares[index].provider
        lane = lanes[provider]
        if lane is None:
            raise ProviderRefusedError(provider, "the TOML does not name it")
        await lane.put(segment.names[index], share.file)
        shares.stored(segment, index)

    storing = Storing(
        late,
        {index: partial(put, index, share) for index, share in made.items()},
        partial(share_event, segment),
        {index: info.shares[index].provider for index in made},
        {index: info.share_len * (info.k if index < info.k else 1) for index in made},
        until,
    )
    await storing.answer(enough)
    return storing
