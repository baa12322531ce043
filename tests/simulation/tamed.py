"""Everything by which two runs of one seed could differ, replaced while a simulation runs.

    order of tasks         trio's own shuffle, seeded
    random bytes           one seeded stream, in place of the kernel's
    clocks                 trio's MockClock; the wall clock follows it, and jumps when told to
    threads                work is done in place, while the clock may move on before and after it
    the committer's thread a task that does the same steps, with a pause before each group

Work that calls back into the loop (loading a recovered state) runs in a real thread, in step: while it runs, the loop
stands still, and while the loop runs, it does.
"""

from __future__ import annotations

import contextvars
import os
import queue
import random
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest import mock

import trio
import trio._core._run as scheduling
from trio.testing import MockClock

from icnfs.limits import KIB, MIB
from icnfs.state import committer as committers
from icnfs.state import journaled
from icnfs.state.jobs import Job
from icnfs.volume import load as loading

WALL: Final = 1_750_000_000 * 10**9
"""What the wall clock says when a simulation begins: ns, Unix time."""

SMALLER: Final = {
    "icnfs.state.env.RESERVE": 4 * KIB,
    "icnfs.state.env.META_MAP": 64 * MIB,
    "icnfs.state.env.DATA_MAP": 64 * MIB,
    "icnfs.state.journal.SIZE": 128 * KIB,
    "icnfs.state.journaled.SETTLE_BYTES": 64 * KIB,
}
"""What is made smaller for speed: no rule hangs on these sizes."""

CALLS_BACK: Final = (loading._fill,)
"""Work for a thread that calls back into the loop."""


class Wall:
    """Stands for the module `time` in icnfs."""

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        self.jumped_ns = 0

    def time_ns(self) -> int:
        return WALL + int(self._clock.current_time() * 1e9) + self.jumped_ns

    def time(self) -> float:
        return self.time_ns() / 1e9

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class Mood:
    """How long the machine's own work takes: seconds, drawn anew each time from a seeded stream."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.thread_s = 0.0
        self.commit_s = 0.0

    def thread(self) -> float:
        return self.rng.uniform(0.0, self.thread_s) if self.thread_s else 0.0

    def commit(self) -> float:
        return self.rng.uniform(0.0, self.commit_s) if self.commit_s else 0.0

    def is_quick(self) -> bool:
        """Whether the disk was, the last time."""
        return self.rng.random() < 0.5


class Stepper:
    """Somebody who may die at any step; the owner of the tasks in whose context it is."""

    def step(self) -> None:
        """One more step is about to be done; called at every await and between the steps of a commit."""


OWNER: contextvars.ContextVar[Stepper | None] = contextvars.ContextVar("owner", default=None)


def step() -> None:
    if (owner := OWNER.get()) is not None:
        owner.step()


class Steps(trio.abc.Instrument):
    """Every step of every task is one of its owner's."""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        owner = task.context.get(OWNER)
        if owner is not None:
            owner.step()


