"""Reading a segment back: a range of one data share, or the whole payload.

A healthy read is one ranged read from one provider, unverified here, since its caller holds the chunk's tag.  When that
provider fails, is slow or is distrusted, the same range of any k other shares, each verified, rebuilds it; both ways
run on until one arrives.  One bad share cannot poison a rebuild, for nothing unverified is decoded.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Final

import trio

from icnfs.erasure.code import Code
from icnfs.errors import FormatError, IcnfsError, ProviderError
from icnfs.limits import MIB
from icnfs.transfer.gather import gather
from icnfs.transfer.shares import Segment, Shares, too_few

SLOWEST_USEFUL: Final = 2 * MIB
"""A whole share may take its bytes at this rate, per second, on top of the hedge before others are asked as well."""


@lru_cache(maxsize=64)
def code_for(k: int, n: int) -> Code:
    """The k-of-n code, made once."""
    return Code(k, n)


async def fetch(
    shares: Shares,
    hedge: float,
    segment: Segment,
    share: int,
    offset: int,
    length: int,
    *,
    distrust: Collection[int] = (),
    rebuild: bool = False,
) -> bytes:
    """`length` bytes at `offset` of data share `share`.

    Shares of `distrust` are used last and only verified; with `rebuild` so is `share` itself.  `hedge` is in seconds.
    Raises TooFewProvidersError where fewer than k shares can be had, FormatError for a range that does not exist.
    It waits as long as there is hope: the deadline is its caller's.
    """
    info = segment.info
    if not (0 <= share < info.k and 0 <= offset <= offset + length <= info.share_len):
        raise FormatError(f"{length} bytes at {offset} of share {share} do not exist in segment {info.id.hex()}")
    if length == 0:
        return b""
    if rebuild or share in distrust or not _worth_asking(shares, segment, share):
        return await _rebuilt(shares, hedge, segment, share, offset, length, {share, *distrust})
    return await _raced(shares, hedge, segment, share, offset, length, distrust)


def _worth_asking(shares: Shares, segment: Segment, share: int) -> bool:
    holder = segment.info.shares[share]
    lane = shares.lane(holder.provider)
    return (
        holder.stored
        and lane is not None
        and lane.health.preferred(trio.current_time())
        and not lane.health.is_bad(segment.names[share])
    )


async def _raced(
    shares: Shares, hedge: float, segment: Segment, share: int, offset: int, length: int, distrust: Collection[int]
) -> bytes:
    """The direct read, joined by a rebuild once it has failed or the hedge time has passed."""
    results: list[bytes] = []
    errors: list[IcnfsError] = []
    failed = trio.Event()

    async def direct(scope: trio.CancelScope) -> None:
        try:
            results.append(await shares.read_direct(segment, share, offset, length))
            scope.cancel()
        except ProviderError:
            failed.set()

    async def others(scope: trio.CancelScope) -> None:
        with trio.move_on_after(hedge) as patience:
            await failed.wait()
        if patience.cancelled_caught:
            shares.slow(segment, share)
        try:
            results.append(await _rebuilt(shares, hedge, segment, share, offset, length, {share, *distrust}))
            scope.cancel()
        except IcnfsError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(direct, nursery.cancel_scope)
        nursery.start_soon(others, nursery.cancel_scope)
    if not results:
        raise errors[0]
    return results[0]


async def _rebuilt(
    shares: Shares, hedge: float, segment: Segment, share: int, offset: int, length: int, last: Collection[int]
) -> bytes:
    """The range from any k verified shares; `share` itself, verified, is one like the others, asked last."""
    info = segment.info
    gathered = await gather(
        info.k,
        shares.candidates(segment, last=tuple(last)),
        lambda index: shares.read_range(segment, index, offset, length),
        hedge,
        lambda index: shares.slow(segment, index),
    )
    got = gathered.got
    if share in got:
        return got[share]
    if len(got) < info.k:
        raise too_few(segment, len(got), gathered.errors)
    code = code_for(info.k, info.n)
    return await shares.compute(info.k * length, lambda: code.rebuild(got, [share])[share])


async def get_segment(shares: Shares, hedge: float, segment: Segment) -> list[memoryview]:
    """The k data shares, each whole and verified, or rebuilt from verified ones.  Raises TooFewProvidersError."""
    return await recover_shares(shares, hedge, segment, range(segment.info.k))


async def recover_shares(
    shares: Shares, hedge: float, segment: Segment, want: Collection[int], never: Collection[int] = ()
) -> list[memoryview]:
    """Shares of these indexes, from any k verified ones but those of `never`.  Raises TooFewProvidersError."""
    info = segment.info
    gathered = await gather(
        info.k,
        shares.candidates(segment, never=tuple(never)),
        lambda index: shares.read_whole(segment, index),
        hedge + info.share_len / SLOWEST_USEFUL,
        lambda index: shares.slow(segment, index),
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
