"""Reading a segment back: a range of one data share, the same range of all of them, or the whole payload.

A healthy read is one ranged read from one provider, unverified here where its caller holds the chunk's tag.  Where
that provider is expected to be much slower than the others, or is distrusted, the same range of any k other shares,
each verified, rebuilds it; where it fails or is late, the rebuild is raced against it.  A stripe is read from the data
shares too, as far as they are expected in time; with others in their place, all k are verified.  One bad share cannot
poison a rebuild, for nothing unverified is decoded.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import lru_cache
from typing import Final

import trio

from icnfs.erasure.code import Code
from icnfs.errors import FormatError, IcnfsError, ProviderError
from icnfs.format import share as share_format
from icnfs.limits import LEAF_SIZE
from icnfs.transfer.gather import gather
from icnfs.transfer.shares import Segment, Shares, too_few

REBUILD_FACTOR: Final = 2.0
"""A rebuild moves k times the bytes: one is preferred where the direct read is expected to take so much longer."""

PARITY_FACTOR: Final = 1.5
"""Another share in a data share's place moves no more bytes, but all are verified and one is decoded; and data shares
alone are spread evenly over the providers, which estimates that vary by less should not undo."""

SLACK_SECONDS: Final = 0.02
"""Differences below this are not worth the computing."""

Read = Callable[[Segment, int, int, int], Awaitable[bytes]]
"""Reads a range of a share: (segment, index, offset, length)."""


@lru_cache(maxsize=64)
def code_for(k: int, n: int) -> Code:
    """The k-of-n code, made once."""
    return Code(k, n)


# --- a range of one data share ----------------------------------------------------------------------------------------


async def fetch(
    shares: Shares,
    segment: Segment,
    share: int,
    offset: int,
    length: int,
    *,
    distrust: Collection[int] = (),
    verified: bool = False,
) -> bytes:
    """`length` bytes at `offset` of data share `share`.

    Shares of `distrust` are used last and only verified; with `verified` whatever is used is.
    Raises TooFewProvidersError where fewer than k shares can be had, FormatError for a range that does not exist.
    It waits as long as there is hope: the deadline is its caller's.
    """
    info = segment.info
    if not (0 <= share < info.k and 0 <= offset <= offset + length <= info.share_len):
        raise FormatError(f"{length} bytes at {offset} of share {share} do not exist in segment {info.id.hex()}")
    if length == 0:
        return b""
    last = {share, *distrust}
    if share in distrust or not _worth_asking(shares, segment, share, offset, length, last):
        return await _rebuilt(shares, segment, share, offset, length, last)
    direct = shares.read_range if verified else shares.read_direct
    return await _raced(shares, segment, share, offset, length, last, direct)


def _worth_asking(
    shares: Shares, segment: Segment, share: int, offset: int, length: int, last: Collection[int]
) -> bool:
    """Whether the direct read is expected to be about as fast as the k-th of the others, or faster."""
    if not shares.sound(segment, share):
        return False
    info = segment.info
    size = share_format.span_for(info.share_len, offset, length).file_length
    others = [
        shares.expected(segment, index, size)
        for index in range(info.n)
        if index not in last and shares.sound(segment, index)
    ]
    if len(others) < info.k:
        return True
    slowest = heapq.nsmallest(info.k, others)[-1]
    return shares.expected(segment, share, length) <= REBUILD_FACTOR * slowest + SLACK_SECONDS


async def _raced(
    shares: Shares, segment: Segment, share: int, offset: int, length: int, last: Collection[int], read: Read
) -> bytes:
    """The direct read, joined by a rebuild once it has failed or is late."""
    results: list[bytes] = []
    errors: list[IcnfsError] = []
    failed = trio.Event()

    async def direct(scope: trio.CancelScope) -> None:
        try:
            results.append(await read(segment, share, offset, length))
            scope.cancel()
        except ProviderError:
            failed.set()

    async def others(scope: trio.CancelScope) -> None:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(_then_cancel, waiting.cancel_scope, failed)
            await shares.hedges.late(shares.patience(segment, share, length))
            waiting.cancel_scope.cancel()
        try:
            results.append(await _rebuilt(shares, segment, share, offset, length, last))
            scope.cancel()
        except IcnfsError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others, nursery.cancel_scope)
        nursery.start_soon(direct, nursery.cancel_scope)
    if not results:
        raise errors[0]
    return results[0]


async def _then_cancel(scope: trio.CancelScope, event: trio.Event) -> None:
    await event.wait()
    scope.cancel()


async def _rebuilt(
    shares: Shares, segment: Segment, share: int, offset: int, length: int, last: Collection[int]
) -> bytes:
    """The range from any k verified shares; `share` itself, verified, is one like the others, asked last."""
    info = segment.info
    size = share_format.span_for(info.share_len, offset, length).file_length
    gathered = await gather(
        info.k,
        shares.candidates(segment, size, last=tuple(last)),
        lambda index: shares.read_range(segment, index, offset, length),
        lambda index: shares.patience(segment, index, size),
        shares.hedges,
    )
    got = gathered.got
    if share in got:
        return got[share]
    if len(got) < info.k:
        raise too_few(segment, len(got), gathered.errors)
    code = code_for(info.k, info.n)
    return await shares.compute(info.k * length, lambda: code.rebuild(got, [share])[share])


# --- the same range of all data shares --------------------------------------------------------------------------------


async def fetch_stripe(shares: Shares, segment: Segment, offset: int, length: int) -> list[memoryview]:
    """`length` bytes at `offset` of each of the k data shares, from whichever k shares are expected first.

    Data shares are not verified, unless others are read in the place of some.  Costs k ranges of whole leaves, and one
    more for each that is late or bad.  Raises as `fetch` does.
    """
    info = segment.info
    if not 0 <= offset <= offset + length <= info.share_len:
        raise FormatError(f"{length} bytes at {offset} do not exist in the shares of segment {info.id.hex()}")
    if length == 0:
        return [memoryview(b"")] * info.k
    span = share_format.span_for(info.share_len, offset, length)
    start = span.first_leaf * LEAF_SIZE
    order = _stripe_order(shares, segment, span.file_length)
    if order is None:
        got: Mapping[int, bytes] = {}
    else:
        got = await _stripe(shares, segment, order, start, span.file_length)
    if not got.keys() >= set(range(info.k)):
        got = await _completed(shares, segment, got, start, span.file_length)
    return [memoryview(got[index])[span.skip : span.skip + length] for index in range(info.k)]


def _stripe_order(shares: Shares, segment: Segment, length: int) -> list[int] | None:
    """The shares to ask, best first: data shares, those that are expected late replaced by others.

    None where the first k are not all sound: then all are to be verified from the beginning.
    """
    info = segment.info
    listed = shares.candidates(segment, length)
    data = [index for index in listed if index < info.k and shares.sound(segment, index)]
    spare = [index for index in listed if index >= info.k and shares.sound(segment, index)]
    if len(data) + len(spare) < info.k:
        return None
    times = {index: shares.expected(segment, index, length) for index in (*data, *spare)}
    data.sort(key=times.__getitem__)
    spare.sort(key=times.__getitem__, reverse=True)
    first = data[:]
    while len(first) < info.k:
        first.insert(0, spare.pop())
    while spare and first[-1] < info.k and times[first[-1]] > PARITY_FACTOR * times[spare[-1]] + SLACK_SECONDS:
        first.pop()
        first.insert(0, spare.pop())
    rest = [index for index in listed if index not in first]
    return first + rest


async def _stripe(shares: Shares, segment: Segment, order: list[int], start: int, length: int) -> Mapping[int, bytes]:
    """Whole leaves of all data shares, unverified where all k came; otherwise of fewer than those, all verified."""
    k = segment.info.k
    decoding = any(index >= k for index in order[:k])
    planned = set(order[:k])  # what others plan meanwhile takes account of it
    for index in planned:
        shares.plan(segment, index, length)

    async with trio.open_nursery() as aside:

        async def read(index: int) -> tuple[bytes, bool]:
            nonlocal decoding
            if index in planned:
                planned.remove(index)
                shares.plan(segment, index, -length)
            if index >= k and not decoding:
                decoding = True  # those that were asked before it must be verified too: ask for their hashes meanwhile
                for other in order[: order.index(index)]:
                    aside.start_soon(_know, shares, segment, other)
            if decoding:
                return await shares.read_range(segment, index, start, length), True
            return await shares.read_direct(segment, index, start, length), False

        try:
            gathered = await gather(
                k, order, read, lambda index: shares.patience(segment, index, length), shares.hedges
            )
        finally:
            for index in planned:
                shares.plan(segment, index, -length)
        got = {index: data for index, (data, _) in gathered.got.items()}
        if got.keys() != set(range(k)):
            raw = [index for index, (_, verified) in gathered.got.items() if not verified]
            got = await _only_verified(shares, segment, got, raw, start)
        aside.cancel_scope.cancel()
    return got


async def _know(shares: Shares, segment: Segment, index: int) -> None:
    """Have the share's leaf hashes at hand, if they can be had."""
    try:
        await shares.leaf_hashes(segment, index)
    except IcnfsError:
        return  # whoever needs them asks again, and hears why


