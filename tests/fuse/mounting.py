"""A mount of a `MemFs` in this process: the loop in a thread of its own, the test in the main thread.

System calls of `os` release the interpreter lock, so the loop can answer them.  (Page faults do not: use a subprocess
for mmap.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from icnfs.fuse.options import MountOptions
from icnfs.fuse.serve import End, serve
from tests.fuse.memfs import MemFs

BOUND = 30.0
"""Seconds after which a test gives up on what it waits for."""

T = TypeVar("T")


class Mount:
    """A running mount: its file system, its directory, and the way into its loop."""

    def __init__(
        self, path: Path, fs: MemFs, options: MountOptions, deadline: float | None, fsync_deadline: float | None = None
    ) -> None:
        self.path = path
        self.fs = fs
        self.ended: Future[End | None] = Future()
        self.scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._ready: Future[None] = Future()
        self._serve = partial(
            serve,
            fs,
            str(path),
            options,
            volume="mem",
            ready=lambda: self._ready.set_result(None),
            signals=(),
            handler_deadline=deadline,
            fsync_deadline=fsync_deadline,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def main() -> End | None:
            self._token = trio.lowlevel.current_trio_token()
            with self.scope:
                return await self._serve()
            return None

        try:
            self.ended.set_result(trio.run(main))
        except BaseException as exc:  # noqa: BLE001  told to whoever waits
            self.ended.set_exception(exc)
            if not self._ready.done():
                self._ready.set_exception(exc)

    def start(self) -> None:
        self._thread.start()
        self._ready.result(BOUND)

    def in_loop(self, fn: Callable[..., T], *args: Any) -> T:
        assert self._token is not None
        return trio.from_thread.run_sync(fn, *args, trio_token=self._token)

    def cancel(self) -> End | None:
        """Cancel `serve` and wait for its end."""
        if not self.ended.done():
            try:
                self.in_loop(self.scope.cancel)
            except trio.RunFinishedError:
                pass
        return self.ended.result(BOUND)


@contextmanager
def mounted(
    path: Path,
    *,
    fs: MemFs | None = None,
    options: MountOptions | None = None,
    deadline: float | None = None,
    fsync_deadline: float | None = None,
) -> Iterator[Mount]:
    """A mount at `path` (created), gone again at the end whatever happens."""
    path.mkdir(exist_ok=True)
    mount = Mount(path, fs or MemFs(), options or MountOptions(), deadline, fsync_deadline)
    mount.start()
    try:
        yield mount
    finally:
        mount.cancel()
        assert not path.is_mount()