@contextmanager
def tamed(seed: int) -> Iterator[tuple[MockClock, Wall, Mood]]:
    """Run trio inside, once, with this clock; one at a time in a process."""
    stream = random.Random(f"bytes {seed}")
    clock = MockClock(autojump_threshold=0)
    wall, mood = Wall(clock), Mood(seed)
    with ExitStack() as stack:

        def put(target: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, value))

        put(scheduling, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
        put(scheduling, "_r", random.Random(f"order {seed}"))
        put(secrets, "token_bytes", lambda size=32: stream.randbytes(size))
        put(secrets, "token_hex", lambda size=32: stream.randbytes(size).hex())
        put(secrets, "randbelow", stream.randrange)
        put(os, "urandom", stream.randbytes)
        put(random, "Random", lambda seed=None, real=random.Random: real(stream.random() if seed is None else seed))
        for name, module in sorted(sys.modules.items()):
            if name.startswith("icnfs."):
                if getattr(module, "time", None) is time:
                    put(module, "time", wall)
                if hasattr(module, "urandom"):
                    put(module, "urandom", stream.randbytes)
        for dotted, value in SMALLER.items():
            stack.enter_context(mock.patch(dotted, value))
        put(trio.to_thread, "run_sync", _Threads(mood))
        put(trio.from_thread, "run_sync", _call_back_sync)
        put(trio.from_thread, "run", _call_back)
        stack.enter_context(mock.patch("icnfs.state.store.Committer", _committer(mood)))
        yield clock, wall, mood


# --- threads ----------------------------------------------------------------------------------------------------------

_lines = threading.local()
"""`_lines.out` and `_lines.back`: how a thread that runs in step speaks with the loop."""


class _Threads:
    """As `trio.to_thread.run_sync`: not to be cancelled once begun."""

    def __init__(self, mood: Mood) -> None:
        self._mood = mood

    async def __call__(self, work: Callable[..., Any], *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if getattr(work, "__wrapped__", work) in CALLS_BACK:
            return await _in_step(work, args)
        with trio.CancelScope(shield=True):
            await trio.sleep(self._mood.thread())
            step()
            result = work(*args)
            step()
            await trio.sleep(self._mood.thread())
            told = trio.Event()  # as a thread's answer comes: after all that it posted before
            trio.lowlevel.current_trio_token().run_sync_soon(told.set)
            await told.wait()
        return result


async def _in_step(work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    out: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    back: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def body() -> None:
        _lines.out, _lines.back = out, back
        try:
            answer: tuple[str, Any] = ("done", work(*args))
        except BaseException as error:  # noqa: BLE001 - it is raised again, by the loop
            answer = ("failed", error)
        out.put(answer)

    thread = threading.Thread(target=body, name="in step", daemon=True)
    thread.start()
    while True:
        what, value = out.get()
        step()
        if what == "call":
            call, arguments = value
            try:
                result = True, await call(*arguments)
            except BaseException as error:  # noqa: BLE001 - it is raised again, by the thread
                result = False, error
            back.put(result)
            continue
        thread.join()
        if what == "failed":
            raise value
        return value


def _call_back(call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    _lines.out.put(("call", (call, args)))
    fine, value = _lines.back.get()
    if not fine:
        raise value
    return value


def _call_back_sync(call: Callable[..., Any], *args: Any) -> Any:
    async def there() -> Any:
        return call(*args)

    return _call_back(there)


# --- the committer ----------------------------------------------------------------------------------------------------


def _committer(mood: Mood) -> type[committers.Committer]:
    class Stepped(committers.Committer):
        """The committer, without a thread: each group of work is one step of a task."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._work = trio.Event()
            self._owner = OWNER.get()

        def start(self) -> None:
            trio.lowlevel.spawn_system_task(self._serve, context=contextvars.copy_context())

        def submit(self, job: Job) -> None:
            self._queue.put(job)
            self._work.set()

        def _done_at_once(self, jobs: list[Job]) -> bool:
            if not jobs or not self._queue.empty() or not mood.is_quick():
                return False
            self._journaled.append_seconds = 0.0
            self._step()
            done = super()._done_at_once(jobs)
            self._step()
            self._work.set()
            return done

        def stop(self) -> None:
            """All that was submitted is committed."""
            self._stopping = True
            self._work.set()
            while not self._queue.empty() and (jobs := self._take()) is not None:
                self._commit(jobs)
            if self._journaled:
                self._commit([])
            self._erase_doomed()

        def _insist(self, step: Callable[[], None], *, in_data: bool = False) -> None:
            self._step()
            super()._insist(step, in_data=in_data)
            self._step()

        def _step(self) -> None:
            if self._owner is not None:
                self._owner.step()

        async def _serve(self) -> None:
            while not self._stopping:
                if not self._queue.empty():
                    await trio.sleep(mood.commit())
                    if not self._stopping and not self._queue.empty() and (jobs := self._take()):
                        self._commit(jobs)
                elif self._journaled.jobs:
                    if not await self._wait(journaled.SETTLE_SECONDS):
                        self._commit([])
                elif self._doomed:
                    if not await self._wait(committers.IDLE_SECONDS):
                        self._erase_doomed()
                else:
                    await self._wait(float("inf"))

        async def _wait(self, seconds: float) -> bool:
            """Whether there is work, or an end, within so long."""
            if self._queue.empty():
                self._work = trio.Event()
                with trio.move_on_after(seconds):
                    await self._work.wait()
            return self._stopping or not self._queue.empty()

    return Stepped
