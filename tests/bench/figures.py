"""The figures: each a fixed piece of work in a directory, answering a rate (higher is better).

Every step runs on a mount and on the machine's own file system, with the same bytes in the same order; what counts is
the ratio of the two in one run, for machines differ and their load does too.  Before a step that reads, the kernel's
caches are dropped where that is allowed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MB: Final = 1_000_000
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How much work: bytes of the big file, number of small files, seconds of a timed step."""

    big: int
    small: int
    seconds: float
    random_writes: int


FULL: Final = Scale(big=512 * MIB, small=4000, seconds=3.0, random_writes=3000)
QUICK: Final = Scale(big=64 * MIB, small=500, seconds=1.0, random_writes=300)


class Place:
    """A directory to work in, with the data that all steps share."""

    def __init__(self, root: Path, scale: Scale) -> None:
        self.root = root
        self.scale = scale
        self.block = random.Random(7).randbytes(MIB)
        self.big = root / "big"
        self.folders = 40

    def small(self, number: int) -> Path:
        return self.root / f"s{number % self.folders}" / f"f{number}"

    def data(self, number: int) -> bytes:
        """4 KiB that no other number has."""
        at = number % (MIB - 4096)
        return self.block[at : at + 4096]


def drop_caches() -> bool:
    """Whether the kernel forgot what it had cached; needs root."""
    os.sync()
    with suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
        return True
    return False


def _rate(amount: float, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return amount / (time.perf_counter() - began)


def _timed(seconds: float, step: Callable[[], object]) -> float:
    """Steps per second."""
    count, began = 0, time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        step()
        count += 1
    return count / (now - began)


def sequential_write(place: Place) -> float:
    def work() -> None:
        fd = os.open(place.big, os.O_CREAT | os.O_WRONLY)
        for i in range(place.scale.big // MIB):
            os.write(fd, place.block[i % 977 :] + place.block[: i % 977])
        os.fsync(fd)
        os.close(fd)

    return _rate(place.scale.big / MB, work)


def _read_through(path: Path, expected: int) -> None:
    with open(path, "rb", buffering=0) as file:
        count = 0
        while piece := file.read(MIB):
            count += len(piece)
    assert count == expected, f"read {count} of {expected} bytes"


def sequential_read(place: Place) -> float:
    drop_caches()
    return _rate(place.scale.big / MB, lambda: _read_through(place.big, place.scale.big))


def random_read(place: Place) -> float:
    drop_caches()
    chance = random.Random(8)
    fd = os.open(place.big, os.O_RDONLY)
    blocks = place.scale.big // 4096
    rate = _timed(place.scale.seconds, lambda: os.pread(fd, 4096, chance.randrange(blocks) * 4096))
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

    rate = _rate(place.scale.random_writes, work)
    os.close(fd)
    return rate


def append_and_fsync(place: Place) -> float:
    fd = os.open(place.root / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def step() -> None:
        os.write(fd, place.block[:4096])
        os.fsync(fd)

    rate = _timed(place.scale.seconds, step)
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

    return _rate(place.scale.small, work)


def metadata_walk(place: Place) -> float:
    drop_caches()

    def work() -> None:
        seen = 0
        for folder, _, names in os.walk(place.root):
            for name in names:
                os.lstat(os.path.join(folder, name))
                seen += 1
        assert seen >= place.scale.small

    return _rate(place.scale.small, work)


def small_read(place: Place) -> float:
    drop_caches()

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

    return _rate(2 * place.scale.small, work)


def removal(place: Place) -> float:
    def work() -> None:
        for number in range(place.scale.small):
            os.unlink(place.small(number))

    return _rate(place.scale.small, work)


Step = Callable[[Place], float]

STEPS: Final[dict[str, tuple[str, Step]]] = {
    "sequential write": ("MB/s", sequential_write),
    "sequential read": ("MB/s", sequential_read),
    "random read, 4 KiB": ("1/s", random_read),
    "random write, 4 KiB": ("1/s", random_write),
    "append 4 KiB and fsync": ("1/s", append_and_fsync),
    "create 4 KiB files": ("1/s", small_creation),
    "walk and stat": ("1/s", metadata_walk),
    "read 4 KiB files": ("1/s", small_read),
    "rename": ("1/s", rename),
}
"""In the order in which they need each other's files; `removal` comes last of all."""
