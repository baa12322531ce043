"""The transfer engine: everything that is done with providers, over Provider objects, without processes or sockets.

Promises:

1. Every call ends by its deadline, whatever the providers do.
2. A provider that hangs, lies or is gone costs the others nothing; n - k of them cost no read its success.
3. Nothing unverified is decoded, and a share found bad is named once, with its provider.
4. It holds no volume key: it sees ciphertext, roots, and names that mean nothing.

It runs in the transfer process, and in process in tests, under trio's virtual time (with `in_place` as its offload).
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

import trio

from icnfs.errors import FormatError, IcnfsError, ProviderAwayError, ProviderRefusedError
from icnfs.format.segment import SegmentInfo
from icnfs.limits import HEDGE_SECONDS, OBJECT_MAX
from icnfs.providers.base import Buffer, Capacity, Provider
from icnfs.providers.guard import Rates
from icnfs.transfer import checks, upload
from icnfs.transfer import fetch as fetching
from icnfs.transfer.checks import Looked
from icnfs.transfer.health import Board
from icnfs.transfer.lane import Lane
from icnfs.transfer.late import Late
from icnfs.transfer.messages import Order, ProviderState, ShareEvent
from icnfs.transfer.shares import Offload, Segment, Shares
from icnfs.transfer.upload import PutResult

log = logging.getLogger(__name__)

AUDIT_SECONDS: Final = 30.0
AUDITS: Final = 8
"""How long, and how many at once, distrusted shares are checked beside the reads that distrust them."""

CODERS: Final = max(1, (os.cpu_count() or 1) // 2)
"""Threads that code and hash, 250 MB/s each, and let go of the interpreter lock.  More take cores from the front: with
two of them on two cores publishing is no faster, and the requests beside it are slower."""

NO_RATES: Final[Mapping[str, Rates]] = {}

_T = TypeVar("_T")


async def in_place(work: Callable[[], _T]) -> _T:
    """Compute without a thread: for tests in virtual time, where no clock waits for a thread."""
    await trio.lowlevel.checkpoint()
    return work()


class Threads:
    """Compute in at most CODERS threads; cancelling waits for the piece of work that runs."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(CODERS)

    async def __call__(self, work: Callable[[], _T], /) -> _T:
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _ignore(event: ShareEvent) -> None:
    """Nobody listens."""


