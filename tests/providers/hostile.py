"""An HTTP server that answers whatever a test prepared, counts what it is asked, and never answers by itself."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Request], bytes | None]
"""The bytes of a whole answer, after which the connection is closed; None: say nothing until the client is gone."""


NOW = "Date: now"
HOUR_AGO = "Date: an hour ago"
"""Headers for `reply`, see `dated`."""


def reply(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An answer; `length` is what it claims to have for a body."""
    claimed = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {claimed}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def dated(answer: bytes) -> bytes:
    """`answer` with the time of sending where it says NOW, and an hour less where it says HOUR_AGO."""
    now = time.time()
    for mark, date in ((NOW, now), (HOUR_AGO, now - 3600)):
        answer = answer.replace(mark.encode(), f"Date: {email.utils.formatdate(date, usegmt=True)}".encode())
    return answer


@dataclass
class Hostile:
    """One listening socket, a thread for each connection."""

    answer: Answer
    tls: ssl.SSLContext | None = None
    drip: bool = False
    """After the answer a byte now and then, for ever."""
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(20)
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                request = _read(connection)
                if request is None:
                    return
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    while not self._over.is_set() and _alive(connection):
                        time.sleep(0.02)
                else:
                    connection.sendall(dated(answer))
                while self.drip and not self._over.is_set():
                    connection.sendall(b"x")
                    time.sleep(0.02)


def _alive(connection: socket.socket) -> bool:
    connection.settimeout(0.02)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True


def _read(connection: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        more = connection.recv(1 << 20)
        if not more:
            return None
        body += more
    return Request(method, target, headers, body)


@contextlib.contextmanager
def hostile(answer: Answer, tls: ssl.SSLContext | None = None, *, drip: bool = False) -> Iterator[Hostile]:
    server = Hostile(answer, tls, drip)
    try:
        yield server
    finally:
        server.close()
