"""One line an event: where the log of a mount goes, and what may stand in it.

Modules log with `logging.getLogger(__name__)`, a short event first and `key=value` after it.  Promises: a line is one
line whatever a message holds (control characters are escaped); an exception becomes `error=TYPE at=FILE:LINE<...`, its
text only where it is ours (`IcnfsError`) or at debug level, so that no name or secret slips out through a foreign
exception; a stuck disk or pipe never stops the caller, lines past a bounded queue are dropped and counted.
Sinks: stderr in the foreground, else journald, else a file of mode 0600 that is rotated.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, TextIO

from icnfs.errors import IcnfsError

LEVELS: Final = ("debug", "info", "warning", "error")
LINE_MAX: Final = 4000
"""Characters in a line; a datagram to journald of four times that still fits its default socket buffer."""

QUEUE_MAX: Final = 10_000
FILE_MAX: Final = 4 * 1024 * 1024
FILES_KEPT: Final = 3
JOURNAL: Final = "/run/systemd/journal/socket"

_PRIORITY: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""RFC 5424 section 6.2.1's severities."""


def escape(text: str) -> str:
    """`text` on one line: whatever does not print becomes \\xNN, \\uNNNN or \\UNNNNNNNN."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def describe(error: BaseException, *, verbose: bool) -> str:
    """`error` as key=value: its type, where it was raised, and its text where that may be shown."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-4:])
    where = "<".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames) or "-"
    text = ""
    if verbose or isinstance(error, IcnfsError):
        text = f" text={str(error)!r}"
    elif isinstance(error, OSError) and error.errno is not None:
        text = f" text={os.strerror(error.errno)!r}"
    inner = ""
    if isinstance(error, BaseExceptionGroup):
        inner = "".join(f" | {describe(each, verbose=verbose)}" for each in error.exceptions[:4])
    return f"error={type(error).__name__} at={where}{text}{inner}"


class LineFormatter(logging.Formatter):
    """`LEVEL logger message error=...`, escaped and cut to LINE_MAX; the sinks add the time."""

    def __init__(self, *, verbose: bool) -> None:
        super().__init__()
        self._verbose = verbose

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its time."""
        line = f"{record.levelname.lower()} {record.name} {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            line += " " + describe(record.exc_info[1], verbose=self._verbose)
        line = escape(line)
        return line if len(line) <= LINE_MAX else line[: LINE_MAX - 3] + "..."


class _Queue(logging.handlers.QueueHandler):
    """Hands lines to the writer's thread and never waits for it."""

    def __init__(self, lines: queue.Queue[logging.LogRecord], formatter: logging.Formatter) -> None:
        super().__init__(lines)
        self.setFormatter(formatter)
        self._dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._dropped:
            record.msg = f"{record.msg} dropped_lines={self._dropped}"
            record.message = record.msg
        try:
            self.queue.put_nowait(record)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1


class _Timed(logging.Formatter):
    """A finished line behind its time in UTC (RFC 3339)."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{stamp}.{int(record.msecs):03d}Z {record.getMessage()}"


class _Prioritised(logging.Formatter):
    """A finished line as sd-daemon(3) wants it on a stderr that journald reads."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITY.get(record.levelno, 6)}>{record.getMessage()}"


class Journal(logging.Handler):
    """Journald's native datagrams (systemd.journal-fields(7)): one field a line, as our lines hold no newline."""

    def __init__(self, volume: str, path: str = JOURNAL) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._path = path
        self._fields = f"SYSLOG_IDENTIFIER=icnfs\nICNFS_VOLUME={volume}\n"

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line; a journal that is gone for a moment loses it, as it would lose stderr's."""
        priority = _PRIORITY.get(record.levelno, 6)
        text = f"{self._fields}PRIORITY={priority}\nMESSAGE={record.getMessage()}\n"
        try:
            self._socket.sendto(text.encode("utf-8", "backslashreplace"), self._path)
        except OSError:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


class PrivateFile(logging.handlers.RotatingFileHandler):
    """A log file that only its owner reads, replaced at FILE_MAX bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=FILE_MAX, backupCount=FILES_KEPT, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(_Timed())

    def _open(self) -> TextIO:  # type: ignore[override]
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.baseFilename, flags, 0o600)
        os.fchmod(fd, 0o600)
        return os.fdopen(fd, "a", encoding=self.encoding, errors=self.errors)


def foreground_sink() -> logging.Handler:
    """Lines to stderr, in the form its reader wants (a journal or a person)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Prioritised() if _stderr_is_journal() else _Timed())
    return handler


def background_sink(volume: str, file: Path, journal: str = JOURNAL) -> logging.Handler:
    """Lines to journald where it runs, else to `file`."""
    if Path(journal).exists():
        return Journal(volume, journal)
    return PrivateFile(file)


def _stderr_is_journal() -> bool:
    """Whether stderr is the stream that systemd named in JOURNAL_STREAM (systemd.exec(5))."""
    stream = os.environ.get("JOURNAL_STREAM", "")
    try:
        facts = os.fstat(2)
    except OSError:
        return False
    return stream == f"{facts.st_dev}:{facts.st_ino}"


@contextmanager
def logging_to(sink: logging.Handler, level: str) -> Iterator[None]:
    """Log to `sink` from `level` (one of LEVELS) up; on leaving, the queue is written out and the sink closed.

    Starts a thread: enter it after the last fork.
    """
    chosen = getattr(logging, level.upper())
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_MAX)
    handler = _Queue(lines, LineFormatter(verbose=level == "debug"))
    listener = logging.handlers.QueueListener(lines, sink)
    root, ours, before = logging.getLogger(), logging.getLogger("icnfs"), logging.raiseExceptions
    ours.setLevel(chosen)
    root.setLevel(max(chosen, logging.WARNING))
    root.addHandler(handler)
    logging.captureWarnings(True)
    logging.raiseExceptions = False
    listener.start()
    with _hooks():
        try:
            yield
        finally:
            root.removeHandler(handler)
            listener.stop()
            sink.close()
            logging.captureWarnings(False)
            logging.raiseExceptions = before


@contextmanager
def stderr_logged() -> Iterator[None]:
    """Log, line by line, what libraries and children write to stderr: a daemon has nobody else to tell it to.

    Inside `logging_to`.  A child that outlives the block writes into a closed pipe.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    kept = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    told = logging.getLogger("icnfs.stderr")

    def read() -> None:
        with os.fdopen(reader, errors="backslashreplace") as lines:
            for line in lines:
                told.warning("%s", line.rstrip("\n"))

    threading.Thread(target=read, name="stderr", daemon=True).start()
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _hooks() -> Iterator[None]:
    """Exceptions that nobody caught, in any thread or finaliser, are logged as one line."""
    log = logging.getLogger("icnfs.uncaught")

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        log.critical("uncaught", exc_info=(kind, error, trace))

    def in_thread(facts: threading.ExceptHookArgs) -> None:
        if facts.exc_value is not None:
            uncaught(facts.exc_type, facts.exc_value, facts.exc_traceback)

    def in_finaliser(facts: sys.UnraisableHookArgs) -> None:
        if facts.exc_value is not None:
            uncaught(facts.exc_type, facts.exc_value, facts.exc_traceback)

    kept = sys.excepthook, threading.excepthook, sys.unraisablehook
    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, in_thread, in_finaliser
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook = kept
