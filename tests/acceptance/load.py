"""A mixed load on a mount whose every answer is known: writers, readers of cold and warm files, and syncs.

Promises: what it wrote is in `expected` once the request that made it so has returned; each read is compared with what
must be there; each system call is timed.  One writer has a folder to itself, so the model needs no order among them.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.acceptance.harness import ICNFS

KIB, MIB = 1 << 10, 1 << 20
POOL: Final = random.Random(1).randbytes(9 * MIB)
"""Every content is a stretch of it."""

STARTS: Final = len(POOL) - 4 * MIB
SIZE_MAX: Final = 4 * MIB


@dataclass(frozen=True)
class Content:
    """`size` bytes of POOL from `start` on."""

    start: int
    size: int

    def bytes(self, offset: int = 0, length: int = SIZE_MAX) -> bytes:
        return POOL[self.start + offset : self.start + min(offset + length, self.size)]


def some_content(chance: random.Random, most: int = 2 * MIB) -> Content:
    """Of any size up to `most`, small ones as often as large ones."""
    size = int(most ** chance.uniform(0.4, 1.0))
    return Content(chance.randrange(STARTS), size)


@dataclass
class Seen:
    """What came of it so far."""

    calls: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    bytes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    syncs_degraded: int = 0


class Load:
    """Threads over one mount, from `start` to `stop`."""

    def __init__(
        self, root: Path, environment: dict[str, str], seed: int, *, writers: int = 2, readers: int = 2
    ) -> None:
        self.root = root
        self.seen = Seen()
        self.expected: dict[str, Content] = {}
        """Path below `root` -> what must be there."""
        self.under_way: dict[int, tuple[str, float]] = {}
        """Thread -> the call that it is in, and since when."""
        self._environment = environment
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._cold: list[str] = []
        self._threads: list[threading.Thread] = []
        for number in range(writers):
            self._thread(self._write, random.Random(seed * 100 + number), f"writer-{number}")
        for number in range(readers):
            self._thread(self._read, random.Random(seed * 100 + 50 + number), f"reader-{number}")
        self.sync_every = 15.0
        self._thread(self._sync, random.Random(seed), "sync")

    # --- before, while and after --------------------------------------------------------------------------------------

    def fill(self, count: int, size: int) -> None:
        """Files that are to be read cold."""
        chance = random.Random(7)
        (self.root / "cold").mkdir()
        for number in range(count):
            path, content = f"cold/{number}", Content(chance.randrange(STARTS), size)
            (self.root / path).write_bytes(content.bytes())
            self.expected[path] = content
            self._cold.append(path)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, seconds: float) -> None:
        """All have ended, or those that have not are failures."""
        self._stopping.set()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                call = self.under_way.get(thread.ident or 0, ("", 0.0))[0]
                self._failed(f"{thread.name} has not returned from {call} after {seconds:.0f} s more")

    def check(self) -> list[str]:
        """What the mount holds against what must be there: one line for each difference."""
        found = set()
        wrong = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), self.root)
                found.add(path)
                if path not in self.expected:
                    wrong.append(f"{path}: too many")
                elif Path(self.root, path).read_bytes() != self.expected[path].bytes():
                    wrong.append(f"{path}: other contents")
        return wrong + [f"{path}: missing" for path in sorted(self.expected.keys() - found)]

    def waiting(self) -> float:
        """Seconds that the longest of the calls under way has taken so far."""
        now = time.monotonic()
        return max((now - since for _, since in list(self.under_way.values())), default=0.0)

    # --- the threads --------------------------------------------------------------------------------------------------

    def _thread(self, work: Callable[[random.Random, str], None], chance: random.Random, name: str) -> None:
        def run() -> None:
            while not self._stopping.is_set():
                try:
                    work(chance, name)
                except OSError as error:
                    self._failed(f"{name}: {error}")
                except Exception as error:  # noqa: BLE001  # told in the verdict
                    self._failed(f"{name}: {error!r}")

        self._threads.append(threading.Thread(target=run, name=name, daemon=True))

    def _failed(self, text: str) -> None:
        with self._lock:
            self.seen.failures.append(f"{time.strftime('%H:%M:%S')} {text}")
        self._stopping.wait(1.0)

    @contextlib.contextmanager
    def _timed(self, call: str) -> Iterator[None]:
        began, me = time.monotonic(), threading.get_ident()
        self.under_way[me] = call, began
        try:
            yield
        finally:
            del self.under_way[me]
            took = time.monotonic() - began
            with self._lock:
                self.seen.calls[call] += 1
                self.seen.longest[call] = max(took, self.seen.longest.get(call, 0.0))

    def _write(self, chance: random.Random, name: str) -> None:
        """One small step of a writer in its folder."""
        folder = self.root / name
        if not folder.exists():
            folder.mkdir()
        mine = [path for path in list(self.expected) if path.startswith(f"{name}/")]
        kind = chance.choice(("new", "new", "new", "over", "replace", "rename", "unlink"))
        if kind == "new" or not mine:
            self._put(f"{name}/{chance.getrandbits(40):010x}", some_content(chance))
        elif kind == "over":
            self._put(chance.choice(mine), some_content(chance))
        elif kind == "replace":
            temporary, path = f"{name}/.new", chance.choice(mine)
            self._put(temporary, some_content(chance))
            self._rename(temporary, path)
        elif kind == "rename":
            self._rename(chance.choice(mine), f"{name}/{chance.getrandbits(40):010x}")
        else:
            path = chance.choice(mine)
            with self._timed("unlink"):
                os.unlink(self.root / path)
            del self.expected[path]
        self._stopping.wait(chance.uniform(0, 0.5))

    def _put(self, path: str, content: Content) -> None:
        """Written in pieces and fsynced."""
        with self._timed("create"):
            file = os.open(self.root / path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        try:
            for offset in range(0, content.size, 256 * KIB):
                piece = content.bytes(offset, 256 * KIB)
                with self._timed("write"):
                    count = os.write(file, piece)
                assert count == len(piece)
            with self._timed("fsync"):
                os.fsync(file)
        finally:
            with self._timed("close"):
                os.close(file)
        self.expected[path] = content
        self.seen.bytes["written"] += content.size

    def _rename(self, old: str, new: str) -> None:
        with self._timed("rename"):
            os.rename(self.root / old, self.root / new)
        self.expected[new] = self.expected.pop(old)

    def _read(self, chance: random.Random, name: str) -> None:
        """A range, or a whole file, of a cold one or of a warm one that no writer changes: cold ones just read."""
        path = chance.choice(self._cold)
        content = self.expected[path]
        whole = chance.random() < 0.3
        length = content.size if whole else min(content.size, 4096 << chance.randrange(9))
        offset = 0 if whole else chance.randrange(content.size - length + 1)
        with self._timed("open"):
            file = os.open(self.root / path, os.O_RDONLY)
        try:
            if chance.random() < 0.8:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            for at in range(offset, offset + length, 128 * KIB):
                wanted = min(128 * KIB, offset + length - at)
                with self._timed("read"):
                    data = os.pread(file, wanted, at)
                if data != content.bytes(at, wanted):
                    self._failed(f"{path} from {at}: {len(data)} wrong bytes")
                self.seen.bytes["read"] += len(data)
        finally:
            os.close(file)
        with self._timed("stat"):
            assert os.stat(self.root / path).st_size == content.size
        if chance.random() < 0.1:
            with self._timed("list"):
                os.listdir(self.root / "cold")
        self._stopping.wait(chance.uniform(0, 0.2))

    def _sync(self, chance: random.Random, name: str) -> None:
        """`icnfs sync`, which may fail as degraded, within its own deadline."""
        if self._stopping.wait(self.sync_every):
            return
        with self._timed("icnfs sync"):
            done = subprocess.run(
                [str(ICNFS), "sync", str(self.root)],
                env=self._environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
            )
        if done.returncode == DEGRADED:
            self.seen.syncs_degraded += 1
        elif done.returncode:
            self._failed(f"icnfs sync ended with {done.returncode}: {done.stderr.strip()[-300:]}")


DEGRADED: Final = 14
"""The exit code of icnfs(1) for it."""
