"""The front's side of transfer: calls that look like any other, over a process that may die at any instant.

Promises:

1. Every call ends soon after its deadline, even when the process is stuck, dead, or cannot be started.
2. A process that ends is logged, counted and replaced, at once the first time, more slowly if it keeps ending.
3. A call that was out at that moment is made once more (all calls are idempotent); then it is given up.
4. A call that is cancelled is taken back: the process stops working on it.

Deadlines are in seconds from the call.  The client holds no keys: its caller makes the names and seals the bytes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import msgspec
import trio

from icnfs.errors import ConfigError, FormatError, IcnfsError, ProviderAwayError, ProviderError
from icnfs.format import segment as segment_format
from icnfs.format.segment import SegmentInfo
from icnfs.limits import IN_PLACE_MAX, INLINE_MAX, OBJECT_MAX
from icnfs.providers.base import Capacity
from icnfs.providers.open import ProviderSpec
from icnfs.transfer import bulk
from icnfs.transfer.checks import Looked
from icnfs.transfer.deadlines import DEFAULT_DEADLINES, Deadlines
from icnfs.transfer.engine import bare_errors
from icnfs.transfer.health import BAD_SHARES_MAX
from icnfs.transfer.lately import LateShares
from icnfs.transfer.link import NO_LIMITS, Link, LinkLostError, spawn
from icnfs.transfer.messages import (
    Answer,
    Check,
    Checked,
    CompleteSegment,
    Data,
    DeleteObject,
    Done,
    Facts,
    Failed,
    Fetch,
    FetchStripe,
    GetObject,
    GetSegment,
    Limits,
    ListObjects,
    Message,
    Order,
    Peek,
    Peeked,
    Probe,
    Providers,
    ProviderState,
    Push,
    PutObject,
    PutSegment,
    ShareEvent,
    Stored,
    error_of,
)
from icnfs.transfer.upload import PutResult

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 3.0
"""What the process gets beyond a call's deadline to say that it has passed."""

BACKOFF_SECONDS: Final = 0.1
BACKOFF_MAX_SECONDS: Final = 10.0
SETTLED_SECONDS: Final = 60.0
"""A process is replaced after BACKOFF_SECONDS, after twice that if the last one did not live SETTLED_SECONDS, ..."""

DEADLINE_MAX: Final = 86_400.0
"""Longer deadlines are cut to this: nothing waits for ever."""

TRIES: Final = 2
"""Processes that one call is given to."""

_A = TypeVar("_A", Done, Data, Stored, Checked, Peeked, Facts)


