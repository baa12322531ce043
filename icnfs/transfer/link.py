"""The front's end of one life of the transfer process: start it, talk to it, notice its death, see it buried.

The process is a fresh interpreter in a session of its own (no terminal's signal reaches it), is given one socket and an
environment without secrets, and dies with this process.  Linux shares processors out among sessions first (sched(7),
autogroup), so it puts its own behind (`process.take_place`): as it is it would claim as much as all requests.  A link
lives exactly as long as its process: whatever ends it (death, silence, or a message that no honest process sends)
kills the process and fails every call that is still out with LinkLostError.  It does not start another: `client` does.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

import icnfs
from icnfs.errors import FormatError
from icnfs.providers.open import ProviderSpec
from icnfs.transfer import bulk
from icnfs.transfer.messages import (
    Answer,
    Call,
    Cancel,
    Data,
    Done,
    Failed,
    Hello,
    Limits,
    Message,
    Ping,
    Push,
    ShareEvent,
    States,
    decode_reply,
    decode_request,
    encode,
    error_of,
)
from icnfs.transfer.wire import Wire, socket_pair

log = logging.getLogger(__name__)

PING_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 30.0
"""A process that has not answered a ping by then is stuck, and is killed."""

FAREWELL_SECONDS: Final = 2.0
"""How long a process may take to end when its socket has closed, before it is killed."""

_ENVIRONMENT: Final = frozenset(
    {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    | {"HOME", "AWS_SHARED_CREDENTIALS_FILE", "CREDENTIALS_DIRECTORY"}
)
"""What of the environment is handed on: nothing that could hold a secret, but where providers' keys may be."""


NO_LIMITS: Final = Limits()


class LinkLostError(Exception):
    """The process died while the call was out; the call may or may not have taken effect."""


@dataclass
class _Waiting:
    """A call that is out."""

    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None
    fd: int | None = None


@dataclass(frozen=True)
class _Outgoing:
    call: int
    packet: bytes
    fd: int | None


def spawn() -> tuple[Wire, subprocess.Popen[bytes]]:
    """Start a transfer process.  Raises OSError.

    Called on the main thread, for the kernel ends the child when the thread that started it ends (PR_SET_PDEATHSIG).
    """
    ours, theirs = socket_pair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "icnfs.transfer", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    return Wire(ours), process


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in _ENVIRONMENT}
    return kept | {"PYTHONPATH": str(Path(icnfs.__path__[0]).parent)}