async def _only_verified(
    shares: Shares, segment: Segment, got: dict[int, bytes], raw: Collection[int], start: int
) -> dict[int, bytes]:
    """Of `got`, what is what its share holds; those of `raw` are not verified yet."""
    bad: list[int] = []

    async def check(index: int) -> None:
        try:
            await shares.verify(segment, index, start, got[index])
        except ProviderError:
            bad.append(index)

    async with trio.open_nursery() as nursery:
        for index in raw:
            nursery.start_soon(check, index)
    return {index: data for index, data in got.items() if index not in bad}


async def _completed(
    shares: Shares, segment: Segment, got: Mapping[int, bytes], start: int, length: int
) -> Mapping[int, bytes]:
    """All data shares' ranges, from those in `got`, which are verified, and as many others as it takes."""
    info = segment.info
    have = dict(got)
    if len(have) < info.k:
        gathered = await gather(
            info.k - len(have),
            shares.candidates(segment, length, never=tuple(have)),
            lambda index: shares.read_range(segment, index, start, length),
            lambda index: shares.patience(segment, index, length),
            shares.hedges,
        )
        have |= gathered.got
        if len(have) < info.k:
            raise too_few(segment, len(have), gathered.errors)
    missing = [index for index in range(info.k) if index not in have]
    if missing:
        code = code_for(info.k, info.n)
        have |= await shares.compute(info.k * length, lambda: code.rebuild(have, missing))
    return have


# --- all of it --------------------------------------------------------------------------------------------------------


async def get_segment(shares: Shares, segment: Segment) -> list[memoryview]:
    """The k data shares, each whole and verified, or rebuilt from verified ones.  Raises TooFewProvidersError."""
    return await recover_shares(shares, segment, range(segment.info.k))


async def recover_shares(
    shares: Shares, segment: Segment, want: Collection[int], never: Collection[int] = ()
) -> list[memoryview]:
    """Shares of these indexes, from any k verified ones but those of `never`.  Raises TooFewProvidersError."""
    info = segment.info
    size = share_format.file_size(info.share_len)
    gathered = await gather(
        info.k,
        shares.candidates(segment, size, never=tuple(never)),
        lambda index: shares.read_whole(segment, index),
        lambda index: shares.patience(segment, index, size),
        shares.hedges,
    )
    got = gathered.got
    if len(got) < info.k:
        raise too_few(segment, len(got), gathered.errors)
    missing = [index for index in want if index not in got]
    made: dict[int, bytes] = {}
    if missing:
        code = code_for(info.k, info.n)
        made = await shares.compute(info.k * info.share_len, lambda: code.rebuild(got, missing))
    return [got[index] if index in got else memoryview(made[index]) for index in want]
