"""One mount from its beginning to its end.

`serve` mounts, answers requests, and returns when the mount is gone, whoever ended it:

| end         | by                                          | what is done                             |
|-------------|---------------------------------------------|------------------------------------------|
| UNMOUNTED   | umount(8), fusermount3 -u                   | nothing is left to do                    |
| SIGNAL      | one of `signals`                            | unmounted while the loop still runs      |
| ABORTED     | the kernel, or root, cut the connection     | the dead mount is detached               |
| (Cancelled) | the caller's scope                          | as for a signal; then it is raised       |

To unmount is to let the kernel write back pages that were changed through mmap, which takes requests: so the loop is
shielded from the cancellation and stops because the device is gone.  If somebody still uses the mount, it is detached:
their next request fails with ENOTCONN, and nothing that was written or synced is lost.

pyfuse3 keeps its session in module variables: a process serves one mount at a time.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from enum import Enum
from functools import partial
from typing import Final

import pyfuse3
import trio

from icnfs.errors import IcnfsError, MountPointError
from icnfs.fuse import mountpoint as places
from icnfs.fuse.contract import FileSystem
from icnfs.fuse.faults import leaves
from icnfs.fuse.handlers import Handlers
from icnfs.fuse.loop import MAX_TASKS, MIN_TASKS, DeviceLoop
from icnfs.fuse.options import MountOptions
from icnfs.fuse.wakeups import Wakeups
from icnfs.mountinfo import FS_TYPE

DEADLINE: Final = 20.0
"""Seconds that a handler may wait."""

DISK_DEADLINE: Final = 3600.0
"""Seconds that writes and fsyncs may wait for this machine's own disk: what is only busy must not be taken for broken,
for there are programs that give up for good at an fsync which failed."""

TIMEOUT_SHARE: Final = 0.6
"""Of the kernel's own request timeout, where it is set: a request's age counts from before a handler sees it."""

UNMOUNT_SECONDS: Final = 30.0
"""How long the kernel may write back before the mount is detached instead."""

LAST_ANSWERS_SECONDS: Final = 2.0
"""For handlers that wait when the mount is detached; after it their callers get ENOTCONN."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger(__name__)


class End(Enum):
    """Why a mount ended."""

    UNMOUNTED = "unmounted"
    SIGNAL = "signal"
    ABORTED = "aborted"


def deadline(most: float = DEADLINE) -> float:
    """Seconds that a handler may wait here: `most`, or less where the kernel's own timeout asks for it."""
    timeout = places.request_timeout()
    return most if timeout is None else min(most, timeout * TIMEOUT_SHARE)


async def serve(
    fs: FileSystem,
    directory: str,
    options: MountOptions,
    *,
    volume: str,
    ready: Callable[[], None],
    signals: Iterable[signal.Signals] = SIGNALS,
    handler_deadline: float | None = None,
    fsync_deadline: float | None = None,
) -> End:
    """Mount `fs` at `directory` and answer until it is unmounted; `ready` is called once the mount answers.

    `volume` is the name that mount(8) shows; `signals` may be empty (they need the main thread); `handler_deadline` and
    `fsync_deadline`, in seconds, stand for both deadlines of this module, and for that of an fsync.  Raises
    MountPointError where it cannot be mounted, and IcnfsError where the device fails.
    """
    path = places.prepare(directory)
    logging.getLogger("pyfuse3").addFilter(_is_news)
    loop = DeviceLoop(deadline() if handler_deadline is None else handler_deadline)
    disk_deadline = deadline(DISK_DEADLINE) if handler_deadline is None else handler_deadline
    storing = partial(loop.allow, disk_deadline)
    syncing = storing if fsync_deadline is None else partial(loop.allow, deadline(fsync_deadline))
    handlers = Handlers(fs, loop.expired, storing, syncing)
    with ExitStack() as stack:
        stack.enter_context(loop.installed())
        _mount(handlers, path, options.for_kernel(volume))
        stack.callback(_close, path)
        mounted = places.mounted_at(path)
        session = _Session(path, mounted.device if mounted else "", ready, loop.wakeups if options.poll else None)
        await session.run(tuple(signals))
        if not loop.used:
            log.error("pyfuse3 %s did not use icnfs's loop: handlers had no deadline", pyfuse3.__version__)
    return session.end


def _is_news(record: logging.LogRecord) -> bool:
    """Not that a reply was not wanted any more: its caller was killed meanwhile (the kernel says ENOENT)."""
    return not (record.args and "fuse_reply_" in str(record.msg) and os.strerror(errno.ENOENT) in record.args)


