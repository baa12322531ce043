"""Going to the background: the parent answers for the child until the mount is live.

`in_background` forks twice before any thread, event loop or database exists, so the child inherits nothing that a
fork breaks; secrets are already in memory and pass by the fork, never by argv, environment or a pipe.  The child
reports over a pipe: live, or one line and an exit code.  Promises: the parent returns only after that report or after
the child's death; an interrupted parent ends the child.  This module does not know what the child does.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from icnfs.control.log import escape
from icnfs.control.protocol import RemoteError
from icnfs.errors import Exit, IcnfsError, InterruptedByUserError

REPORT_MAX: Final = 4096
"""Bytes in a report; a pipe takes this much in one piece (POSIX PIPE_BUF)."""

MESSAGE_MAX: Final = 1000
"""Characters of a message, of at most 4 bytes each."""

PID: Final = struct.Struct(">I")
"""Goes ahead of the report: whom an interrupted parent has to end."""

INTERRUPTS: Final = {signal.SIGINT, signal.SIGTERM}
"""Held back in the parent until it knows whom to end: an interrupted read would lose what it had read."""

ENDING: Final = 30.0
"""Seconds an interrupted parent waits for the child that it told to end."""


class Report(msgspec.Struct, frozen=True):
    """What the child says once: `exit_code` 0 is a live mount."""

    exit_code: int
    message: str = ""


class Readiness:
    """The child's end of the pipe; in the foreground there is no pipe and reports go nowhere."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd

    def live(self) -> None:
        """The mount answers requests now."""
        self._send(Report(Exit.OK))

    def failed(self, error: IcnfsError) -> None:
        """The mount will not come up."""
        self._send(Report(int(error.exit_code), escape(str(error))[:MESSAGE_MAX]))

    def _send(self, report: Report) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, msgspec.msgpack.encode(report))
        except BrokenPipeError:
            pass  # the parent was killed; the mount is wanted all the same
        os.close(self._fd)
        self._fd = None


def in_background(work: Callable[[Readiness], int]) -> None:
    """Run `work` in a daemon and return once it reported that it is live.

    `work` gets the pipe's end and gives the daemon's exit code; it must report before it raises.  Raises RemoteError
    with the child's line and exit code, or InterruptedByUserError after Ctrl-C.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    middle = os.fork()
    if middle == 0:
        _become_daemon(work, writer)
    os.close(writer)
    os.waitpid(middle, 0)
    leading = os.read(reader, PID.size)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        report = _await_report(reader)
    except KeyboardInterrupt:
        if leading:
            _end(PID.unpack(leading)[0])
        raise InterruptedByUserError("interrupted before the mount was live; nothing stays mounted") from None
    finally:
        os.close(reader)
    if report.exit_code != Exit.OK:
        raise RemoteError(report.message, Exit(report.exit_code))


def _become_daemon(work: Callable[[Readiness], int], writer: int) -> NoReturn:
    """The middle child: leave the session, fork again, and let init adopt the daemon."""
    code = 0
    try:
        os.setsid()
        if os.fork() == 0:
            code = int(Exit.FAILED)
            os.write(writer, PID.pack(os.getpid()))
            _cut_loose(writer)
            code = work(Readiness(writer))
    finally:
        os._exit(code)


def _cut_loose(keep: int) -> None:
    """Hold no terminal, no directory and no descriptor of the parent's but `keep`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, keep)
    os.closerange(keep + 1, max(keep + 1, os.sysconf("SC_OPEN_MAX")))


def _await_report(reader: int) -> Report:
    """What the daemon says before it closes the pipe; RemoteError when it dies first."""
    received = bytearray()
    while part := os.read(reader, REPORT_MAX):
        received += part
    try:
        return msgspec.msgpack.decode(bytes(received), type=Report)
    except msgspec.MsgspecError:
        advice = "see its log; if it dies again, the local state may be cut short: move it away and run `icnfs recover`"
        raise RemoteError(f"the mount process died before the mount was live; {advice}", Exit.FAILED) from None


def _end(pid: int) -> None:
    """Ask the daemon to end, and wait for it within ENDING seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        select.select([handle], [], [], ENDING)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
