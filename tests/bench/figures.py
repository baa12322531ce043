"""The figures: each a fixed piece of work in a directory.

Every step runs on each file system that is compared, with the same bytes in the same order; what counts is the ratio in
one run, for machines differ and their load does too.  Before a step that reads, what is cached is dropped where that is
allowed: the kernel's caches, and what a mount's processes have mapped of its database (`cold`).

A step answers a rate, higher being better, or seconds, lower being better, as its `Figure` says.  One that writes ends
with the place's `settle`: nothing, or, to measure how fast what was written is published, a wait for that.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sysconfig
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.cold import drop_caches

MB: Final = 1_000_000
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How much work: bytes of the big file, number of small files, seconds of a timed step, random writes, SQLite
    transactions, files of the tree that is unpacked (None: all), and the folder that this tree is (default: the running
    Python's library)."""

    big: int
    small: int
    seconds: float
    random_writes: int
    transactions: int
    tree: int | None
    source: Path = Path(sysconfig.get_path("stdlib"))


FULL: Final = Scale(big=512 * MIB, small=4000, seconds=3.0, random_writes=3000, transactions=200, tree=None)
QUICK: Final = Scale(big=64 * MIB, small=500, seconds=1.0, random_writes=300, transactions=30, tree=800)


class Place:
    """A directory to work in, with the data that all steps share; `forget` and `settle`: see the module."""

    def __init__(
        self,
        root: Path,
        scale: Scale,
        *,
        forget: Callable[[], object] = drop_caches,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        self.root = root
        self.scale = scale
        self.forget = forget
        self.settle = settle
        self.block = random.Random(7).randbytes(MIB)
        self.big = root / "big"
        self.tree = root / "tree"
        self.folders = 40

    def small(self, number: int) -> Path:
        return self.root / f"s{number % self.folders}" / f"f{number}"

    def data(self, number: int) -> bytes:
        """4 KiB that no other number has."""
        at = number % (MIB - 4096)
        return self.block[at : at + 4096]


def _rate(amount: float, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return amount / (time.perf_counter() - began)


def _seconds(work: Callable[[], object]) -> float:
    return 1 / _rate(1, work)


def _timed(place: Place, step: Callable[[], object], settle: Callable[[], object] = lambda: None) -> float:
    """Steps per second."""
    seconds = place.scale.seconds
    count, began = 0, time.perf_counter()
    while time.perf_counter() < began + seconds:
        step()
        count += 1
    settle()
    return count / (time.perf_counter() - began)


def sequential_write(place: Place) -> float:
    def work() -> None:
        fd = os.open(place.big, os.O_CREAT | os.O_WRONLY)
        for i in range(place.scale.big // MIB):
            os.write(fd, place.block[i % 977 :] + place.block[: i % 977])
        os.fsync(fd)
        os.close(fd)
        place.settle()

    return _rate(place.scale.big / MB, work)


def _read_through(path: Path, expected: int) -> None:
    with open(path, "rb", buffering=0) as file:
        count = 0
        while piece := file.read(MIB):
            count += len(piece)
    assert count == expected, f"read {count} of {expected} bytes"


def sequential_read(place: Place) -> float:
    place.forget()
    return _rate(place.scale.big / MB, lambda: _read_through(place.big, place.scale.big))


def random_read(place: Place) -> float:
    place.forget()
    chance = random.Random(8)
    fd = os.open(place.big, os.O_RDONLY)
    blocks = place.scale.big // 4096
    rate = _timed(place, lambda: os.pread(fd, 4096, chance.randrange(blocks) * 4096))
    os.close(fd)
    return rate


def random_write(place: Place) -> float:
    chance = random.Random(9)
    blocks = place.scale.big // 4096
    fd = os.open(place.big, os.O_WRONLY)

    def work() -> None:
        for number in range(place.scale.random_writes):
            os.pwrite(fd, place.data(number), chance.randrange(blocks) * 4096)
        os.fsync(fd)
        place.settle()

    rate = _rate(place.scale.random_writes, work)
    os.close(fd)
    return rate


def append_and_fsync(place: Place) -> float:
    fd = os.open(place.root / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def step() -> None:
        os.write(fd, place.block[:4096])
        os.fsync(fd)

    rate = _timed(place, step, place.settle)
    os.close(fd)
    return rate


def small_creation(place: Place) -> float:
    def work() -> None:
        for number in range(place.scale.small):
            if number < place.folders:
                os.mkdir(place.small(number).parent)
            fd = os.open(place.small(number), os.O_CREAT | os.O_WRONLY)
            os.write(fd, place.data(number))
            os.close(fd)
        place.settle()

    return _rate(place.scale.small, work)


def metadata_walk(place: Place) -> float:
    place.forget()

    seen, began = 0, time.perf_counter()
    for folder, _, names in os.walk(place.root):
        for name in names:
            os.lstat(os.path.join(folder, name))
            seen += 1
    assert seen >= place.scale.small
    return seen / (time.perf_counter() - began)


def small_read(place: Place) -> float:
    place.forget()

    def work() -> None:
        for number in range(place.scale.small):
            assert place.small(number).read_bytes() == place.data(number)

    return _rate(place.scale.small, work)


def rename(place: Place) -> float:
    def work() -> None:
        for number in range(place.scale.small):
            path = place.small(number)
            os.rename(path, path.with_suffix(".r"))
            os.rename(path.with_suffix(".r"), path)
        place.settle()

    return _rate(2 * place.scale.small, work)


def archive(source: Path, files: int | None) -> Path:
    """A tar archive of `source`, or of its first `files` files, without installed packages; made once a machine."""
    origin = zlib.crc32(bytes(source.resolve()))
    path = Path(tempfile.gettempdir()) / f"icnfs-bench-{os.getuid()}-{origin:08x}-{files or 'all'}.tar"
    if path.exists():
        return path
    left = files

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        nonlocal left
        if "site-packages" in member.name or "dist-packages" in member.name or left == 0:
            return None
        left = left - 1 if left and member.isfile() else left
        return member

    unfinished = path.with_suffix(f".{os.getpid()}")
    with tarfile.open(unfinished, mode="w") as tar:
        tar.add(source, "lib", filter=wanted)
    unfinished.rename(path)
    return path


def untar(place: Place) -> float:
    source = archive(place.scale.source, place.scale.tree)
    place.tree.mkdir()

    def work() -> None:
        subprocess.run(["tar", "xf", source, "-C", place.tree], check=True)
        place.settle()

    return _seconds(work)


_GIT: Final = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "gc.auto",
    "GIT_CONFIG_VALUE_0": "0",
}
"""Without git-gc(1), which a large commit leaves behind at work: it would fall into the steps that follow."""


def git(place: Place) -> float:
    def work() -> None:
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"], ["status", "--short"]):
            subprocess.run(
                ["git", "-C", place.tree, *command], check=True, env=os.environ | _GIT, stdout=subprocess.DEVNULL
            )
        place.settle()

    return _seconds(work)


def sqlite(place: Place) -> float:
    database = sqlite3.connect(place.root / "base")
    database.execute("create table t (a integer primary key, b blob)")

    def work() -> None:
        for _ in range(place.scale.transactions):
            with database:
                database.execute("insert into t (b) values (?)", (place.block[:200],))
        place.settle()

    rate = _rate(place.scale.transactions, work)
    database.close()
    return rate


def removal(place: Place) -> float:
    """All that the steps made: entries a second."""
    entries = sum(len(folders) + len(names) for _, folders, names in os.walk(place.root))

    def work() -> None:
        for path in list(place.root.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        place.settle()

    return _rate(entries, work)


@dataclass(frozen=True)
class Figure:
    """A step, its unit ("s" where lower is better), and whether it writes."""

    unit: str
    step: Callable[[Place], float]
    writes: bool


STEPS: Final[dict[str, Figure]] = {
    "sequential write to fsync": Figure("MB/s", sequential_write, True),
    "sequential read": Figure("MB/s", sequential_read, False),
    "random read, 4 KiB": Figure("1/s", random_read, False),
    "random write, 4 KiB, fsync at the end": Figure("1/s", random_write, True),
    "append 4 KiB and fsync": Figure("1/s", append_and_fsync, True),
    "create 4 KiB files": Figure("1/s", small_creation, True),
    "walk and stat": Figure("1/s", metadata_walk, False),
    "read 4 KiB files": Figure("1/s", small_read, False),
    "rename": Figure("1/s", rename, True),
    "untar the Python library": Figure("s", untar, True),
    "git init, add, commit, status": Figure("s", git, True),
    "SQLite transactions": Figure("1/s", sqlite, True),
}
"""In the order in which they need each other's files."""

REMOVAL: Final = ("remove the tree", Figure("1/s", removal, True))
"""Comes last of all."""
