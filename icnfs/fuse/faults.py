"""What becomes of an exception in a handler: an errno for the kernel, and one line in the log.

`FsError` is a reply and is not logged.  Everything else is: which request, which class, where it was raised (file,
line and function, never values), and the message of errors from `errors.py`, which hold no file names.  The messages of
other exceptions may hold names or worse, so they appear at level debug only.  A fault that repeats is told `BURST`
times in a window, then counted: a program that polls a dead file must not fill the journal.

An errno is checked before the kernel sees it.  The kernel refuses a reply above 511, which leaves the caller waiting
for ever.  It takes ENOSYS to mean that the file system has no such request at all, for the rest of the mount: an fsync
that was answered so would "succeed" from then on.  EINTR and EAGAIN make callers try again without end, though it was
not they who were interrupted or told not to block.  And only a reply may say ENOENT: a file of our own that is missing
must not make one of theirs seem deleted.
"""

from __future__ import annotations

import errno
import logging
import traceback
from collections import deque
from collections.abc import Iterator
from pathlib import PurePath
from typing import Final

import trio

from icnfs.errors import FsError, IcnfsError

BURST: Final = 20
WINDOW: Final = 10.0
"""Seconds."""

_ERRNO_END: Final = 512
"""Linux include/linux/errno.h: from here on errnos are internal to the kernel."""

_NEVER: Final = frozenset((errno.ENOSYS, errno.EINTR))
_REPLIES_ONLY: Final = frozenset((errno.EAGAIN, errno.ENOENT))

_FRAMES: Final = 8

log = logging.getLogger(__name__)


def errno_of(exc: BaseException) -> int:
    """The errno that answers `exc`: 1 to 511, never one that misleads; EIO where nothing says better."""
    code: object
    if isinstance(exc, BaseExceptionGroup):
        code = _errno_of_group(exc)
    elif isinstance(exc, (IcnfsError, OSError)):
        code = exc.errno
    elif isinstance(exc, MemoryError):
        code = errno.ENOMEM
    else:
        code = errno.EIO
    if not isinstance(code, int) or not 0 < code < _ERRNO_END or code in _NEVER:
        return errno.EIO
    return code if code not in _REPLIES_ONLY or is_reply(exc) else errno.EIO


def _errno_of_group(group: BaseExceptionGroup[BaseException]) -> int:
    """What all its leaves agree on, else EIO."""
    codes = {errno_of(leaf) for leaf in leaves(group)}
    return codes.pop() if len(codes) == 1 else errno.EIO


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """The exceptions of a group, however deep (a stack, not recursion: groups may nest beyond Python's limit)."""
    stack = [exc]
    while stack:
        one = stack.pop()
        if isinstance(one, BaseExceptionGroup):
            stack.extend(reversed(one.exceptions))
        else:
            yield one


def passes_through(exc: BaseException) -> bool:
    """Whether `exc` is for trio or the interpreter, not for us: anything in it that is not an `Exception`."""
    return any(not isinstance(leaf, Exception) for leaf in leaves(exc))


def only_cancelled(exc: BaseException) -> bool:
    """Whether `exc` is cancellation and nothing else that must go on."""
    return all(isinstance(leaf, (trio.Cancelled, Exception)) for leaf in leaves(exc))


def is_reply(exc: BaseException) -> bool:
    return all(isinstance(leaf, FsError) for leaf in leaves(exc))


def describe(exc: BaseException) -> str:
    """One line: class, message where it may be told, and where from.  Total, whatever `exc` does when asked."""
    parts = [_describe_one(leaf) for leaf in leaves(exc)]
    return " + ".join(parts[:4]) + (f" + {len(parts) - 4} more" if len(parts) > 4 else "")


def _describe_one(exc: BaseException) -> str:
    text = type(exc).__name__
    if isinstance(exc, IcnfsError):
        text += f": {plain(str(exc))}"
    elif isinstance(exc, OSError) and isinstance(exc.errno, int):
        text += f" {errno.errorcode.get(exc.errno, exc.errno)}"
    frames = deque(traceback.walk_tb(exc.__traceback__), _FRAMES)  # no source lines: they would be read from disk
    where = " < ".join(
        f"{PurePath(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}" for frame, line in reversed(frames)
    )
    return f"{text} at {where}" if where else text


def plain(text: str) -> str:
    """`text` on one line, control characters escaped: a message must not forge lines of the log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class FaultLog:
    """Tells faults, each kind (request and class) at most `BURST` times in a window."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], tuple[float, int]] = {}

    def tell(self, request: str, exc: BaseException, code: int, now: float) -> None:
        """One event for a fault that was answered with `code`.  `now` in seconds, monotonic.  Raises nothing."""
        try:
            self._tell(request, exc, code, now)
        except Exception as worse:  # noqa: BLE001  the traceback is what could not be told
            log.error("%s answered %d; telling why failed: %s", request, code, type(worse).__name__)

    def _tell(self, request: str, exc: BaseException, code: int, now: float) -> None:
        key = (request, type(exc).__name__)
        start, count = self._since.get(key, (now, 0))
        if now - start > WINDOW:
            if count > BURST:
                log.error("%s: %d more of %s in the %d s before", request, count - BURST, key[1], WINDOW)
            start, count = now, 0
        self._since[key] = (start, count + 1)
        if count < BURST:
            log.error("%s answered %s: %s", request, errno.errorcode.get(code, code), describe(exc))
        log.debug("%s: the exception in full", request, exc_info=exc)