class Engine:
    """All providers of one volume.  Made by `open_engine`; deadlines are in seconds from the call."""

    def __init__(
        self,
        providers: Iterable[Provider],
        nursery: trio.Nursery,
        *,
        hedge: float = HEDGE_SECONDS,
        offload: Offload | None = None,
        notify: Callable[[ShareEvent], None] = _ignore,
        rates: Mapping[str, Rates] = NO_RATES,
    ) -> None:
        self.board = Board([], notify, hedge)
        self.late = Late(nursery, notify)
        self._lanes: dict[str, Lane] = {}
        self._shares = Shares(self._lanes, self.board, offload or Threads())
        self._nursery = nursery
        self._now = trio.lowlevel.current_clock().current_time  # unlike trio's own, for every thread
        self._watched = False
        self._watches: defaultdict[Lane, trio.CancelScope] = defaultdict(trio.CancelScope)
        self.set_providers(providers, rates)
        self._audits = 0

    def set_providers(self, providers: Iterable[Provider], rates: Mapping[str, Rates] = NO_RATES) -> None:
        """From now on talk to these, and no others; `rates` are by name.

        One that is there already stays as it is, with what is known of it.  One that is not among them is closed once
        nothing is asked of it any more.
        """
        wanted = {provider.name: provider for provider in providers}
        for name, lane in list(self._lanes.items()):
            if wanted.get(name) is not lane.provider:
                del self._lanes[name]
                self.board.remove(name)
                self._watches.pop(lane, trio.CancelScope()).cancel()
                lane.retired = True
                self._nursery.start_soon(lane.retire)
        for name, provider in wanted.items():
            if name not in self._lanes:
                self._lanes[name] = Lane(provider, self.board.add(name), rates.get(name))
                if self._watched:
                    self._nursery.start_soon(self._watch_one, self._lanes[name])

    def states(self) -> dict[str, ProviderState]:
        """Every provider as it is known now."""
        return self.board.states(self._now())

    async def put_segment(
        self,
        order: Order,
        payload: memoryview,
        only: Sequence[int] | None = None,
        *,
        enough: int | None = None,
        deadline: float,
    ) -> PutResult:
        """Code `payload` (k * share_len bytes), prove that it decodes, store all n shares or those of `only`.

        What cannot be stored by the deadline is reported by share index, not raised.  Once `enough` are stored (all, if
        None) slow providers are waited for no longer: see `late`.  Raises FormatError for an order
        that contradicts itself or the payload, DamagedError where the coding does not prove right.
        """
        order.check()
        if len(payload) != order.k * order.share_len or any(index >= order.n for index in only or ()):
            raise FormatError("a segment's payload or shares are not what its order says")
        until = trio.current_time() + deadline
        least = order.n if enough is None else enough
        return await upload.put_segment(self._shares, self.late, order, payload, only, least, until)

    async def complete_segment(
        self,
        info: SegmentInfo,
        names: Sequence[str],
        missing: Sequence[int],
        providers: Sequence[str],
        targets: Sequence[str],
        *,
        deadline: float,
    ) -> PutResult:
        """Store share `missing[i]` at `providers[i]` as `targets[i]`, read where it is or rebuilt from any k others.

        Raises TooFewProvidersError, DamagedError or ProviderAwayError where they cannot be rebuilt; what cannot be
        stored is reported by share index.
        """
        if not len(missing) == len(providers) == len(targets) or any(index >= info.n for index in missing):
            raise FormatError("the shares to complete do not fit their segment or their providers")
        return await upload.complete_segment(
            self._shares,
            self.late,
            Segment(info, tuple(names)),
            missing,
            providers,
            targets,
            trio.current_time() + deadline,
        )

    async def fetch(
        self,
        info: SegmentInfo,
        names: Sequence[str],
        share: int,
        offset: int,
        length: int,
        *,
        distrust: Collection[int] = (),
        verified: bool = False,
        deadline: float,
    ) -> bytes:
        """A range of one data share (see `fetch.fetch`); shares of `distrust` are checked, and named if bad.

        Raises TooFewProvidersError, or ProviderAwayError past the deadline.
        """
        segment = Segment(info, tuple(names))
        if any(index >= info.n for index in distrust):
            raise FormatError("a share is distrusted that its segment does not have")
        self._audit(segment, distrust, share, offset, length)
        return await self._within(
            deadline,
            info.shares[share].provider if share < info.n else "",
            lambda: fetching.fetch(self._shares, segment, share, offset, length, distrust=distrust, verified=verified),
        )

    async def fetch_stripe(
        self, info: SegmentInfo, names: Sequence[str], offset: int, length: int, *, deadline: float
    ) -> list[memoryview]:
        """The same range of all k data shares (see `fetch.fetch_stripe`).

        Raises TooFewProvidersError, or ProviderAwayError past the deadline.
        """
        segment = Segment(info, tuple(names))
        return await self._within(deadline, "", lambda: fetching.fetch_stripe(self._shares, segment, offset, length))

    async def get_segment(self, info: SegmentInfo, names: Sequence[str], *, deadline: float) -> list[memoryview]:
        """The k data shares, verified.  Raises TooFewProvidersError, or ProviderAwayError past the deadline."""
        segment = Segment(info, tuple(names))
        return await self._within(deadline, "", lambda: fetching.get_segment(self._shares, segment))

    async def check(
        self, info: SegmentInfo, names: Sequence[str], index: int, leaves: Sequence[int] | None, *, deadline: float
    ) -> Looked:
        """Whether a share is still what was stored; see `checks`."""
        until = trio.current_time() + deadline
        return await checks.check(self._shares, Segment(info, tuple(names)), index, leaves, until)

    async def put_object(self, provider: str, name: str, data: Buffer, *, new: bool = False, deadline: float) -> None:
        """Store an object; with `new` only where no other bytes have that name.  Raises ProviderError."""
        if len(data) > OBJECT_MAX:
            raise ProviderRefusedError(provider, f"an object of {len(data)} bytes is larger than any may be")
        lane = self._lane(provider)
        await self._within(deadline, provider, lambda: (lane.put_new if new else lane.put)(name, data))

    async def get_object(self, provider: str, name: str, *, most: int = OBJECT_MAX, deadline: float) -> bytes:
        """A whole object.  Raises ProviderError: ProviderLiesError where it has more than `most` bytes."""
        return await self._within(deadline, provider, lambda: self._lane(provider).read_object(name, most))

    async def list_objects(
        self, provider: str, prefix: str, after: str = "", *, page: bool = False, deadline: float
    ) -> list[str]:
        """Every name under `prefix` that sorts after `after`, sorted; with `page` the first LIST_PAGE of them.

        Raises ProviderError.
        """
        lane = self._lane(provider)
        return await self._within(
            deadline, provider, lambda: (lane.list_page if page else lane.list_all)(prefix, after)
        )

    async def peek(self, provider: str, name: str, length: int, *, deadline: float) -> tuple[int, bytes]:
        """An object's size, and up to `length` bytes of its beginning.  Raises ProviderError."""
        return await self._within(deadline, provider, lambda: self._lane(provider).peek(name, length))

    async def delete_object(self, provider: str, name: str, *, deadline: float) -> bool:
        """Delete an object; a missing one is no error.  True where the provider keeps it.  Raises ProviderError."""
        return await self._within(deadline, provider, lambda: self._lane(provider).delete(name))

    async def probe(self, provider: str, *, deadline: float) -> Capacity:
        """Ask a provider how it is, now.  Raises ProviderError."""
        return await self._within(deadline, provider, lambda: self._lane(provider).probe())

    def watch(self) -> None:
        """From now on probe every provider by itself, so that `states` is true of those that nobody asks anything."""
        self._watched = True
        for lane in self._lanes.values():
            self._nursery.start_soon(self._watch_one, lane)

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.close()

    async def _watch_one(self, lane: Lane) -> None:
        with self._watches[lane]:
            await lane.watch()

    def _lane(self, provider: str) -> Lane:
        if lane := self._lanes.get(provider):
            return lane
        raise ProviderRefusedError(provider, "the TOML does not name it")

    async def _within(self, deadline: float, provider: str, call: Callable[[], Awaitable[_T]]) -> _T:
        with trio.move_on_after(deadline):
            return await call()
        raise ProviderAwayError(provider, f"no answer within {deadline:.1f} s, nor enough from the others; try again")

    def _audit(self, segment: Segment, distrust: Collection[int], share: int, offset: int, length: int) -> None:
        """Find out whether the share that was read in vain is bad, so that it can be named."""
        info = segment.info
        if share not in distrust or not length or not info.shares[share].stored or self._audits >= AUDITS:
            return
        self._audits += 1
        self._nursery.start_soon(self._audit_one, segment, share, offset, length)

    async def _audit_one(self, segment: Segment, share: int, offset: int, length: int) -> None:
        try:
            with trio.move_on_after(AUDIT_SECONDS):
                await self._shares.read_range(segment, share, offset, length)
        except IcnfsError as error:
            log.debug("a distrusted share is bad: %s", error)
        finally:
            self._audits -= 1


@asynccontextmanager
async def open_engine(
    providers: Iterable[Provider],
    *,
    hedge: float = HEDGE_SECONDS,
    offload: Offload | None = None,
    notify: Callable[[ShareEvent], None] = _ignore,
    watch: bool = True,
    rates: Mapping[str, Rates] = NO_RATES,
) -> AsyncIterator[Engine]:
    """An engine at work; `watch` has it probe providers by itself.  Leaving cancels what it still does."""
    with bare_errors():
        async with trio.open_nursery() as nursery:
            engine = Engine(providers, nursery, hedge=hedge, offload=offload, notify=notify, rates=rates)
            if watch:
                engine.watch()
            try:
                yield engine
            finally:
                nursery.cancel_scope.cancel()
                with trio.move_on_after(1.0, shield=True):
                    await engine.close()


@contextmanager
def bare_errors() -> Iterator[None]:
    """A nursery's group of one error comes out as that error: who uses background tasks need not know of them."""
    try:
        yield
    except BaseExceptionGroup as group:
        only: BaseException = group
        while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
            only = only.exceptions[0]
        if isinstance(only, BaseExceptionGroup):
            raise
        raise only from only.__cause__
