"""The transfer process: an engine at one end of a socket.

It serves the front's requests, each in a task of its own that ends when the front takes it back, pushes what changes
at the providers, and ends when its socket closes.  It is started by `link.spawn`, and hardened before it reads a byte.
Every failure of a request is an answer; only a front that talks nonsense ends it, for then nothing can be trusted.

Memory: about 40 MiB, 24 MiB for each of the four segments that the front has it store at once (see `upload`), and the
free memory that the heap keeps (`icnfs.process`): under 180 MiB while it publishes.  A test holds it to that.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from icnfs.crypto.hardening import drop_secrets_from_environment, forbid_core_dumps, give_up_privileges
from icnfs.errors import ConfigError, FormatError, IcnfsError
from icnfs.format import segment as segment_format
from icnfs.limits import IN_PLACE_MAX, INLINE_MAX
from icnfs.process import BEHIND, Place, take_place, take_slice, tune
from icnfs.providers.base import Provider
from icnfs.providers.guard import Rates
from icnfs.providers.line import Line
from icnfs.providers.open import ProviderSpec, open_provider
from icnfs.transfer import bulk
from icnfs.transfer.engine import Engine, open_engine
from icnfs.transfer.messages import (
    Cancel,
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
    Hello,
    Limits,
    ListObjects,
    Message,
    Peek,
    Peeked,
    Ping,
    Probe,
    Providers,
    PutObject,
    PutSegment,
    States,
    Stored,
    Work,
    decode_request,
    encode,
    fault_of,
)
from icnfs.transfer.turns import BACKGROUND, turn
from icnfs.transfer.upload import PutResult
from icnfs.transfer.wire import Wire

log = logging.getLogger(__name__)

PUSH_SECONDS: Final = 0.25
"""How long a provider's change of state may take to reach the front."""

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)


@dataclass(frozen=True)
class _Outgoing:
    packet: bytes
    fd: int | None = None


class Opened:
    """The providers that are open, each with what it was opened by, and the lines that their bytes take.

    A provider whose rate or price alone changes stays open, with all that is known of it.
    """

    def __init__(self) -> None:
        self._open: dict[ProviderSpec, Provider] = {}
        self._up, self._down = Line(), Line()
        self._own: dict[Provider, tuple[Line, Line]] = {}
        self._prices: dict[str, float] = {}
        self.rates: dict[str, Rates] = {}
        """By provider."""

    def change(self, specs: Iterable[ProviderSpec], limits: Limits) -> list[Provider]:
        """The providers of `specs`, of which those that are open stay so.  Raises ConfigError, and changes nothing."""
        try:
            bare = {_bare(spec): spec for spec in specs}
            self._open = {key: self._open.get(key) or open_provider(key) for key in bare}
        except ValueError as error:
            raise ConfigError(f"a provider's url {error}") from error
        self._up.rate, self._down.rate = limits.up, limits.down
        self._own = {provider: self._own.get(provider, (Line(), Line())) for provider in self._open.values()}
        self._prices = {spec.name: spec.eur_per_tb_read for spec in bare.values()}
        self.rates = {}
        for key, provider in self._open.items():
            up, down = self._own[provider]
            up.rate, down.rate = bare[key].upload, bare[key].download
            self.rates[key.name] = Rates((up, self._up), (down, self._down))
        return list(self._open.values())

    def price(self, engine: Engine) -> None:
        """Tell the engine what reading from each of them costs."""
        for name, price in self._prices.items():
            engine.board[name].read_price = price


def _bare(spec: ProviderSpec) -> ProviderSpec:
    """What a provider is opened by: all but its rates and its price."""
    return replace(spec, upload=0, download=0, eur_per_tb_read=0.0)