class Link:
    """One life of the process, from `spawn` to its end."""

    def __init__(self, wire: Wire, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self.end = "it ended"
        self._wire = wire
        self._waiting: dict[int, _Waiting] = {}
        self._calls = 0
        self._outbox: deque[_Outgoing] = deque()
        self._posted = trio.Event()
        self.lost = False
        """Whether no call can be answered any more."""

    async def run(self, pushed: Callable[[Push], None], lost: Callable[[], None]) -> None:
        """Carry messages until the process ends; it is dead, or beyond any signal, when this returns or raises.

        `lost` is called once no call can be answered any more, before the calls that are out hear of it.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch, nursery.cancel_scope)
                await self._read(pushed)
                nursery.cancel_scope.cancel()
        finally:
            lost()
            self._lose()
            with trio.CancelScope(shield=True):
                await self._bury()

    async def hello(self, specs: Sequence[ProviderSpec], hedge: float, limits: Limits = NO_LIMITS) -> None:
        """Tell a new process whom it talks to.  Raises LinkLostError, or ConfigError for a URL it cannot use."""
        answer, _ = await self.call(lambda call: Hello(call, tuple(specs), hedge, limits))
        if isinstance(answer, Failed):
            raise error_of(answer.fault)

    async def call(self, make: Callable[[Call], Message], fd: int | None = None) -> tuple[Answer, memoryview]:
        """Send a request, and `fd` with it; its answer, and the bytes that an answer of Data carries, mapped.

        Cancelling this takes the request back.  Raises LinkLostError, and FormatError for a request that the process
        would not take: it would end over it, and with it every other call.
        """
        if self.lost:
            raise LinkLostError
        self._calls += 1
        call = self._calls
        packet = encode(make(call))
        decode_request(packet)
        waiting = self._waiting[call] = _Waiting()
        self._post(_Outgoing(call, packet, None if fd is None else os.dup(fd)))
        try:
            await waiting.done.wait()
            if waiting.answer is None:
                raise LinkLostError
            return waiting.answer, _bytes_of(waiting)
        finally:
            self._waiting.pop(call, None)
            if waiting.fd is not None:
                os.close(waiting.fd)
            if not waiting.done.is_set():
                self._take_back(call)

    def _post(self, outgoing: _Outgoing) -> None:
        self._outbox.append(outgoing)
        self._posted.set()

    def _take_back(self, call: int) -> None:
        for outgoing in self._outbox:
            if outgoing.call == call:
                self._outbox.remove(outgoing)
                _close(outgoing.fd)
                return
        self._post(_Outgoing(0, encode(Cancel(call)), None))

    async def _write(self) -> None:
        """Send what is posted, in order.  A broken socket is for the reader to notice."""
        try:
            while True:
                while self._outbox:
                    outgoing = self._outbox.popleft()
                    try:
                        await self._wire.send(outgoing.packet, outgoing.fd)
                    finally:
                        _close(outgoing.fd)
                self._posted = trio.Event()
                await self._posted.wait()
        except trio.BrokenResourceError:
            return

    async def _read(self, pushed: Callable[[Push], None]) -> None:
        try:
            while True:
                packet, fd = await self._wire.receive()
                try:
                    reply = decode_reply(packet)
                except BaseException:
                    _close(fd)
                    raise
                if isinstance(reply, (States, ShareEvent)):
                    _close(fd)
                    pushed(reply)
                else:
                    self._deliver(reply, fd)
        except trio.EndOfChannel:
            return
        except FormatError as error:
            self.end = f"it was ended: {error}"

    def _deliver(self, answer: Answer, fd: int | None) -> None:
        waiting = self._waiting.get(answer.call)
        if waiting is None or waiting.done.is_set():
            _close(fd)
            return
        waiting.answer, waiting.fd = answer, fd
        waiting.done.set()

    async def _watch(self, scope: trio.CancelScope) -> None:
        """End the link when the process is silent."""
        while True:
            await trio.sleep(PING_SECONDS)
            with trio.move_on_after(SILENCE_SECONDS) as patience:
                answer, _ = await self.call(Ping)
                if not isinstance(answer, Done):
                    self.end = "it was ended: it does not know a ping"
                    break
            if patience.cancelled_caught:
                self.end = f"it was ended: silent for {SILENCE_SECONDS:.0f} s"
                break
        scope.cancel()

    def _lose(self) -> None:
        self.lost = True
        self._wire.close()
        for waiting in self._waiting.values():
            waiting.done.set()
        for outgoing in self._outbox:
            _close(outgoing.fd)
        self._outbox.clear()

    async def _bury(self) -> None:
        """Wait for the process's end, then make it so.  One stuck in the kernel stays behind: no signal reaches it."""
        pidfd = os.pidfd_open(self.pid)
        try:
            for last_words in (self._wire.close, self.process.kill):
                last_words()
                with trio.move_on_after(FAREWELL_SECONDS):
                    await trio.lowlevel.wait_readable(pidfd)
                    break
        finally:
            os.close(pidfd)
        code = self.process.poll()
        if code is not None and self.end == "it ended":
            self.end = f"it was killed by signal {-code}" if code < 0 else f"it ended with code {code}"


def _bytes_of(waiting: _Waiting) -> memoryview:
    """The bytes that the answer carries inside or beside it.  Raises FormatError for a memfd that is unsound."""
    answer = waiting.answer
    if not isinstance(answer, Data):
        return memoryview(b"")
    if answer.data is not None:
        return memoryview(answer.data)
    if waiting.fd is None:
        raise FormatError("transfer answered with bytes beside the message, and sent none")
    return bulk.view(waiting.fd, answer.size)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
