"""python -m tests.bench.aged [--mib N] [--turns N] [--work FOLDER]

Does the local state slow down with age?  Files of mixed sizes (4 KiB to 1 MiB, so chunks of many sizes) are written
into a state that holds N MiB of them at most, the oldest and random ones going to make room, until `turns` times as
much has passed through.  Prints how fast the first N MiB beyond filling were written, the last, and their ratio; the
same for reading all that is there.  Writes are measured in slices of 16 MiB, each flushed to the disk, and the median
slice counts.  Exit status 1 where the aged state is more than 20 % slower than the fresh one in time and in processor
time alike: a lenient verdict, for the disk's moods move the one; read the ratios.

No mount and no providers: the state alone, as tests of `icnfs.state` open it.
"""

from __future__ import annotations

import argparse
import os
import random
import stat
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import trio

from icnfs.crypto.keys import MasterKey
from icnfs.limits import KIB, MIB
from icnfs.state.loader import create
from icnfs.state.store import Store
from icnfs.state.upkeep import Budget, Upkeep

SLICE: Final = 16 * MIB
READS: Final = 5
WORST: Final = 0.8


@dataclass(slots=True)
class Speed:
    """MB/s by the clock and by the processor's time, one of each for a slice."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def add(self, size: int, seconds: float, busy: float) -> None:
        self.clock.append(size / 1e6 / seconds)
        self.processor.append(size / 1e6 / max(busy, 1e-6))


class Churn:
    """A store whose files come and go; `live` maps inodes to sizes."""

    def __init__(self, store: Store, capacity: int, seed: int) -> None:
        self._store = store
        self._capacity = capacity
        self._chance = random.Random(seed)
        self._bytes = os.urandom(2 * MIB)
        self.live: dict[int, int] = {}
        self.held = 0
        self._by_age: deque[int] = deque()
        self._unordered: list[int] = []

    def _oldest(self) -> int:
        """(The first key of a dictionary that loses its first keys takes ever longer to find.)"""
        while (ino := self._by_age.popleft()) not in self.live:
            pass
        return ino

    def _any(self) -> int:
        inos = self._unordered
        while True:
            at = self._chance.randrange(len(inos))
            ino, inos[at] = inos[at], inos[-1]
            inos.pop()
            if ino in self.live:
                return ino

    async def write(self, size: int) -> Speed:
        """Write `size` bytes, slice by slice."""
        speed = Speed()
        for _ in range(size // SLICE):
            began, busy, written = time.perf_counter(), time.process_time(), 0
            while written < SLICE:
                written += await self._write_one()
            await self._store.flush()
            speed.add(written, time.perf_counter() - began, time.process_time() - busy)
        return speed

    async def _write_one(self) -> int:
        store, chance = self._store, self._chance
        size = int(4 * KIB * 256 ** chance.random())
        while self.held + size > self._capacity:
            ino = self._oldest() if chance.random() < 0.5 else self._any()
            store.drop_inode(ino)
            self.held -= self.live.pop(ino)
        at = chance.randrange(MIB)
        if store.congested:
            await store.wait_room()
        node = store.new_inode(stat.S_IFREG | 0o644, 0, 0, 1)
        store.contents.write(store.edit(node.ino), 0, self._bytes[at : at + size])
        store.relieve()
        self.live[node.ino] = size
        self._by_age.append(node.ino)
        self._unordered.append(node.ino)
        self.held += size
        await trio.lowlevel.checkpoint()
        return size

    async def read(self) -> Speed:
        """Read everything, in no order, READS times."""
        speed = Speed()
        inos = list(self.live)
        for _ in range(READS):
            self._chance.shuffle(inos)
            began, busy = time.perf_counter(), time.process_time()
            for ino in inos:
                size = self.live[ino]
                data = await self._store.contents.read(self._store.inode(ino), 0, size, trio.current_time() + 60)
                if len(data) != size:
                    raise AssertionError(f"inode {ino} was read short")
            speed.add(self.held, time.perf_counter() - began, time.process_time() - busy)
        return speed


async def age(root: Path, capacity: int, turns: int, seed: int = 1) -> dict[str, tuple[Speed, Speed]]:
    """(fresh, aged) by what was done."""
    master = MasterKey.random()
    create(root, os.urandom(16), master)
    store = Store.open(root, master)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            nursery.start_soon(Upkeep(store, Budget(reserve=0)).run)
            churn = Churn(store, capacity, seed)
            await churn.write(capacity)
            fresh = await churn.write(capacity), await churn.read()
            await churn.write(capacity * max(turns - 3, 0))
            aged = await churn.write(capacity), await churn.read()
            nursery.cancel_scope.cancel()
    finally:
        await store.close()
    return {"write": (fresh[0], aged[0]), "read": (fresh[1], aged[1])}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.aged", description="an aged local state against a fresh one")
    parser.add_argument("--mib", type=int, default=512, help="what the state holds at most")
    parser.add_argument("--turns", type=int, default=10, help="how often as much passes through it")
    parser.add_argument("--work", type=Path, help="where to put it (default: a fresh temporary folder)")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="icnfs-aged-", dir=given.work) as work:
        root = Path(work) / "state"
        speeds = trio.run(age, root, given.mib * MIB, given.turns)
        size = (root / "data" / "data.mdb").stat().st_size
    worst = 1.0
    print(f"{'':8}{'fresh MB/s':>12}{'aged MB/s':>12}{'aged : fresh':>14}{'by processor':>14}")
    for name, (fresh, aged) in speeds.items():
        by_clock = median(aged.clock) / median(fresh.clock)
        by_processor = median(aged.processor) / median(fresh.processor)
        worst = min(worst, max(by_clock, by_processor))
        print(f"{name:8}{median(fresh.clock):12.0f}{median(aged.clock):12.0f}{by_clock:14.2f}{by_processor:14.2f}")
    print(f"{given.turns} x {given.mib} MiB passed through; the file of chunks has {size / MIB:.0f} MiB")
    return 0 if worst >= WORST else 1


if __name__ == "__main__":
    sys.exit(main())