class TransferClient:
    """Made by `start`.  May be used by many tasks at once."""

    def __init__(self, specs: Sequence[ProviderSpec], deadlines: Deadlines, limits: Limits = NO_LIMITS) -> None:
        self._specs = tuple(specs)
        self._limits = limits
        self._deadlines = deadlines
        self._link: Link | None = None
        self._alive = trio.Event()
        self._refused: ConfigError | None = None
        self._states = {spec.name: ProviderState(spec.name) for spec in specs}
        self._bad: dict[str, set[str]] = {spec.name: set() for spec in specs}
        self._late = LateShares()
        self._changing = trio.Lock()
        self.heard: Callable[[ShareEvent], None] = _ignore
        """Told what becomes of each share that was late when `put_segment` returned: "stored", or "failed"."""
        self.restarts = 0
        """How often the process had to be replaced."""

    @staticmethod
    @asynccontextmanager
    async def start(
        specs: Sequence[ProviderSpec], deadlines: Deadlines = DEFAULT_DEADLINES, *, limits: Limits = NO_LIMITS
    ) -> AsyncIterator[TransferClient]:
        """A client whose process runs and is watched; leaving ends the process.

        Raises ConfigError for a URL that cannot be used, ProviderAwayError where no process starts.
        """
        client = TransferClient(specs, deadlines, limits)
        with bare_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client._supervise)
                try:
                    with trio.move_on_after(client._deadlines.object):
                        await client._living()
                    if client._link is None:
                        raise client._refused or ProviderAwayError("", "the transfer process does not start")
                    yield client
                finally:
                    nursery.cancel_scope.cancel()

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return None if self._link is None else self._link.pid

    def states(self) -> dict[str, ProviderState]:
        """Every provider, as last heard, and all bad shares of this client's life.  Any thread may ask."""
        bad = self._bad
        return {
            name: msgspec.structs.replace(state, bad_shares=len(bad.get(name, ())))
            for name, state in self._states.items()
        }

    async def set_providers(self, specs: Sequence[ProviderSpec], limits: Limits) -> None:
        """From now on talk to these providers, and no others; what is known of those that stay is kept.

        Raises ConfigError for a URL that cannot be used, and then nothing has changed.
        """
        async with self._changing:
            known = {spec.name for spec in self._specs}
            wanted = {spec.name for spec in specs}
            self._know(known | wanted)
            try:
                await self._call(Done, lambda call, left: Providers(call, tuple(specs), limits), self._deadlines.object)
                self._specs, self._limits, known = tuple(specs), limits, wanted
            finally:
                self._know(known)

    def _know(self, names: Collection[str]) -> None:
        """Follow the states of these providers, and of no others."""
        self._states = {name: self._states.get(name) or ProviderState(name) for name in names}
        self._bad = {name: self._bad.get(name, set()) for name in names}

    async def put_segment(
        self,
        id: bytes,
        k: int,
        n: int,
        share_len: int,
        size: int,
        names: Sequence[str],
        providers: Sequence[str],
        payload_fd: int,
        only: Sequence[int] | None = None,
        *,
        enough: int | None = None,
        deadline: float | None = None,
    ) -> PutResult:
        """Code a payload and store its n shares, or those of `only`, at `providers` under `names` (by share index).

        `payload_fd` is a memfd (`bulk.create`) of at least k * share_len bytes; it is sealed here, for good.  What
        cannot be stored is reported by share index, not raised.  Once `enough` shares are stored (all, if None), those
        of slow providers are waited for no longer: they are `late`, and `heard` is told of each later.  Raises
        DamagedError where the coding does not prove right, ProviderAwayError where transfer gave no answer at all.
        """
        order = Order(id, k, n, share_len, size, tuple(names), tuple(providers))
        order.check()
        bulk.seal(payload_fd)
        chosen = None if only is None else tuple(only)
        least = n if enough is None else enough
        with self._late.following(order):
            stored, _, link = await self._answer(
                Stored,
                lambda call, left: PutSegment(call, left, order, chosen, least),
                _or_default(deadline, self._deadlines.write),
                payload_fd,
            )
            stored = self._late.settle(order, stored, alive=not link.lost)
        return self._result(stored, tuple(range(n)) if chosen is None else chosen, names, providers)

    async def complete_segment(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        missing: Sequence[int],
        providers: Sequence[str],
        targets: Sequence[str],
        *,
        deadline: float | None = None,
    ) -> PutResult:
        """Store share `missing[i]` at `providers[i]` as `targets[i]`, read where it is or rebuilt from any k others.

        What cannot be stored is reported by share index.  Raises TooFewProvidersError, DamagedError, or
        ProviderAwayError where the shares cannot be rebuilt.
        """
        encoded, wanted = segment_format.encode(segment), tuple(missing)
        stored = await self._call(
            Stored,
            lambda call, left: CompleteSegment(
                call, left, encoded, tuple(names), wanted, tuple(providers), tuple(targets)
            ),
            _or_default(deadline, self._deadlines.write),
        )
        holders, called = dict(zip(wanted, providers, strict=True)), dict(zip(wanted, targets, strict=True))
        return self._result(
            stored,
            wanted,
            [called.get(index, name) for index, name in enumerate(names)],
            [holders.get(index, "") for index in range(segment.n)],
        )

    async def fetch(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        share: int,
        offset: int,
        length: int,
        *,
        distrust: Collection[int] = frozenset(),
        verified: bool = False,
        deadline: float | None = None,
    ) -> bytes:
        """`length` bytes at `offset` of data share `share`: read from its provider, or rebuilt from any k others.

        What comes from its provider alone is not verified: check the chunk's tag, and where it fails, call again with
        the share in `distrust`.  With `verified` it is: only verified bytes are used.  Raises TooFewProvidersError, or
        ProviderAwayError past the deadline.
        """
        encoded, doubted = segment_format.encode(segment), tuple(sorted(distrust))
        data = await self._call_data(
            lambda call, left: Fetch(call, left, encoded, tuple(names), share, offset, length, doubted, verified),
            _or_default(deadline, self._deadlines.read),
        )
        if len(data) != length:
            raise FormatError(f"transfer answered {len(data)} bytes where {length} were asked")
        return data

    async def fetch_stripe(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        offset: int,
        length: int,
        *,
        deadline: float | None = None,
    ) -> memoryview:
        """`length` bytes at `offset` of each of the k data shares, one after another, not verified: see `fetch`.

        They stay where transfer put them, mapped as long as the view is.
        """
        encoded = segment_format.encode(segment)
        _, data, _ = await self._answer(
            Data,
            lambda call, left: FetchStripe(call, left, encoded, tuple(names), offset, length),
            _or_default(deadline, self._deadlines.read),
            None,
        )
        if len(data) != segment.k * length:
            raise FormatError(f"transfer answered {len(data)} bytes where {segment.k * length} were asked")
        return data

    async def get_segment(self, segment: SegmentInfo, names: Sequence[str], *, deadline: float | None = None) -> bytes:
        """The payload, k * share_len bytes, verified.  Raises as `fetch` does."""
        encoded = segment_format.encode(segment)
        return await self._call_data(
            lambda call, left: GetSegment(call, left, encoded, tuple(names)),
            _or_default(deadline, self._deadlines.read),
        )

    async def check(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        index: int,
        leaves: Sequence[int] | None = (),
        *,
        deadline: float | None = None,
    ) -> Looked:
        """Whether a share is still what was stored: see `checks`.

        Raises ProviderAwayError where transfer gave no answer at all: of the provider that says nothing.
        """
        encoded = segment_format.encode(segment)
        chosen = None if leaves is None else tuple(leaves)
        checked = await self._call(
            Checked,
            lambda call, left: Check(call, left, encoded, tuple(names), index, chosen),
            _or_default(deadline, self._deadlines.read),
        )
        return Looked(checked.outcome, checked.bytes, checked.detail)

    async def put_object(
        self, provider: str, name: str, data: bytes, *, new: bool = False, deadline: float | None = None
    ) -> None:
        """Store an object.  Raises ProviderError: NameTakenError where it is `new` and other bytes have its name."""
        seconds = _or_default(deadline, self._deadlines.object)
        if len(data) <= INLINE_MAX:
            await self._call(Done, lambda call, left: PutObject(call, left, provider, name, data, new), seconds)
            return
        with bulk.closing(await trio.to_thread.run_sync(bulk.holding, [data], "object")) as fd:
            await self._call(Done, lambda call, left: PutObject(call, left, provider, name, None, new), seconds, fd)

    async def get_object(
        self, provider: str, name: str, *, most: int = OBJECT_MAX, deadline: float | None = None
    ) -> bytes:
        """A whole object, of at most `most` bytes.  Raises ProviderError."""
        seconds = _or_default(deadline, self._deadlines.object)
        return await self._call_data(lambda call, left: GetObject(call, left, provider, name, most), seconds)

    async def list_objects(
        self, provider: str, prefix: str, after: str = "", *, page: bool = False, deadline: float | None = None
    ) -> list[str]:
        """Every name under `prefix` after `after`, sorted, or a `page` of them.  Raises ProviderError."""
        seconds = _or_default(deadline, self._deadlines.object)
        data = await self._call_data(lambda call, left: ListObjects(call, left, provider, prefix, after, page), seconds)
        if not data.isascii():
            raise FormatError("transfer lists names that no object can have")
        return data.decode("ascii").splitlines()

    async def peek(self, provider: str, name: str, length: int, *, deadline: float | None = None) -> tuple[int, bytes]:
        """An object's size, and up to `length` bytes of its beginning.  Raises ProviderError."""
        peeked = await self._ask(Peeked, lambda call, left: Peek(call, left, provider, name, length), deadline)
        return peeked.size, peeked.head

    async def delete_object(self, provider: str, name: str, *, deadline: float | None = None) -> bool:
        """Delete an object; a missing one is no error.  True where the provider keeps it.  Raises ProviderError."""
        return (await self._ask(Done, lambda call, left: DeleteObject(call, left, provider, name), deadline)).kept

    async def probe(self, provider: str, *, deadline: float | None = None) -> Capacity:
        """Ask a provider how it is, now.  Raises ProviderError."""
        facts = await self._ask(Facts, lambda call, left: Probe(call, left, provider), deadline)
        return Capacity(facts.free_bytes, facts.total_bytes, facts.pool)

    # --- calls --------------------------------------------------------------------------------------------------------

    async def _call_data(self, make: Callable[[int, float], Message], deadline: float) -> bytes:
        _, data, _ = await self._answer(Data, make, deadline, None)
        return bytes(data) if len(data) <= IN_PLACE_MAX else await trio.to_thread.run_sync(bytes, data)

    async def _ask(self, kind: type[_A], make: Callable[[int, float], Message], deadline: float | None) -> _A:
        return await self._call(kind, make, _or_default(deadline, self._deadlines.object))

    async def _call(
        self, kind: type[_A], make: Callable[[int, float], Message], deadline: float, fd: int | None = None
    ) -> _A:
        answer, _, _ = await self._answer(kind, make, deadline, fd)
        return answer

    async def _answer(
        self, kind: type[_A], make: Callable[[int, float], Message], deadline: float, fd: int | None
    ) -> tuple[_A, memoryview, Link]:
        """The answer of the kind that the request is owed, and who gave it; raises the error that it got instead."""
        answer, data, link = await self._deliver(make, deadline, fd)
        if isinstance(answer, Failed):
            raise error_of(answer.fault)
        if not isinstance(answer, kind):
            raise FormatError(f"transfer answered {type(answer).__name__} where {kind.__name__} was due")
        return answer, data, link

    async def _deliver(
        self, make: Callable[[int, float], Message], deadline: float, fd: int | None
    ) -> tuple[Answer, memoryview, Link]:
        until = trio.current_time() + min(deadline, DEADLINE_MAX)
        with trio.move_on_at(until + GRACE_SECONDS):
            for _ in range(TRIES):
                link = await self._living()
                try:
                    return *(await link.call(lambda call: make(call, max(0.0, until - trio.current_time())), fd)), link
                except LinkLostError:
                    continue
            raise ProviderAwayError("", f"the transfer process ended {TRIES} times under one request; try again")
        raise ProviderAwayError("", f"the transfer process did not answer within {deadline:.0f} s")

    def _result(
        self, stored: Stored, wanted: Sequence[int], names: Sequence[str], providers: Sequence[str]
    ) -> PutResult:
        errors: dict[int, ProviderError] = {}
        for index, fault in stored.errors.items():
            error = error_of(fault)
            errors[index] = error if isinstance(error, ProviderError) else ProviderAwayError(fault.provider, str(error))
        if len(stored.roots) != len(names):
            raise FormatError(f"transfer answered {len(stored.roots)} roots for {len(names)} shares")
        for index in set(wanted) - errors.keys() - set(stored.late):
            self._bad.get(providers[index], set()).discard(names[index])
        return PutResult(stored.roots, errors, frozenset(stored.late))

    # --- the process --------------------------------------------------------------------------------------------------

    async def _living(self) -> Link:
        """The link to a process that lives; waits for one."""
        while self._link is None:
            await self._alive.wait()
            if self._refused is not None:
                raise self._refused
        return self._link

    async def _supervise(self) -> None:
        """Keep a process running until cancelled."""
        backoff = BACKOFF_SECONDS
        while self._refused is None:
            begun = trio.current_time()
            try:
                await self._live()
            except OSError as error:
                log.error("the transfer process cannot be started: %s", error)
            self.restarts += 1
            backoff = BACKOFF_SECONDS if trio.current_time() > begun + SETTLED_SECONDS else backoff
            await trio.sleep(backoff)
            backoff = min(2 * backoff, BACKOFF_MAX_SECONDS)

    async def _live(self) -> None:
        """One life of the process, from its start to its end.  Raises OSError where it cannot be started."""
        link = Link(*spawn())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._introduce, link)
            try:
                await link.run(self._pushed, self._lost)
            finally:
                nursery.cancel_scope.cancel()
        log.warning("the transfer process %d is gone: %s; what it was asked is asked again", link.pid, link.end)

    def _lost(self) -> None:
        """The process is gone, and its late shares with it.

        One that never introduced itself leaves the event to those who wait on it.
        """
        self._link = None
        for event in self._late.lost():
            self.heard(event)
        if self._alive.is_set():
            self._alive = trio.Event()

    async def _introduce(self, link: Link) -> None:
        try:
            await link.hello(self._specs, self._deadlines.hedge, self._limits)
        except LinkLostError:
            return
        except IcnfsError as error:
            self._refused = error if isinstance(error, ConfigError) else ConfigError(str(error))
        else:
            if link.lost:
                return
            self._link = link
            log.info("the transfer process %d has started", link.pid)
        self._alive.set()

    def _pushed(self, push: Push) -> None:
        """A state or an event, unasked.  What it says of providers that nobody knows is dropped."""
        if isinstance(push, ShareEvent):
            if push.what not in ("stored", "failed"):
                self._heard(push)
            elif self._late.ended(push):
                if push.what == "stored":
                    self._bad.get(push.provider, set()).discard(push.name)
                self.heard(push)
            return
        for state in push.states:
            if known := self._states.get(state.name):
                if change := state.change_from(known):
                    log.warning("provider %s %s", state.name, change)
                self._states[state.name] = state

    def _heard(self, event: ShareEvent) -> None:
        bad = self._bad.get(event.provider)
        if bad is None:
            return
        if event.what == "mended":
            bad.discard(event.name)
            log.info("provider %s: share %s is mended: %s", event.provider, event.name, event.detail)
        elif event.name not in bad and len(bad) < BAD_SHARES_MAX:
            bad.add(event.name)
            log.warning("provider %s: share %s is %s: %s", event.provider, event.name, event.what, event.detail)
            self.heard(event)


def _ignore(event: ShareEvent) -> None:
    """Nobody listens."""


def _or_default(deadline: float | None, default: float) -> float:
    return default if deadline is None else deadline