class Session:
    """One front, one engine, and the calls between them."""

    def __init__(self, wire: Wire, engine: Engine, opened: Opened, outbox: trio.MemorySendChannel[_Outgoing]) -> None:
        self._opened = opened
        self._wire = wire
        self._engine = engine
        self._outbox = outbox
        self._calls: dict[int, trio.CancelScope] = {}

    async def serve(self, nursery: trio.Nursery) -> None:
        """Answer requests until the front is gone.  Raises FormatError for what no front sends."""
        while True:
            try:
                packet, fd = await self._wire.receive()
            except trio.EndOfChannel:
                return
            try:
                request = decode_request(packet)
            except FormatError:
                _close(fd)
                raise
            if isinstance(request, Cancel):
                _close(fd)
                if scope := self._calls.pop(request.call, None):
                    scope.cancel()
            elif isinstance(request, Ping):
                _close(fd)
                self._send(Done(request.call))
            elif isinstance(request, Hello) or request.call in self._calls:
                _close(fd)
                raise FormatError("the front repeats itself")
            else:
                scope = self._calls[request.call] = trio.CancelScope()
                nursery.start_soon(self._work, request, fd, scope)

    async def push(self) -> None:
        """Tell the front of every provider whose state has changed, for ever."""
        while True:
            self._tell_news()
            await trio.sleep(PUSH_SECONDS)

    def _tell_news(self) -> None:
        if news := self._engine.board.news(trio.current_time()):
            self._send(States(news))

    async def _work(self, request: Work, fd: int | None, scope: trio.CancelScope) -> None:
        turn.set(request.call)
        with scope:
            try:
                await _HANDLERS[type(request)](self, request, fd)
            except IcnfsError as error:
                self._send(Failed(request.call, fault_of(error)))
            except Exception as error:
                log.exception("a %s request failed", type(request).__name__)
                self._send(Failed(request.call, fault_of(FormatError(f"a fault in transfer: {error!r}"))))
            finally:
                _close(fd)
                self._calls.pop(request.call, None)

    def _send(self, message: Message, fd: int | None = None) -> None:
        try:
            self._outbox.send_nowait(_Outgoing(encode(message), fd))
        except trio.BrokenResourceError:
            _close(fd)

    # --- one method for each kind of request ------------------------------------------------------------------------

    async def _providers(self, request: Providers, fd: int | None) -> None:
        self._engine.set_providers(self._opened.change(request.specs, request.limits), self._opened.rates)
        self._opened.price(self._engine)
        self._send(Done(request.call))

    async def _put_segment(self, request: PutSegment, fd: int | None) -> None:
        if fd is None:
            raise FormatError("a segment came without its payload")
        payload = bulk.view(fd, request.order.k * request.order.share_len)
        result = await self._engine.put_segment(
            request.order, payload, request.only, enough=request.enough, deadline=request.deadline
        )
        self._send(_stored(request.call, result))

    async def _complete_segment(self, request: CompleteSegment, fd: int | None) -> None:
        segment = segment_format.decode(request.segment)
        result = await self._engine.complete_segment(
            segment, request.names, request.missing, request.providers, request.targets, deadline=request.deadline
        )
        self._send(_stored(request.call, result))

    async def _fetch(self, request: Fetch, fd: int | None) -> None:
        data = await self._engine.fetch(
            segment_format.decode(request.segment),
            request.names,
            request.share,
            request.offset,
            request.length,
            distrust=request.distrust,
            verified=request.verified,
            deadline=request.deadline,
        )
        await self._send_data(request.call, [data])

    async def _fetch_stripe(self, request: FetchStripe, fd: int | None) -> None:
        segment = segment_format.decode(request.segment)
        data = await self._engine.fetch_stripe(
            segment, request.names, request.offset, request.length, deadline=request.deadline
        )
        await self._send_data(request.call, data)

    async def _get_segment(self, request: GetSegment, fd: int | None) -> None:
        segment = segment_format.decode(request.segment)
        data = await self._engine.get_segment(segment, request.names, deadline=request.deadline)
        await self._send_data(request.call, data)

    async def _check(self, request: Check, fd: int | None) -> None:
        turn.set(BACKGROUND + request.call)
        segment = segment_format.decode(request.segment)
        looked = await self._engine.check(
            segment, request.names, request.index, request.leaves, deadline=request.deadline
        )
        self._send(Checked(request.call, looked.outcome, looked.bytes, looked.detail[:500]))

    async def _put_object(self, request: PutObject, fd: int | None) -> None:
        data: bytes | memoryview
        if request.data is not None:
            data = request.data
        elif fd is not None:
            data = bulk.view(fd, os.fstat(fd).st_size)
        else:
            raise FormatError("an object came without its bytes")
        await self._engine.put_object(request.provider, request.name, data, new=request.new, deadline=request.deadline)
        self._send(Done(request.call))

    async def _get_object(self, request: GetObject, fd: int | None) -> None:
        data = await self._engine.get_object(
            request.provider, request.name, most=request.most, deadline=request.deadline
        )
        await self._send_data(request.call, [data])

    async def _list_objects(self, request: ListObjects, fd: int | None) -> None:
        names = await self._engine.list_objects(
            request.provider, request.prefix, request.after, page=request.page, deadline=request.deadline
        )
        await self._send_data(request.call, ["".join(f"{name}\n" for name in names).encode()])

    async def _peek(self, request: Peek, fd: int | None) -> None:
        size, head = await self._engine.peek(request.provider, request.name, request.length, deadline=request.deadline)
        self._send(Peeked(request.call, size, head))

    async def _delete_object(self, request: DeleteObject, fd: int | None) -> None:
        kept = await self._engine.delete_object(request.provider, request.name, deadline=request.deadline)
        self._send(Done(request.call, kept))

    async def _probe(self, request: Probe, fd: int | None) -> None:
        try:
            capacity = await self._engine.probe(request.provider, deadline=request.deadline)
        finally:
            self._tell_news()  # whoever hears whether a provider answers is to see it so
        self._send(Facts(request.call, capacity.free_bytes, capacity.total_bytes, capacity.pool[:500]))

    async def _send_data(self, call: int, pieces: list[bytes] | list[memoryview]) -> None:
        size = sum(map(len, pieces))
        if size <= INLINE_MAX:
            self._send(Data(call, size, b"".join(pieces)))
        elif size <= IN_PLACE_MAX:
            self._send(Data(call, size, None), bulk.holding(pieces, "answer"))
        else:
            self._send(Data(call, size, None), await trio.to_thread.run_sync(bulk.holding, pieces, "answer"))


