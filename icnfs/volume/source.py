"""Cold reads: a chunk that the local state does not hold, from the providers.

Promises: what it returns is the very chunk that its record names (the caller's `check` opens it), or one `IcnfsError`
by the deadline; a share that gave wrong bytes is distrusted and the range is rebuilt from k others.  It does not know
what the chunk belongs to: who reads a file in order says which chunks come next, and they are fetched in stripes, from
all providers at once (`stripes`); what lies around a small one is read with it (`ahead`).
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from icnfs.errors import DamagedError, IcnfsError, ProviderAwayError
from icnfs.format.records import Location
from icnfs.format.segment import SegmentInfo
from icnfs.volume.ahead import SMALL, Ahead, Window
from icnfs.volume.network import Network
from icnfs.volume.stripes import Stripe, Stripes

log = logging.getLogger(__name__)

STRIPES_AT_ONCE: Final = 18
"""Stripes on their way at a time for one reader; with 4-of-6 each of six lines then has 6.75 MiB to carry, more
than it and its queue hold.  Who reads which share is decided as a stripe begins: one that begins late knows better who
has become slow."""


class _Queue:
    """The stripes that are due for one reader, and room for those that are on their way."""

    def __init__(self) -> None:
        self.due: deque[Stripe] = deque()
        self.room = trio.Semaphore(STRIPES_AT_ONCE)


class ProviderSource:
    """A `ColdSource` for `Store.source`; `segment_of` looks up the `segments` table.

    What nobody waits for yet is fetched in `nursery`.
    """

    def __init__(
        self, network: Network, segment_of: Callable[[bytes], SegmentInfo | None], nursery: trio.Nursery
    ) -> None:
        self._network = network
        self._segment_of = segment_of
        self._nursery = nursery
        self._ahead = Ahead()
        self._stripes = Stripes()
        self._queues: defaultdict[int, _Queue] = defaultdict(_Queue)

    async def fetch(self, version: int, location: Location, check: Callable[[bytes], bool], deadline: float) -> bytes:
        """The sealed chunk that passes `check`, by `deadline` (a trio time).

        Raises `TooFewProvidersError` or `ProviderAwayError` where it cannot be had in time, and `DamagedError` where
        what all the shares say is not the chunk that its record names.
        """
        with trio.move_on_at(deadline):
            sealed = await self._striped(location) or self._ahead.held(location)
            if sealed is not None and check(sealed):
                return sealed
            segment = self._segment(version, location)
            if sealed is None:
                sealed = await self._first(segment, location, deadline)
                if check(sealed):
                    return sealed
            self._ahead.drop(location)
            self._stripes.distrust(location)
            return await self._undamaged(version, segment, location, check, deadline)
        holder = self._segment(version, location).shares[location.share].provider
        raise ProviderAwayError(holder, "neither it nor the others answered in time; try again")

    # --- for who reads in order ---------------------------------------------------------------------------------------

    def room(self, reader: int) -> int:
        """Bytes that may be fetched ahead for a reader now."""
        return self._stripes.room(reader)

    def expect(self, reader: int, locations: Sequence[Location], deadline: float) -> Callable[[], Awaitable[None]]:
        """These will be asked for next, in this order; what is returned fetches them, best effort, by `deadline` (a
        trio time) or, where they have to wait for those before them, so much later; it is to be run once."""
        stripes = self._stripes.want(reader, locations, self._segment_of)
        queue, seconds = self._queues[reader], deadline - trio.current_time()
        queue.due.extend(stripes)

        async def fill() -> None:
            async with trio.open_nursery() as nursery:
                for _ in stripes:
                    nursery.start_soon(self._fill_next, queue, seconds)

        return fill

    def forget(self, reader: int) -> None:
        """What was fetched ahead for a reader is wanted no more."""
        self._stripes.forget(reader)
        self._queues.pop(reader, None)

    async def _fill_next(self, queue: _Queue, seconds: float) -> None:
        """Fetch the stripe that is due first: tasks begin in any order, and stripes are wanted in theirs."""
        async with queue.room:
            await self._fill(queue.due.popleft(), seconds)

    async def _fill(self, stripe: Stripe, seconds: float) -> None:
        segment = stripe.segment
        try:
            with stripe.scope:
                data = await self._network.transfer.fetch_stripe(
                    segment,
                    self._network.names_of(segment),
                    stripe.offset,
                    stripe.length,
                    deadline=seconds,
                )
                self._stripes.keep(stripe, data)
        except IcnfsError as error:
            log.debug("reading ahead in segment %s failed: %s", segment.id.hex(), error)
        finally:
            self._stripes.give_up(stripe)

    async def _striped(self, location: Location) -> bytes | None:
        """The range, if it lies in stripes that have come, or are on their way and come."""
        while (coming := self._stripes.coming(location)) is not None:
            await coming.wait()
        return self._stripes.take(location)

    # --- one by one ---------------------------------------------------------------------------------------------------

    def _segment(self, version: int, location: Location) -> SegmentInfo:
        segment = self._segment_of(location.segment)
        if segment is None or location.share >= segment.k or location.offset + location.length > segment.share_len:
            raise DamagedError(f"version {version} of a chunk is said to lie where nothing can be")
        return segment

    async def _first(self, segment: SegmentInfo, location: Location, deadline: float) -> bytes:
        """The range as its provider gives it, with what lies around it where that is likely to be wanted.

        A window takes several round trips on a connection that has carried little: who wants little of it does not wait
        for the rest.
        """
        self._ahead.want(location)
        try:
            await trio.lowlevel.checkpoint()  # what begins at the same time has its say
            coming = self._ahead.coming(location)
            wanted = self._ahead.window(location, segment.share_len) if coming is None else location
        finally:
            self._ahead.satisfied(location)
        if coming is not None:
            await coming.come.wait()
            if (sealed := self._ahead.held(location)) is not None:
                return sealed  # else the window failed, and may fail again where this range alone does not
        if wanted != location:
            window = self._ahead.ask(wanted)
            if location.length < SMALL:
                self._nursery.start_soon(self._fill_window, segment, window, deadline)
            else:
                await self._fill_window(segment, window, deadline)
                if (sealed := self._ahead.held(location)) is not None:
                    return sealed
        return await self._range(segment, location, frozenset(), deadline)

    async def _fill_window(self, segment: SegmentInfo, window: Window, deadline: float) -> None:
        """Best effort: it may be a task of its own, and no fault of it may end the mount."""
        try:
            self._ahead.keep(window, await self._range(segment, window.location, frozenset(), deadline))
        except IcnfsError as error:
            log.debug("reading around in segment %s failed: %s", segment.id.hex(), error)
        except Exception as fault:
            log.error("reading around failed: %s", type(fault).__name__, exc_info=True)
        finally:
            self._ahead.give_up(window)

    async def _undamaged(
        self, version: int, segment: SegmentInfo, location: Location, check: Callable[[bytes], bool], deadline: float
    ) -> bytes:
        """The range without the share that gave wrong bytes: rebuilt from k others."""
        holder = segment.shares[location.share].provider
        log.warning("provider %s: a share of segment %s is bad", holder, segment.id.hex())
        sealed = await self._range(segment, location, frozenset({location.share}), deadline)
        if check(sealed):
            return sealed
        raise DamagedError(f"version {version} of a chunk is not what any of its shares say it is")

    async def _range(
        self, segment: SegmentInfo, location: Location, distrust: frozenset[int], deadline: float
    ) -> bytes:
        return await self._network.transfer.fetch(
            segment,
            self._network.names_of(segment),
            location.share,
            location.offset,
            location.length,
            distrust=distrust,
            deadline=max(deadline - trio.current_time(), 0.0),
        )
