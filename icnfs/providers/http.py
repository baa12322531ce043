"""HTTP/1.1 requests that can be cancelled: the standard library's client, in threads, on kept connections.

Promises: no redirect is followed, no proxy asked, no request sent twice but one that met a connection which the server
had closed while it lay idle; a body is read up to a bound and no further; TLS is verified, always.  A call that is
cancelled has its connection cut, at once or, where the answer to a get has begun, after ENDING_SECONDS; that ends its
thread: threads are lost to nothing but a resolver that hangs.  It knows nothing of what is asked.

Why threads: they read and write TLS three times as fast as httpx does on trio (see `s3`).
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from icnfs.limits import KIB

CONNECT_SECONDS: Final = 10.0
STALL_SECONDS: Final = 30.0
"""Without a byte in either direction for so long a request has failed, whether or not somebody waits for it."""

IDLE_SECONDS: Final = 60.0
"""A connection that was not used for longer is not used again: most servers have closed it by then, and what lies
between may have forgotten it.  One that was closed is noticed at once and costs nothing."""

CONNECTIONS: Final = 40
"""At one provider: more than the requests that may be in flight there, so that none waits for those just cancelled."""

ENDING_SECONDS: Final = 0.25
"""A get that is cancelled while its answer comes may come to its end for so long.  Reads are given up because others
were faster, and most of the answer is on its way by then; what is asked over a new connection, after one was cut, takes
several times as long, and is late in its turn.  Six lines of 25 MB/s and 40 ms gave 0.73 of their rate to readers of
files over connections in use, and 0.77 with this (medians of eight files).
"""

PIECE: Final = 256 * KIB
"""Bytes of a body that are handed to the system, and counted, at once."""

CHUNK_LEAST: Final = 256
CHUNKS_FREE: Final = 1000
"""An answer in chunks may have so many, and one more for each CHUNK_LEAST bytes: each costs time and memory."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whom to ask."""

    secure: bool
    host: str
    port: int
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One request; `headers` without Host, and with Content-Length where there is a body."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: Sequence[bytes | memoryview] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.  `whole` is False where the body went on after the bytes that were wanted of it."""

    status: int
    headers: Mapping[str, str]
    """With lower-case keys; of repeated ones the last."""
    body: bytes
    whole: bool


class AuthoritiesError(Exception):
    """The file of authorities cannot be used: why not."""


class _Call:
    """The socket that a call is using, as the one thing that another thread may do something to: cut it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_cut = False
        self.ending = False
        """Whether it is a get whose answer has begun."""

    def hold(self, held: socket.socket | None) -> None:
        with self._lock:
            if self.is_cut and held is not None:
                held.close()
                raise ConnectionAbortedError("the call was cancelled")
            self._socket = held

    def unacknowledged(self) -> int:
        """Bytes that were sent and have not arrived yet, as far as the system knows."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._socket is not None:
                return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0])
        return 0

    def cut(self) -> None:
        with self._lock:
            self.is_cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # past SSLSocket's own, which would pull its state from under a read
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    async def cut_later(self) -> None:
        try:
            await trio.sleep(ENDING_SECONDS)
        finally:
            self.cut()


class _Connection(http.client.HTTPConnection):
    """One connection; `call` is whose it is while it is used."""

    def __init__(self, origin: Origin, context: ssl.SSLContext | None) -> None:
        super().__init__(origin.host, origin.port)
        self.default_port = 443 if origin.secure else 80
        self._context = context
        self.call = _Call()
        self.idle_since = 0.0

    def connect(self) -> None:
        self.sock = self._dial()
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)
            self.call.hold(self.sock)
        self.sock.settimeout(STALL_SECONDS)

    def _dial(self) -> socket.socket:
        failed: OSError = OSError(f"{self.host} has no address")
        until = time.monotonic() + CONNECT_SECONDS
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, 0, socket.SOCK_STREAM):
            made = socket.socket(family, kind, protocol)
            try:
                self.call.hold(made)
                made.settimeout(max(1.0, until - time.monotonic()))
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.connect(address)
            except OSError as error:
                self.call.hold(None)
                made.close()
                failed = error
                if self.call.is_cut:
                    break
            else:
                return made
        raise failed