def _mount(handlers: Handlers, path: str, options: set[str]) -> None:
    """pyfuse3 tells no reason; libfuse has printed it to stderr."""
    if "allow_other" in options and os.geteuid():
        log.debug("allow_other for a user needs user_allow_other in /etc/fuse.conf")
    if not os.path.exists("/dev/fuse"):
        raise MountPointError("/dev/fuse: not there; load the kernel module with `modprobe fuse`", errno.ENODEV)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountPointError(
            "/dev/fuse: this user may not open it; mount as root, or have root run `chmod 666 /dev/fuse`", errno.EACCES
        )
    try:
        pyfuse3.init(handlers, path, options)
    except RuntimeError as exc:
        hint = " (allow_other needs user_allow_other in /etc/fuse.conf)" if "allow_other" in options else ""
        raise MountPointError(f"{path}: cannot be mounted: {exc}; is fuse3 installed?{hint}", errno.EPERM) from None


def _close(path: str) -> None:
    """Free the session.  The mount is gone, or is detached here; what libfuse would do is to cut the connection."""
    pyfuse3.close(unmount=False)
    mounted = places.mounted_at(path)
    if mounted is not None and mounted.fs_type == FS_TYPE:
        try:
            places.detach(path)
        except MountPointError as exc:
            log.error("%s", exc)


class _Session:
    """The tasks of one mount."""

    def __init__(self, path: str, device: str, ready: Callable[[], None], wakeups: Wakeups | None) -> None:
        self.path = path
        self._wakeups = wakeups
        self.device = device
        self.end = End.UNMOUNTED
        self._ready = ready
        self.failure: IcnfsError | None = None
        self._gone = trio.Event()
        self._answering = trio.CancelScope(shield=True)

    async def run(self, signals: tuple[signal.Signals, ...]) -> None:
        """Until the device is gone.  The loop outlives a cancellation, long enough to unmount."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, nursery.cancel_scope)
            nursery.start_soon(self._announce)
            if self._wakeups is not None:
                nursery.start_soon(self._wakeups.run)
            if signals:
                nursery.start_soon(self._watch, signals)
            try:
                await self._gone.wait()
            finally:
                await self._leave()
        if self.failure is not None:
            raise self.failure
        if self.end is End.UNMOUNTED and self._still_mounted():
            self.end = End.ABORTED
            log.error("the kernel cut the connection; the mount is detached")

    async def _answer(self, scope: trio.CancelScope) -> None:
        with self._answering:
            try:
                await pyfuse3.main(MIN_TASKS, MAX_TASKS)
            except* OSError as group:
                self.failure = IcnfsError(f"the FUSE device failed: {next(leaves(group))}")
        self._gone.set()
        scope.cancel()

    async def _announce(self) -> None:
        """`ready` once a request has been answered; by then the kernel has taken INIT's reply, and can be tuned."""
        try:
            await trio.to_thread.run_sync(os.stat, self.path, abandon_on_cancel=True)
        except OSError as exc:
            self.failure = MountPointError(f"{self.path}: the volume does not answer: {exc.strerror}", errno.EIO)
            await self._leave()
            return
        await trio.to_thread.run_sync(places.tune, self.device, abandon_on_cancel=True)
        self._ready()

    async def _watch(self, signals: tuple[signal.Signals, ...]) -> None:
        with trio.open_signal_receiver(*signals) as received:
            async for number in received:
                log.info("%s: unmounting", signal.Signals(number).name)
                self.end = End.SIGNAL
                await self._leave()

    async def _leave(self) -> None:
        """Unmount, or detach when that takes too long or the mount is in use; then the device is gone."""
        if self._gone.is_set():
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(UNMOUNT_SECONDS):
                try:
                    await trio.to_thread.run_sync(places.unmount, self.path, abandon_on_cancel=True)
                except MountPointError as exc:
                    log.info("%s; detaching it", exc)
            if self._still_mounted():
                await trio.to_thread.run_sync(partial(_detach, self.path), abandon_on_cancel=True)
            if not self._gone.is_set():
                pyfuse3.terminate()
                with trio.move_on_after(LAST_ANSWERS_SECONDS):
                    await self._gone.wait()
                self._answering.cancel()
            await self._gone.wait()

    def _still_mounted(self) -> bool:
        mounted = places.mounted_at(self.path)
        return mounted is not None and mounted.device == self.device


def _detach(path: str) -> None:
    try:
        places.detach(path)
    except MountPointError as exc:
        log.error("%s", exc)