_HANDLERS: Final[dict[type[Work], Callable[[Session, Any, int | None], Awaitable[None]]]] = {
    Providers: Session._providers,
    PutSegment: Session._put_segment,
    CompleteSegment: Session._complete_segment,
    Fetch: Session._fetch,
    FetchStripe: Session._fetch_stripe,
    GetSegment: Session._get_segment,
    Check: Session._check,
    PutObject: Session._put_object,
    GetObject: Session._get_object,
    ListObjects: Session._list_objects,
    Peek: Session._peek,
    DeleteObject: Session._delete_object,
    Probe: Session._probe,
}


async def run(wire: Wire) -> None:
    """Serve one front, from its Hello until it is gone.  Raises FormatError for what no front sends."""
    try:
        packet, fd = await wire.receive()
    except trio.EndOfChannel:
        return
    _close(fd)
    hello = decode_request(packet)
    if not isinstance(hello, Hello):
        raise FormatError("the front does not introduce itself")
    opened = Opened()
    try:
        providers = opened.change(hello.specs, hello.limits)
    except ConfigError as error:
        await wire.send(encode(Failed(hello.call, fault_of(error))))
        return
    outbox, posted = trio.open_memory_channel[_Outgoing](sys.maxsize)
    outbox.send_nowait(_Outgoing(encode(Done(hello.call))))
    async with (
        open_engine(
            providers,
            rates=opened.rates,
            hedge=hello.hedge,
            notify=lambda event: outbox.send_nowait(_Outgoing(encode(event))),
        ) as engine,
        trio.open_nursery() as nursery,
    ):
        opened.price(engine)
        session = Session(wire, engine, opened, outbox)
        nursery.start_soon(_write, wire, posted)
        nursery.start_soon(session.push)
        await session.serve(nursery)
        nursery.cancel_scope.cancel()


async def _write(wire: Wire, posted: trio.MemoryReceiveChannel[_Outgoing]) -> None:
    """Send what is posted, in order.  A front that is gone is for the reader to notice."""
    async for outgoing in posted:
        try:
            await wire.send(outgoing.packet, outgoing.fd)
        except trio.BrokenResourceError:
            return
        finally:
            _close(outgoing.fd)


def main(argv: list[str]) -> int:
    """`python -m icnfs.transfer FD`: serve the front at the other end of that socket; the exit code."""
    if len(argv) != 2 or not argv[1].isdecimal():
        sys.stderr.write("icnfs.transfer is started by icnfs itself\n")
        return 2
    _stand_back()  # hardened, this process may not write its own autogroup unless it is root's
    _harden()
    tune()
    logging.basicConfig(level=logging.INFO, format="icnfs transfer: %(levelname)s: %(message)s")
    end = socket.socket(fileno=int(argv[1]))
    end.set_inheritable(False)
    try:
        trio.run(run, Wire(end))
    except FormatError as error:
        log.error("%s", error)
        return 1
    return 0


def _harden() -> None:
    """No cores, no secrets, no privileges but over files, no terminal's signals; and this process ends when the front
    does."""
    give_up_privileges()
    forbid_core_dumps()
    drop_secrets_from_environment()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")


def _stand_back() -> None:
    """The front's requests come first, and all that people run."""
    take_place(Place(BEHIND, BEHIND))
    take_slice(0)
    with suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _stored(call: int, result: PutResult) -> Stored:
    errors = {index: fault_of(error) for index, error in result.errors.items()}
    return Stored(call, result.roots, errors, tuple(sorted(result.late)))


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
