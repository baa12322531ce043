"""The verbs' end of the control socket, without an event loop: ask, follow the progress, wait for the end.

Promises: nothing waits for ever (a mount that is silent past a bound is NotMountedError); the other end is checked to
be this user or root, so that nobody who could place a socket is obeyed.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from icnfs.control import endpoint
from icnfs.control.protocol import (
    ANSWER_MAX,
    HEADER,
    Done,
    Failed,
    Progress,
    Request,
    body_length,
    frame,
    raise_failed,
    take_answer,
)
from icnfs.errors import NotMountedError

SILENCE: Final = 60.0
"""Seconds without a word after which a mount counts as dead; a live one is heard every few (server.BEAT_EVERY)."""


def nothing(_: Progress) -> None:
    """A sink for progress that nobody watches."""


class Mount:
    """The mount process of one volume, as its control socket shows it."""

    def __init__(self, directory: Path, volume: str) -> None:
        """`directory` is the runtime directory of the user who mounted."""
        self.volume = volume
        self._directory = directory

    def alive(self) -> bool:
        """Whether a process listens."""
        try:
            self._connect().close()
        except NotMountedError:
            return False
        return True

    def ask(self, request: Request, progress: Callable[[Progress], None] = nothing) -> Done:
        """Carry out `request`; RemoteError with the mount's own message and exit code, NotMountedError without one."""
        connection = self._connect()
        with connection:
            try:
                connection.sendall(frame(request))
                while isinstance(answer := self._answer(connection), Progress):
                    progress(answer)
            except TimeoutError:
                raise NotMountedError(f"volume {self.volume}: its mount process does not answer") from None
            except ConnectionError:
                raise NotMountedError(f"volume {self.volume}: its mount process ended before it answered") from None
        if isinstance(answer, Failed):
            raise_failed(answer)
        assert isinstance(answer, Done)
        return answer

    def process(self) -> int | None:
        """A descriptor that becomes readable when the mount process has ended (pidfd_open(2)); None without one."""
        try:
            with self._connect() as connection:
                pid, _ = endpoint.peer(connection)
            return os.pidfd_open(pid) if pid > 0 else None
        except (NotMountedError, ProcessLookupError):
            return None

    def _connect(self) -> socket.socket:
        try:
            connection = endpoint.connect(self._directory, self.volume, SILENCE)
        except OSError:
            raise NotMountedError(
                f"volume {self.volume} is not mounted on this machine; `icnfs mount {self.volume} DIR` mounts it"
            ) from None
        _, uid = endpoint.peer(connection)
        if uid not in (0, os.geteuid()) and os.geteuid() != 0:
            connection.close()
            raise NotMountedError(f"volume {self.volume}: its control socket belongs to uid {uid}; it is left alone")
        return connection

    @staticmethod
    def _answer(connection: socket.socket) -> Progress | Done | Failed:
        length = body_length(_exactly(connection, HEADER.size), ANSWER_MAX)
        return take_answer(_exactly(connection, length))


def wait_ended(process: int | None, seconds: float) -> bool:
    """Wait until the mount process behind `process` (from `Mount.process`) has ended; False past `seconds`."""
    if process is None:
        return True
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


def _exactly(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = connection.recv(min(size - len(received), 1 << 16))
        if not part:
            raise ConnectionResetError
        received += part
    return bytes(received)
