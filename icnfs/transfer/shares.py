"""Reading shares, verified: no byte leaves this module that the hash tree does not vouch for.

A share that fails is *bad* (altered, cut short, exchanged, not a share at all) or *missing* (the provider answers that
it has no such object), and whoever listens is told which share of which provider.  A provider that does not answer
says nothing of its shares.  The lists of leaf hashes that have passed are kept, so that the next range costs one read.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from icnfs.erasure import hashtree
from icnfs.errors import FormatError, IcnfsError, ObjectMissingError, ProviderLiesError, TooFewProvidersError
from icnfs.format import share as share_format
from icnfs.format.segment import SegmentInfo
from icnfs.limits import KIB, LEAF_SIZE
from icnfs.transfer.gather import Hedges, Patience
from icnfs.transfer.health import Board
from icnfs.transfer.lane import Lane
from icnfs.transfer.messages import ShareEvent

CACHED_HASHES: Final = 2048
"""Lists of leaf hashes kept: 2 KiB each for a 16 MiB segment coded 4-of-6."""

INLINE_WORK: Final = 512 * KIB
"""Hashing or coding up to this many bytes, about 1 ms, is done in place; more goes to a thread."""

FASTEST: Final = 0.01
ALIKE: Final = 1.5
"""Providers that are expected to take less than FASTEST seconds, or within a factor of ALIKE, count as equally fast."""

_T = TypeVar("_T")


class Offload(Protocol):
    """How work that computes is kept from stalling everybody: in a thread, or in place under virtual time."""

    async def __call__(self, work: Callable[[], _T], /) -> _T: ...


@dataclass(frozen=True)
class Segment:
    """A segment and the names of its shares, by index."""

    info: SegmentInfo
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != self.info.n:
            raise FormatError(f"{len(self.names)} names for the {self.info.n} shares of a segment")


class Shares:
    """The verified reader over all providers' lanes."""

    def __init__(self, lanes: Mapping[str, Lane], board: Board, offload: Offload) -> None:
        self._lanes = lanes
        self._board = board
        self._offload = offload
        self._hashes: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._asking: dict[tuple[bytes, int], trio.Event] = {}
        self.hedges = Hedges()

    def lane(self, provider: str) -> Lane | None:
        return self._lanes.get(provider)

    def candidates(
        self, segment: Segment, length: int, last: Sequence[int] = (), never: Sequence[int] = ()
    ) -> list[int]:
        """The shares whose provider is known, best first to read `length` bytes of.

        Providers that are up come first, then the faster ones; among those that are expected equally fast the cheaper
        ones, then data shares.  Shares known to be bad, and those of `last`, come last; they are asked only when
        nothing else is left, and cannot do harm.  So are, at the very end, those that are said not to be stored: who
        answered wrongly for a while, and was found out, may have the share all the same.
        """

        def rank(index: int) -> tuple[bool, bool, int, float, int]:
            lane = self._lanes[segment.info.shares[index].provider]
            doubtful = index in last or lane.health.is_bad(segment.names[index])
            speed = round(math.log(max(self.expected(segment, index, length), FASTEST), ALIKE))
            return doubtful, not lane.health.preferred(), speed, lane.health.read_price, index

        shares = segment.info.shares
        known = [i for i, share in enumerate(shares) if share.provider in self._lanes and i not in never]
        return sorted(known, key=lambda index: (not shares[index].stored, rank(index)))

    def sound(self, segment: Segment, index: int) -> bool:
        """Whether nothing speaks against reading that share: it is stored, not known to be bad, its provider up."""
        lane = self.lane(segment.info.shares[index].provider)
        return (
            segment.info.shares[index].stored
            and lane is not None
            and lane.health.preferred()
            and not lane.health.is_bad(segment.names[index])
        )

    def expected(self, segment: Segment, index: int, length: int) -> float:
        """Seconds that `length` bytes of a share are expected to take from now; infinite where nobody has it."""
        lane = self.lane(segment.info.shares[index].provider)
        return math.inf if lane is None else lane.health.reads.expected(length, trio.current_time())

    def plan(self, segment: Segment, index: int, length: int) -> None:
        """`length` bytes of a share are about to be asked for; less than none when they are, or will not be."""
        if lane := self.lane(segment.info.shares[index].provider):
            lane.health.reads.in_flight += length

    def patience(self, segment: Segment, index: int, length: int) -> Patience:
        """How long to wait for `length` bytes of a share, asked for now, before others are asked as well."""
        lane = self.lane(segment.info.shares[index].provider)
        if lane is None:
            return Patience(0.0, 0.0, 0.0)
        reads, now = lane.health.reads, trio.current_time()
        return Patience(reads.expected(length, now), reads.patience(length, now), reads.longest(length))

    async def read_direct(self, segment: Segment, index: int, offset: int, length: int) -> bytes:
        """A range of a share's payload in one read, **not verified**: its caller holds the chunk's own tag.

        A share that is missing or cut short is reported all the same.  Raises ProviderError.
        """
        start = share_format.header_size(segment.info.share_len) + offset
        return await self._reported(segment, index, lambda lane, name: lane.get(name, start, length))

    async def read_range(self, segment: Segment, index: int, offset: int, length: int) -> bytes:
        """A verified range of a share's payload; costs one round trip.  Raises ProviderError."""
        return await self._reported(segment, index, lambda lane, name: self._range(segment, index, offset, length))

    async def read_whole(self, segment: Segment, index: int) -> memoryview:
        """A share's whole payload, verified.  Raises ProviderError."""
        payload = await self._reported(segment, index, lambda lane, name: self._whole(segment, index))
        self.note(segment, index, "mended", "it is whole again")
        return payload

    async def verify(self, segment: Segment, index: int, offset: int, data: bytes) -> bytes:
        """`data`, if that is what the share holds at `offset`; it must be whole leaves.  Raises ProviderError."""

        async def verified() -> bytes:
            listed, first_leaf = await self.leaf_hashes(segment, index), offset // LEAF_SIZE
            work = partial(hashtree.verify_data, listed, segment.info.share_len, first_leaf, data)
            await self.compute(len(data), work)
            return data

        return await self._reported(segment, index, lambda lane, name: verified())

    def stored(self, segment: Segment, index: int) -> None:
        """A share was stored; if it was known to be bad, it is no longer."""
        self._hashes.pop((segment.info.id, index), None)
        self.note(segment, index, "mended", "it was stored anew")

    def note(self, segment: Segment, index: int, what: str, detail: str) -> None:
        """A share was found "bad", "missing" or "mended" (whole, though it may have been thought bad)."""
        lane = self.lane(segment.info.shares[index].provider)
        if lane is not None and (what != "mended" or lane.health.is_bad(segment.names[index])):
            self._board.note_share(share_event(segment, index, what, detail))

    async def _range(self, segment: Segment, index: int, offset: int, length: int) -> bytes:
        info, lane, name = segment.info, self._known(segment.info.shares[index].provider), segment.names[index]
        span = share_format.span_for(info.share_len, offset, length)
        listed, data = await _both(
            lambda: self.leaf_hashes(segment, index),
            lambda: lane.get(name, span.file_offset, span.file_length),
        )
        await self.compute(len(data), partial(hashtree.verify_data, listed, info.share_len, span.first_leaf, data))
        return data[span.skip : span.skip + length]

    async def leaf_hashes(self, segment: Segment, index: int) -> bytes:
        """The share's list of leaf hashes, checked against its root.  Raises ProviderError, FormatError.

        Those who want the same one at the same time share a read.
        """
        key = (segment.info.id, index)
        while key not in self._hashes and key in self._asking:
            await self._asking[key].wait()
        if listed := self._hashes.get(key):
            self._hashes.move_to_end(key)
            return listed
        asking = self._asking[key] = trio.Event()
        try:
            return await self._ask_hashes(segment, index, key)
        finally:
            del self._asking[key]
            asking.set()

    async def _ask_hashes(self, segment: Segment, index: int, key: tuple[bytes, int]) -> bytes:
        info = segment.info
        lane = self._known(info.shares[index].provider)
        header = await lane.get(segment.names[index], 0, share_format.header_size(info.share_len))
        payload_len, listed = share_format.parse_header(header)
        if payload_len != info.share_len:
            raise FormatError(f"the share says that it has {payload_len} bytes, not {info.share_len}")
        hashtree.verify_leaves(listed, info.share_len, info.shares[index].root)
        self._hashes[key] = listed
        if len(self._hashes) > CACHED_HASHES:
            self._hashes.popitem(last=False)
        return listed

    async def _whole(self, segment: Segment, index: int) -> memoryview:
        info, lane = segment.info, self._lanes[segment.info.shares[index].provider]
        file = await lane.get(segment.names[index], 0, share_format.file_size(info.share_len))

        def verified() -> memoryview:
            share = share_format.parse(file)
            hashtree.verify_leaves(share.leaf_hashes, info.share_len, info.shares[index].root)
            hashtree.verify_data(share.leaf_hashes, info.share_len, 0, share.payload)
            return share.payload

        return await self.compute(len(file), verified)

    async def compute(self, size: int, work: Callable[[], _T]) -> _T:
        """Do work on `size` bytes where it stalls nobody."""
        return work() if size <= INLINE_WORK else await self._offload(work)

    def _known(self, provider: str) -> Lane:
        """The lane of a provider, who may have been taken off the list at any moment."""
        if lane := self.lane(provider):
            return lane
        raise ObjectMissingError(provider, "the TOML does not name it, and one of its shares is asked for")

    async def _reported(self, segment: Segment, index: int, read: Callable[[Lane, str], Awaitable[_T]]) -> _T:
        """What `read` reads; a share found bad or missing is told to the board."""
        provider, name = segment.info.shares[index].provider, segment.names[index]
        lane = self._known(provider)
        try:
            return await read(lane, name)
        except (ProviderLiesError, ObjectMissingError) as error:
            self._blame(segment, index, "bad" if isinstance(error, ProviderLiesError) else "missing", error.detail)
            raise
        except FormatError as error:
            self._blame(segment, index, "bad", str(error))
            raise ProviderLiesError(provider, f"share {name}: {error}") from error

    def _blame(self, segment: Segment, index: int, what: str, detail: str) -> None:
        """Tell the board, unless it is known already that the share is not there."""
        if segment.info.shares[index].stored:
            self._board.note_share(share_event(segment, index, what, detail))


