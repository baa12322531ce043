"""The loop that takes requests from /dev/fuse: a stand-in for the `trio` that pyfuse3 reaches through.

pyfuse3's session loop is compiled, but it looks `trio` up in its own module each time (its asyncio support replaces
the name there), so whatever is put in its place decides how the device is shared: `Lock`, `lowlevel`, `open_nursery`
and `ClosedResourceError` are all that it asks for.

As shipped, a fair lock hands the device from worker to worker, two turns of trio's scheduler for every request.  Here
the running worker takes the device again; the others stay parked until it really waits.  Promises:

1. A request whose handler does not wait costs no scheduler turn, save every 64th, or one a millisecond, so that other
   tasks never starve.
2. Whenever a worker waits in a handler, or ends, and nobody holds the device, one parked worker is woken.  The trap
   is seen as it passes, in the generator that drives each worker, so no handler can forget to say so.
3. A handler that waits longer than the deadline is cancelled.  The deadline is armed at its first wait only: a cancel
   scope for each request costs as much as two scheduler turns, one for each worker costs nothing.  A cancelled scope
   stays cancelled, so such a worker answers its request and ends by the path that frees its buffer.
4. The device never blocks the loop.  Between poll and read a killed process can take its request back, and a blocking
   read would then stop every task until the next request.  The descriptor is made non-blocking; pyfuse3 turns EAGAIN
   into BlockingIOError, which ends `_session_loop`; it is started again.  (That leaks its buffer, untouched but for a
   page: a race of microseconds, not a cost.)

Measured with pyfuse3 3.5.0 on 2 busy cores: reads of 4 KiB that a trivial handler answers, us a request, medians of 5.

| askers at a time | pyfuse3 as shipped    | this loop             |
|------------------|-----------------------|-----------------------|
| 1                | 50, of CPU 42         | 20, of CPU 20         |
| 4                | 43, of CPU 42         | 19, of CPU 25         |
| 16               | 34, of CPU 37         | 20, of CPU 19         |

Rejected: to sleep as soon as no request is there (one asker then costs 40 to 67 us, most of it falling asleep and
waking up); a checkpoint between looks (24 us where this takes 20); a lock that wakes a waiter at each release (one
futile turn a request); a cancel scope in each handler (8 us each, measured beside a checkpoint of 4 us).

It knows nothing of files: it sees workers, a descriptor and time.
"""

from __future__ import annotations

import math
import os
import select
import types
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any, Final

import pyfuse3
import trio

from icnfs.fuse.negotiate import Negotiation
from icnfs.fuse.wakeups import BURST, Wakeups

YIELD_EVERY: Final = 64
YIELD_SECONDS: Final = 0.001
"""Requests taken in a row before other tasks get a turn, or fewer where they take so long: eight writes of 1 MiB, while
others seal and store what came before, took up to 60 ms."""

SPINS: Final = 50
"""Looks, of 0.4 us each, before the loop sleeps: a program that asks one thing after another asks again within that."""

MIN_TASKS: Final = 16
"""Parked workers kept: they cost nothing, starting one costs a few scheduler turns."""

MAX_TASKS: Final = 4096
"""Requests that may wait at a time.  Above the kernel's background limit and the threads of one program that all read
a dead file, so that they cannot take the last worker; each holds a few KiB until its deadline."""


class Worker:
    """One of pyfuse3's session tasks: whether it is between requests, and the scope that bounds its handler's waits."""

    __slots__ = ("armed", "idle", "patience", "scope")

    def __init__(self, patience: float) -> None:
        self.idle = True
        self.armed = False
        self.patience = patience
        self.scope = trio.CancelScope()


