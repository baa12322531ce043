"""python -m tests.bench.levers [--reps N] [LEVER...]

What each lever between Python and the kernel gains: the same short work on a local state mounted as icnfs does it, and
with one lever back where it stood, one directly after the other; the table holds the ratios (above 1: the lever gains).
Nothing is published.  Wants root; a minute and a half for each repetition.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from icnfs import process
from icnfs.crypto.keys import MasterKey
from icnfs.errors import FsError
from icnfs.fuse import handlers, loop, mountpoint, negotiate
from icnfs.fuse.options import MountOptions
from icnfs.fuse.serve import serve
from icnfs.state import committer, loader, store
from icnfs.state.upkeep import Budget, Upkeep
from icnfs.vfs.vfs import Vfs
from tests.acceptance.harness import REPO, is_mounted, wait_for

MIB: Final = 1 << 20
FILES: Final = 1500
BIG: Final = 128 * MIB
Undo = Callable[[], None]


def _fresh_buffers() -> None:
    process.tune = lambda: sys.setswitchinterval(process.SWITCH_INTERVAL)  # type: ignore[assignment]


def _slow_switch() -> None:
    process.SWITCH_INTERVAL = 0.005  # type: ignore[misc]


def _always_ahead() -> None:
    process.take_place(process.Place(process.AHEAD, process.AHEAD))


def _asking_before_writes() -> None:
    negotiate.ADDED = negotiate.EXPLICIT_INVAL_DATA  # type: ignore[misc]


def _pages_dropped_by_writes() -> None:
    negotiate.TAKEN_OUT = negotiate.ATOMIC_O_TRUNC  # type: ignore[misc]
    negotiate.ADDED = negotiate.HANDLE_KILLPRIV_V2  # type: ignore[misc]


def _shipped_loop() -> None:
    @contextmanager
    def installed(_self: loop.DeviceLoop) -> Iterator[None]:
        yield

    def allow(_self: loop.DeviceLoop, _seconds: float) -> None:
        """It knows no worker whose patience that could be."""

    loop.DeviceLoop.installed = installed  # type: ignore[method-assign]
    loop.DeviceLoop.allow = allow  # type: ignore[method-assign]


def _no_spins() -> None:
    loop.SPINS = 1  # type: ignore[misc]


def _no_trust() -> None:
    handlers.CACHE_SECONDS = 0.0  # type: ignore[misc]


def _no_negative_entries() -> None:
    def refuse() -> pyfuse3.EntryAttributes:
        raise FsError(errno.ENOENT)

    handlers.no_entry = refuse


def _no_kept_pages() -> None:
    handlers.FileInfo = lambda fh, keep_cache: pyfuse3.FileInfo(fh=fh, keep_cache=False)  # type: ignore[assignment,misc]


def _flush_answered() -> None:
    async def flush(_self: handlers.Handlers, fh: int) -> None:
        return None

    handlers.Handlers.flush = flush  # type: ignore[method-assign]


def _writeback() -> None:
    handlers.Handlers.enable_writeback_cache = True


def _kernel_limits() -> None:
    mountpoint.tune = lambda *_: None  # type: ignore[assignment]


def _no_journal() -> None:
    store.open_journal = lambda *_: None  # type: ignore[attr-defined]


def _journal_by_the_thread() -> None:
    committer.QUICK = -1.0  # type: ignore[misc]


LEVERS: Final[dict[str, Undo]] = {
    "processors kept awake": lambda: None,  # a mount option: see `_serve`
    "set-id bits left to icnfs": _asking_before_writes,
    "buffers kept": _fresh_buffers,
    "switch interval 0.1 ms": _slow_switch,
    "unfair device loop": _shipped_loop,
    "50 looks before sleep": _no_spins,
    "entries trusted": _no_trust,
    "negative entries": _no_negative_entries,
    "pages kept": _no_kept_pages,
    "pages kept over writes": _pages_dropped_by_writes,
    "FLUSH declined": _flush_answered,
    "writeback cache off": _writeback,
    "512 in background, 2 MiB ahead": _kernel_limits,
    "ahead only of a crowd": _always_ahead,
    "journal": _no_journal,
    "journal by the loop": _journal_by_the_thread,
}


def _rate(count: float, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


class Work:
    """The steps, in the order in which they need each other's files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.block = random.Random(7).randbytes(MIB)

    def _each(self, change: Callable[[str], Any]) -> float:
        return _rate(FILES, lambda: [change(f"{self.root}/f{number}") for number in range(FILES)])

    def create(self) -> float:
        def one(path: str) -> None:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.write(fd, self.block[:4096])
            os.close(fd)

        return self._each(one)

    def stat(self) -> float:
        return self._each(lambda path: [os.stat(path) for _ in range(4)])

    def absent(self) -> float:
        return self._each(lambda path: [os.path.exists(path + ".no") for _ in range(4)])

    def read(self) -> float:
        return self._each(lambda path: [Path(path).read_bytes() for _ in range(2)])

    def rename(self) -> float:
        return self._each(lambda path: (os.rename(path, path + ".r"), os.rename(path + ".r", path)))

    def append(self) -> float:
        fd = os.open(self.root / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        rate = _rate(FILES, lambda: [(os.write(fd, self.block[:4096]), os.fsync(fd)) for _ in range(FILES)])
        os.close(fd)
        return rate

    def sequential(self) -> float:
        fd = os.open(self.root / "big", os.O_CREAT | os.O_WRONLY)
        rate = _rate(BIG / 1e6, lambda: ([os.write(fd, self.block) for _ in range(BIG // MIB)], os.fsync(fd)))
        os.close(fd)
        return rate

    def scattered(self) -> float:
        fd, chance = os.open(self.root / "big", os.O_WRONLY), random.Random(9)
        places = [chance.randrange(BIG // 4096) * 4096 for _ in range(FILES)]
        rate = _rate(FILES, lambda: ([os.pwrite(fd, self.block[:4096], at) for at in places], os.fsync(fd)))
        os.close(fd)
        return rate

    def through(self) -> float:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")

        def work() -> None:
            with open(self.root / "big", "rb", buffering=0) as file:
                while file.read(MIB):
                    pass

        return _rate(BIG / 1e6, work)


STEPS: Final = {
    "create": Work.create,
    "stat": Work.stat,
    "absent": Work.absent,
    "read 4K": Work.read,
    "rename": Work.rename,
    "append+fsync": Work.append,
    "write": Work.sequential,
    "pwrite 4K": Work.scattered,
    "read": Work.through,
}


async def _serve(root: Path, options: MountOptions) -> None:
    key = MasterKey.random()
    loader.create(root / "state", os.urandom(16), key)
    opened = store.Store.open(root / "state", key)
    async with trio.open_nursery() as nursery:
        await nursery.start(opened.run)
        nursery.start_soon(Upkeep(opened, Budget()).run)
        vfs = Vfs(opened, lambda: 1 << 40, nursery=nursery)
        await serve(vfs, str(root / "mnt"), options, volume="levers", ready=lambda: None)
        nursery.cancel_scope.cancel()
    await opened.close()


def child(root: Path, lever: str) -> None:
    """Serve below `root` with `lever` undone; "" for none."""
    if lever:
        LEVERS[lever]()
    process.tune()
    process.take_slice(process.SHORT)
    options = replace(MountOptions(), poll=lever != "processors kept awake")
    trio.run(_serve, root, options)


def measure(work: Path, lever: str) -> dict[str, float]:
    """Rates by step in a fresh mount with `lever` undone."""
    root = Path(tempfile.mkdtemp(prefix="icnfs-levers-", dir=work))
    mounted = root / "mnt"
    mounted.mkdir()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.levers", "--child", str(root), lever], cwd=REPO, start_new_session=True
    )
    try:
        wait_for(lambda: is_mounted(mounted) or daemon.poll() is not None, 30, "the mount is up")
        here = Work(mounted)
        return {name: step(here) for name, step in STEPS.items()}
    finally:
        subprocess.run(["umount", mounted], check=False)
        daemon.wait(60)
        shutil.rmtree(root, ignore_errors=True)


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.bench.levers", description="what each lever gains")
    parser.add_argument("levers", nargs="*", metavar="LEVER", help=f"of: {', '.join(LEVERS)}")
    parser.add_argument("--reps", type=int, default=2, help="repetitions, in turns; medians are printed")
    parser.add_argument("--work", type=Path, help="where to work")
    given = parser.parse_args()
    unknown = set(given.levers) - set(LEVERS)
    if unknown:
        parser.error(f"no such lever: {', '.join(sorted(unknown))}")
    print("| lever | " + " | ".join(STEPS) + " |\n|---|" + "---:|" * len(STEPS), flush=True)
    for lever in given.levers or LEVERS:
        ratios: dict[str, list[float]] = {name: [] for name in STEPS}
        for turn in range(given.reps):
            order = ["", lever] if turn % 2 else [lever, ""]  # whoever comes second finds a quieter disk
            found = {undone: measure(given.work, undone) for undone in order}
            for name in STEPS:
                ratios[name].append(found[""][name] / found[lever][name])
        print(
            f"| {lever} | " + " | ".join(f"{statistics.median(found):.2f}" for found in ratios.values()) + " |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