class HttpClient:
    """Requests to one origin.  Methods may be called from many tasks at once."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self._limiter = trio.CapacityLimiter(CONNECTIONS)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._context: ssl.SSLContext | None = None
        self._authorities: _File | None = None
        """The file that it was made of."""
        self._closed = False
        self._calls: set[_Call] = set()
        self._given = self._arrived = 0
        """Bytes of bodies: handed to the system, and of those what had arrived when that was last asked."""

    def moved(self) -> bool:
        """Whether bytes of bodies have arrived since this was last asked."""
        with self._lock:
            arrived = self._given - sum(call.unacknowledged() for call in self._calls)
            before, self._arrived = self._arrived, arrived
        return arrived > before

    async def ask(self, make: Callable[[], Question], most: Callable[[int, Mapping[str, str]], int]) -> Answer:
        """The answer to `make()`, of whose body at most `most(status, headers)` bytes are read.

        Both are called in a thread, and may raise.  Raises OSError (`ssl.SSLError` among them) and
        `http.client.HTTPException` where there is no answer, or half of one, and `AuthoritiesError`.
        """
        call = _Call()
        try:
            return await trio.to_thread.run_sync(
                partial(self._ask, call, make, most), abandon_on_cancel=True, limiter=self._limiter
            )
        except trio.Cancelled:
            if call.ending:
                trio.lowlevel.spawn_system_task(call.cut_later)
            else:
                call.cut()
            raise

    async def close(self) -> None:
        """Close what lies idle; what is in use closes as it ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # --- what follows runs in threads -------------------------------------------------------------------------------

    def _ask(self, call: _Call, make: Callable[[], Question], most: Callable[[int, Mapping[str, str]], int]) -> Answer:
        question = make()
        kept = self._take()
        if kept is not None:
            try:
                return self._exchange(kept, call, question, most)
            except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):  # closed while it lay idle
                if call.is_cut or call.ending:
                    raise
        try:
            return self._exchange(_Connection(self.origin, self._tls()), call, question, most)
        except ssl.SSLCertVerificationError:
            self._forget_tls()
            raise

    def _exchange(
        self, connection: _Connection, call: _Call, question: Question, most: Callable[[int, Mapping[str, str]], int]
    ) -> Answer:
        connection.call = call
        keep = False
        with self._lock:
            self._calls.add(call)
        try:
            if connection.sock is not None:
                call.hold(connection.sock)
            with contextlib.suppress(BrokenPipeError):  # it may have answered before it had read everything
                body = self._pieces(question.body) if question.body else None  # an empty one would be sent in chunks
                connection.request(question.method, question.target, body=body, headers=dict(question.headers))
            with contextlib.closing(connection.getresponse()) as response:
                call.ending = question.method == "GET"
                answer = _read(response, most)
                keep = answer.whole and not response.will_close and response.isclosed()
            return answer
        finally:
            with self._lock:
                self._calls.discard(call)
            call.hold(None)
            connection.call = _Call()
            if call.is_cut or not (keep and self._keep(connection)):
                connection.close()

    def _pieces(self, body: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
        for part in body:
            whole = memoryview(part)
            for at in range(0, len(whole), PIECE):
                yield whole[at : at + PIECE]
                with self._lock:
                    self._given += len(whole[at : at + PIECE])

    def _take(self) -> _Connection | None:
        """The connection used last; those that lay idle too long are closed."""
        oldest = time.monotonic() - IDLE_SECONDS
        with self._lock:
            old = [connection for connection in self._idle if connection.idle_since < oldest]
            self._idle = [connection for connection in self._idle if connection.idle_since >= oldest]
            taken = self._idle.pop() if self._idle else None
        for connection in old:
            connection.close()
        return taken

    def _keep(self, connection: _Connection) -> bool:
        connection.idle_since = time.monotonic()
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
            return not self._closed

    def _tls(self) -> ssl.SSLContext | None:
        """Made at the first request: a file of authorities that is missing is this provider's trouble alone.

        Made anew where the file has changed, for authorities are renewed in place; while it is gone, nothing changes.
        """
        if not self.origin.secure:
            return None
        with self._lock:
            there = _file(self.origin.ca)
            if self._context is None or (there is not None and there != self._authorities):
                context = _context(self.origin.ca)
                context.set_alpn_protocols(["http/1.1"])
                self._context, self._authorities = context, there
            return self._context

    def _forget_tls(self) -> None:
        """The system's authorities may have been renewed, too: no file tells."""
        with self._lock:
            self._context = None


_File = tuple[int, int, int]
"""Inode, size and time of change of a file's contents: what tells one from what replaced it."""


def _file(path: Path | None) -> _File | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _context(ca: Path | None) -> ssl.SSLContext:
    if ca is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise AuthoritiesError("no certificate is in that file") from None
    except OSError as error:
        raise AuthoritiesError(error.strerror or "it cannot be read") from None


def _read(response: http.client.HTTPResponse, most: Callable[[int, Mapping[str, str]], int]) -> Answer:
    headers = {key.lower(): value for key, value in response.getheaders()}
    wanted = most(response.status, headers)
    body = _read_chunks(response, wanted + 1) if response.chunked else response.read(wanted + 1)
    whole = len(body) <= wanted
    if whole and response.length:
        raise http.client.IncompleteRead(body, response.length)
    return Answer(response.status, headers, body if whole else body[:wanted], whole)


def _read_chunks(response: http.client.HTTPResponse, count: int) -> bytes:
    """As `response.read`, which would keep an object for each chunk: of two bytes each they take fifty times the room.

    Raises `http.client.HTTPException` where they are so small.
    """
    body, pieces = bytearray(), 0
    while len(body) < count and (piece := response.read1(min(count - len(body), PIECE))):
        body += piece
        pieces += 1
        if pieces > CHUNKS_FREE + len(body) // CHUNK_LEAST:
            raise http.client.HTTPException("an answer in too many chunks")
    return bytes(body)