class DeviceLoop:
    """What pyfuse3 takes for trio.  One for each mount; `deadline` in seconds bounds each handler's waits."""

    ClosedResourceError = trio.ClosedResourceError

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.lowlevel = Device(self)
        self.wakeups = Wakeups()
        self.running: Worker | None = None
        self.held = False
        self._parked: deque[trio.lowlevel.Task] = deque()
        self._waking = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make pyfuse3 use this loop; `pyfuse3.init` and `pyfuse3.main` must both run inside."""
        shipped = pyfuse3.trio  # type: ignore[attr-defined]
        pyfuse3.trio = self  # type: ignore[attr-defined]
        try:
            yield
        finally:
            pyfuse3.trio = shipped  # type: ignore[attr-defined]

    def expired(self) -> bool:
        """Whether the running worker's handler was cancelled by the deadline, and not from outside."""
        return self.running is not None and self.running.scope.cancel_called

    def Lock(self) -> DeviceLock:
        return DeviceLock(self)

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[Workers]:
        async with trio.open_nursery() as nursery:
            yield Workers(self, nursery)

    @property
    def used(self) -> bool:
        """Whether pyfuse3 has waited for a request here: a release that no longer looks `trio` up would not."""
        return self.lowlevel.watching

    # --- called as workers run ---

    async def take(self) -> None:
        """Give the device to the running worker.  Raises ClosedResourceError when its deadline has spent its scope."""
        worker = self.running
        assert worker is not None
        worker.idle = True
        worker.patience = self.deadline
        if worker.armed:
            worker.armed = False
            worker.scope.deadline = math.inf
            if worker.scope.cancel_called:
                raise trio.ClosedResourceError
        while self.held:
            await self._park()
        self.held = True

    def leave(self) -> None:
        """The running worker has its request (or gives up); it does not wake anybody yet."""
        self.held = False
        assert self.running is not None
        self.running.idle = False

    def waits(self, worker: Worker) -> None:
        """A handler is about to wait: bound it, and let another worker have the device."""
        if not worker.armed:
            worker.armed = True
            worker.scope.deadline = trio.current_time() + worker.patience
        self.hand_over()

    def allow(self, seconds: float) -> None:
        """Bound the waits of the handler that runs, which has not waited yet, by `seconds` instead of the deadline."""
        assert self.running is not None
        self.running.patience = seconds

    def hand_over(self) -> None:
        if self._parked and not self.held and not self._waking:
            self._waking = True
            trio.lowlevel.reschedule(self._parked.popleft())

    def attended(self) -> bool:
        """Whether some worker has the device, or will."""
        return self.held or self._waking or bool(self._parked)

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()
        self._parked.append(task)

        def abort(_raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._waking = False


class DeviceLock:
    """The unfair lock: whoever runs and finds it free has it."""

    def __init__(self, loop: DeviceLoop) -> None:
        self._loop = loop

    async def __aenter__(self) -> None:
        await self._loop.take()

    async def __aexit__(self, *_exc: object) -> None:
        self._loop.leave()


class Device:
    """`trio.lowlevel`, with a `wait_readable` that looks before it waits."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def __init__(self, loop: DeviceLoop) -> None:
        self._loop = loop
        self._fd = -1
        self._poll = select.poll()
        self._taken = 0
        self._in_a_row = 0
        self._turn_ends = 0.0
        self._closing = False
        self._negotiation: Negotiation | None = None

    @property
    def watching(self) -> bool:
        return self._fd >= 0

    def notify_closing(self, fd: int) -> None:
        """Wake who waits for the device, and stop who is about to: `pyfuse3.terminate` may come between the two."""
        self._closing = True
        trio.lowlevel.notify_closing(fd)

    async def wait_readable(self, fd: int) -> None:
        """Return once a request is (or was a moment ago) there.  Raises ClosedResourceError when the session ends."""
        if fd != self._fd:
            if await self._negotiate(fd):
                return
            self._watch(fd)
        poll = self._poll.poll
        self._taken += 1
        if self._taken % BURST == 0:
            self._loop.wakeups.burst()
        for _ in range(SPINS):
            if poll(0):
                break
        else:
            if self._closing:
                raise trio.ClosedResourceError
            self._in_a_row = 0
            await trio.lowlevel.wait_readable(fd)
            self._turn_ends = monotonic() + YIELD_SECONDS
            return
        self._in_a_row += 1
        if self._in_a_row >= YIELD_EVERY or monotonic() >= self._turn_ends:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
            self._turn_ends = monotonic() + YIELD_SECONDS

    async def _negotiate(self, fd: int) -> bool:
        """The first request is INIT: whether it is there, to be read from `fd`, and what follows is not yet."""
        if self._negotiation is not None:
            self._negotiation.finish()
            return False
        await trio.lowlevel.wait_readable(fd)
        try:
            self._negotiation = Negotiation(fd)
        except OSError:  # the mount is gone already: libfuse meets that by itself
            return False
        return True

    def _watch(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._poll.register(fd, select.POLLIN)
        self._fd = fd


class Workers:
    """The nursery that pyfuse3 starts its session tasks in."""

    def __init__(self, loop: DeviceLoop, nursery: trio.Nursery) -> None:
        self._loop = loop
        self._nursery = nursery

    def start_soon(self, task: Callable[..., Coroutine[Any, Any, None]], *args: object, name: str) -> None:
        self._nursery.start_soon(self._work, task, args, name=name)

    async def _work(self, task: Callable[..., Coroutine[Any, Any, None]], args: tuple[object, ...]) -> None:
        """Run one worker to its end; start anew one that met EAGAIN, and replace one whose scope is spent."""
        worker = Worker(self._loop.deadline)
        with worker.scope:
            while True:
                try:
                    await drive(task(*args), worker, self._loop)
                    break
                except BlockingIOError:  # the request was taken back; handlers let no exception of their own out
                    continue
        self._loop.hand_over()
        if worker.scope.cancel_called and not self._loop.attended():
            self._nursery.start_soon(self._work, task, args, name="pyfuse-again")


@types.coroutine
def drive(coro: Coroutine[Any, Any, None], worker: Worker, loop: DeviceLoop) -> Generator[Any, Any, None]:
    """Await `coro`, telling the loop who runs, and when a handler (not the device) is what it waits for."""
    step: Callable[[Any], Any] = coro.send
    sent: Any = None
    while True:
        loop.running = worker
        try:
            trap = step(sent)
        except StopIteration:
            return
        if not worker.idle:
            loop.waits(worker)
        try:
            sent = yield trap
            step = coro.send
        except BaseException as exc:  # noqa: BLE001  handed on into the coroutine, whatever it is
            sent = exc
            step = coro.throw