def share_event(segment: Segment, index: int, what: str, detail: str) -> ShareEvent:
    """What is pushed about a share; `what` is as in `ShareEvent`."""
    info = segment.info
    return ShareEvent(info.shares[index].provider, segment.names[index], info.id, index, what, detail[:500])


def too_few(segment: Segment, got: int, errors: Mapping[int, IcnfsError]) -> TooFewProvidersError:
    """Why a segment cannot be had."""
    info = segment.info
    why = [str(error) for _, error in sorted(errors.items())]
    why += [f"share {index} is not stored" for index in info.missing() if index not in errors]
    return TooFewProvidersError(
        f"segment {info.id.hex()}: {got} of the {info.k} shares it takes could be read; {'; '.join(why)}"[:1000]
    )


async def _both(first: Callable[[], Awaitable[bytes]], second: Callable[[], Awaitable[bytes]]) -> tuple[bytes, bytes]:
    """Both at once; the first error of the two ends the other, and is raised bare."""
    results: dict[int, bytes] = {}
    failures: list[IcnfsError] = []

    async def run(place: int, call: Callable[[], Awaitable[bytes]], scope: trio.CancelScope) -> None:
        try:
            results[place] = await call()
        except IcnfsError as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 0, first, nursery.cancel_scope)
        nursery.start_soon(run, 1, second, nursery.cancel_scope)
    if failures:
        raise failures[0]
    return results[0], results[1]
