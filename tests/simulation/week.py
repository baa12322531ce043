"""A week of overwriting in simulated time: what the providers hold for each live byte, and what collection moves.

python -m tests.simulation.week [--mib 1024] [--days 7] [--daily PART] [--seed 0] [WORKLOAD ...]

The whole product runs, from files to memory providers, on trio's MockClock: it publishes, condemns, compacts, deletes
after the grace.  Writes come in bursts of a segment's size, so that what is measured does not hang on the size of the
volume.  `stored` is what all providers hold, heads and runs included, over n/k times the bytes of the files; it is
looked at every hour, and the worst hour is told: without what waits out its grace, and with it.  `moved` is what
compaction read and wrote, over what publishing wrote: contents, records and heads.  At the end the volume is recovered
elsewhere and compared.  In the workload `kept` a snapshot is made every day and the last three are kept; live is what
tree and snapshots name, and each snapshot is opened and compared as well.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Final
from unittest import mock

import trio

from icnfs.crypto.slots import parse_recovery_key
from icnfs.format.records import Table
from icnfs.limits import CHUNK_SIZE, GIB, KIB, MIB
from icnfs.providers.base import Data
from icnfs.providers.memory import MemoryProvider
from icnfs.state import loader
from icnfs.volume import pack as packs
from icnfs.volume.compact import Compactor, Places
from icnfs.volume.condemned import decode
from icnfs.volume.create import create
from icnfs.volume.keyring import Secrets
from icnfs.volume.past import open_past
from icnfs.volume.recover import recover
from icnfs.volume.volume import Volume, open_volume
from tests.simulation.tamed import tamed
from tests.volume.world import CHEAP, Machine, World, files_of, get_file, list_files, put_file

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
FILE_BYTES: Final = 4 * MIB
PUBLISHING: Final = "publishing"
COMPACTING: Final = "compacting"
WHO: ContextVar[str] = ContextVar("who", default=PUBLISHING)

SPARED: Final = {
    "icnfs.volume.publish.LOOK_SECONDS": 30.0,
    "icnfs.volume.volume.CARE_SECONDS": 60.0,
    "icnfs.volume.audit.STEP_SECONDS": 60.0,
    "icnfs.state.upkeep.TICK": 60.0,
    "icnfs.volume.collect.PAUSE_SECONDS": 0.0,
    "icnfs.state.env.RESERVE": 4 * KIB,
    "icnfs.state.env.META_MAP": GIB,
    "icnfs.state.env.DATA_MAP": 16 * GIB,
}
"""What looks less often than on a real machine, so that a week is simulated in a minute, and what is made smaller."""


class Counted(MemoryProvider):
    """Counts what is moved, by who moves it."""

    def __init__(self, name: str) -> None:
        super().__init__(name, capacity=1 << 40, pool="one")
        self.moved = {PUBLISHING: 0, COMPACTING: 0}

    async def put(self, name: str, data: Data) -> None:
        await super().put(name, data)
        self.moved[WHO.get()] += len(self.objects[name])

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(name, offset, length)
        if WHO.get() == COMPACTING:
            self.moved[COMPACTING] += len(data)
        return data


@dataclass(frozen=True)
class Result:
    """Amplifications of the worst hour, and traffic; see the module."""

    daily: float
    stored: float
    stored_with_grace: float
    stored_at_end: float
    moved: float
    compacted: int
    """Bytes that compaction read and wrote."""
    recovered: bool

    @property
    def line(self) -> str:
        return (
            f"{self.daily:7.1%} {self.stored:9.3f} {self.stored_with_grace:11.3f} "
            f"{self.stored_at_end:9.3f} {self.moved:8.1%}   {'identical' if self.recovered else 'DIFFERS'}"
        )


HEADING: Final = "workload   a day   stored  with grace    at end    moved   recovered"


# --- workloads --------------------------------------------------------------------------------------------------------


class Tree:
    """The files, and what changes in them; `digests` is what must be read back."""

    def __init__(self, rng: random.Random, chunks: int, file_chunks: int) -> None:
        self.rng = rng
        self.file_chunks = file_chunks
        self.files: dict[bytes, list[bytes]] = {}
        self._named = 0
        self.chunks = chunks // file_chunks * file_chunks

    def fresh(self) -> bytes:
        return self.rng.randbytes(CHUNK_SIZE)

    async def add(self, volume: Volume) -> None:
        name = b"f%05d" % self._named
        self._named += 1
        self.files[name] = await self._write(volume, name)

    async def _write(self, volume: Volume, name: bytes) -> list[bytes]:
        data = [self.fresh() for _ in range(self.file_chunks)]
        await put_file(volume, name, b"".join(data))
        return [hashlib.sha256(piece).digest() for piece in data]

    async def fill(self, volume: Volume, burst: int) -> None:
        while len(self.files) * self.file_chunks < self.chunks:
            await self.add(volume)
            if volume.store.dirty_bytes > burst * CHUNK_SIZE:
                await volume.sync()

    async def rewrite(self, volume: Volume, place: int) -> None:
        """A new chunk in place of one of those that were there first."""
        number, index = divmod(place, self.file_chunks)
        name = sorted(self.files)[number]
        vfs = files_of(volume)
        handle = vfs.open(vfs.lookup(loader.ROOT_INO, name).ino, 1)
        data = self.fresh()
        await vfs.write(handle.fh, index * CHUNK_SIZE, data)
        vfs.release(handle.fh)
        self.files[name][index] = hashlib.sha256(data).digest()

    async def replace(self, volume: Volume) -> None:
        """A whole file is written anew, or one goes and another comes."""
        name = self.rng.choice(sorted(self.files))
        if self.rng.random() < 0.5:
            self.files[name] = await self._write(volume, name)
        else:
            files_of(volume).unlink(loader.ROOT_INO, name)
            del self.files[name]
            await self.add(volume)

    @property
    def bytes(self) -> int:
        return len(self.files) * self.file_chunks * CHUNK_SIZE


Burst = Callable[[Volume, int], Awaitable[None]]
"""Overwrites so many chunks."""


def uniform(tree: Tree) -> Burst:
    """Each chunk is as likely as any other."""

    async def burst(volume: Volume, count: int) -> None:
        for _ in range(count):
            await tree.rewrite(volume, tree.rng.randrange(tree.chunks))

    return burst


def skewed(tree: Tree) -> Burst:
    """Of the writes 80 % go to 20 % of the chunks, which lie scattered over all files."""
    places = list(range(tree.chunks))
    tree.rng.shuffle(places)
    hot, cold = places[: tree.chunks // 5], places[tree.chunks // 5 :]

    async def burst(volume: Volume, count: int) -> None:
        for _ in range(count):
            await tree.rewrite(volume, tree.rng.choice(hot if tree.rng.random() < 0.8 else cold))

    return burst


def zipf(tree: Tree) -> Burst:
    """The i-th of all chunks, in an order drawn once, is written in proportion to 1/i."""
    places = list(range(tree.chunks))
    tree.rng.shuffle(places)
    weights = list(accumulate(1 / (rank + 1) for rank in range(tree.chunks)))

    async def burst(volume: Volume, count: int) -> None:
        for place in tree.rng.choices(places, cum_weights=weights, k=count):
            await tree.rewrite(volume, place)

    return burst


def whole(tree: Tree) -> Burst:
    """Whole files are written anew, or deleted and others written."""
    owed = 0

    async def burst(volume: Volume, count: int) -> None:
        nonlocal owed
        owed += count
        while owed >= tree.file_chunks:
            owed -= tree.file_chunks
            await tree.replace(volume)

    return burst


@dataclass(frozen=True)
class Workload:
    """What is overwritten, how much of the volume a day, in files of how many bytes, with how many daily snapshots."""

    make: Callable[[Tree], Burst]
    daily: float
    file_segments: int = 0
    """Files of so many segments' size; 0: of 4 MiB."""
    snapshots: int = 0


WORKLOADS: Final = {
    "skewed": Workload(skewed, 0.04),
    "zipf": Workload(zipf, 0.05),
    "uniform": Workload(uniform, 0.04),
    "files": Workload(whole, 0.04),
    "large": Workload(whole, 0.10, file_segments=2),
    "kept": Workload(skewed, 0.04, snapshots=3),
}


# --- running ----------------------------------------------------------------------------------------------------------


class Meter:
    """Looks at the providers now and then."""

    def __init__(self, world: World, volume: Volume, tree: Tree) -> None:
        self._world = world
        self._volume = volume
        self._tree = tree
        self.worst = self.worst_with_grace = self.last = 0.0

    def look(self) -> None:
        """One look; the volume is published."""
        network = self._volume.network
        held = sum(len(data) for provider in self._world.providers.values() for data in provider.objects.values())
        waiting = sum(
            len(self._world.providers[provider].objects.get(name, b"")) for provider, name in self._condemned()
        )
        due = self._live() * network.n / network.k
        self.last = (held - waiting) / due
        self.worst = max(self.worst, self.last)
        self.worst_with_grace = max(self.worst_with_grace, held / due)

    def _live(self) -> int:
        """Bytes of the files; where there are snapshots, of the chunks that tree and snapshots name."""
        tally = self._volume.collector.tally
        return tally.live if self._volume.snapshots.list() and tally is not None else self._tree.bytes

    def _condemned(self) -> set[tuple[str, str]]:
        reader = self._volume.store.reader
        found: set[tuple[str, str]] = set()
        for key, _ in reader.rows(Table.CONDEMNED):
            found.update(decode(reader.get(Table.CONDEMNED, key) or b"").objects)
        return found


class Daily:
    """Makes a snapshot a day and keeps the last few; knows the chunks of each, as digests by file."""

    def __init__(self, tree: Tree, most: int) -> None:
        self._tree = tree
        self._most = most
        self._kept: dict[str, dict[bytes, list[bytes]]] = {}

    async def make(self, volume: Volume, day: int) -> None:
        if len(self._kept) == self._most:
            oldest = next(iter(self._kept))
            await volume.snapshots.delete(oldest)
            del self._kept[oldest]
        await volume.snapshots.create(f"day-{day}", HOUR)
        self._kept[f"day-{day}"] = {name: list(digests) for name, digests in self._tree.files.items()}

    async def are_whole(self, world: World, machine: Machine) -> bool:
        """Whether the volume that was recovered on a machine has exactly these, and each holds what it held."""
        for name, files in self._kept.items():
            opened = open_past(world.config, name, machine.state_dir, machine.secrets, start=world.start)
            async with opened as volume:
                found = {snapshot.name for snapshot in volume.snapshots.list()}
                if found != self._kept.keys() or not await _holds(volume, files):
                    return False
        return True


async def _holds(volume: Volume, files: Mapping[bytes, Sequence[bytes]]) -> bool:
    """Whether a volume has exactly these files, told by the digests of their chunks."""
    if list_files(volume) != sorted(files):
        return False
    for name, digests in files.items():
        data = await get_file(volume, name)
        pieces = [data[at : at + CHUNK_SIZE] for at in range(0, len(data), CHUNK_SIZE)]
        if [hashlib.sha256(piece).digest() for piece in pieces] != digests:
            return False
    return True


@contextmanager
def _sized(segment: int) -> Iterator[None]:
    """Segments of so many bytes, and the rest of what is spared."""
    with ExitStack() as stack:
        for dotted, value in SPARED.items():
            stack.enter_context(mock.patch(dotted, value))
        stack.enter_context(mock.patch.object(packs, "plan", partial(packs.plan, target=segment)))
        stack.enter_context(mock.patch("icnfs.volume.compact.SEGMENT_SIZE", segment))
        run = Compactor.run

        async def told(self: Compactor, plan: dict[bytes, Places]) -> None:
            token = WHO.set(COMPACTING)
            try:
                await run(self, plan)
            finally:
                WHO.reset(token)

        stack.enter_context(mock.patch.object(Compactor, "run", told))
        yield


def simulate(
    workload: str,
    *,
    mib: int,
    days: float,
    segment: int,
    daily: float | None = None,
    seed: int = 0,
    told: Callable[[str], None] = lambda _: None,
) -> Result:
    """One workload, on a volume of so many MiB with segments of so many bytes; `daily` is a part of it."""
    chosen = WORKLOADS[workload] if daily is None else replace(WORKLOADS[workload], daily=daily)
    file_bytes = chosen.file_segments * segment or FILE_BYTES
    root = Path(tempfile.mkdtemp(prefix="icnfs-week-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    results: list[Result] = []
    try:
        with tamed(seed) as (clock, _, _), _sized(segment):
            world = World(root)
            world.providers = {name: Counted(name) for name in world.providers}
            tree = Tree(random.Random(seed), mib * MIB // CHUNK_SIZE, file_bytes // CHUNK_SIZE)
            run = partial(_run, world, tree, chosen, days, segment, results)
            trio.run(lambda: run(lambda text: told(f"{workload}: {text}")), clock=clock)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return results[0]


async def _run(
    world: World,
    tree: Tree,
    workload: Workload,
    days: float,
    segment: int,
    results: list[Result],
    told: Callable[[str], None],
) -> None:
    machine = world.machine()
    config = replace(world.config, publish_seconds=300, cache_clean=segment, grace=DAY)
    created = await create(config, machine.state_dir, machine.secrets, costs=CHEAP, start=world.start)
    burst = segment // CHUNK_SIZE
    async with open_volume(config, machine.state_dir, machine.secrets, start=world.start) as volume:
        overwrite = workload.make(tree)
        await tree.fill(volume, burst)
        await volume.sync()
        before = _moved(world)
        snapshots = Daily(tree, workload.snapshots)
        meter, owed = Meter(world, volume, tree), 0.0
        for hour in range(int(days * 24)):
            await trio.sleep(HOUR)
            owed += tree.chunks * workload.daily / 24
            if owed >= burst:
                owed -= burst
                await overwrite(volume, burst)
            await volume.sync()
            meter.look()
            if hour % 24 == 12 and workload.snapshots:
                await snapshots.make(volume, hour // 24)
            if hour % 24 == 23:
                told(f"day {hour // 24 + 1}, stored {meter.last:.3f}")
        after = _moved(world)
    compacted = after[COMPACTING] - before[COMPACTING]
    results.append(
        Result(
            workload.daily,
            meter.worst,
            meter.worst_with_grace,
            meter.last,
            compacted / (after[PUBLISHING] - before[PUBLISHING]),
            compacted,
            await _is_whole(world, Secrets(recovery=parse_recovery_key(created.recovery_key)), tree, snapshots),
        )
    )


def _moved(world: World) -> dict[str, int]:
    moved = {PUBLISHING: 0, COMPACTING: 0}
    for provider in world.providers.values():
        assert isinstance(provider, Counted)
        for who, count in provider.moved.items():
            moved[who] += count
    return moved


async def _is_whole(world: World, offered: Secrets, tree: Tree, snapshots: Daily) -> bool:
    """Whether an empty machine finds every file as it was written, and every snapshot as it was made."""
    there = world.machine("there")
    there.secrets = offered
    await recover(world.config, there.state_dir, offered, start=world.start)
    async with open_volume(world.config, there.state_dir, offered, start=world.start, read_only=True) as volume:
        if not await _holds(volume, tree.files):
            return False
    whole = await snapshots.are_whole(world, there)
    await trio.sleep(1)  # the committers' tasks come to their ends
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.week", description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--mib", type=int, default=1024, help="size of the volume (default 1024)")
    parser.add_argument("--segment-mib", type=int, default=16, help="size of a segment (default 16, the real one)")
    parser.add_argument("--days", type=float, default=7)
    parser.add_argument(
        "--daily", type=float, metavar="PART", help="of the volume overwritten a day (default: each its own)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := set(options.workloads) - WORKLOADS.keys():
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")

    def told(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    print(f"{options.mib} MiB, segments of {options.segment_mib} MiB, {options.days:g} days, 4-of-6, grace 24 h")
    print(HEADING)
    failed = False
    for workload in options.workloads or WORKLOADS:
        begun = time.monotonic()
        result = simulate(
            workload,
            mib=options.mib,
            days=options.days,
            daily=options.daily,
            segment=options.segment_mib * MIB,
            seed=options.seed,
            told=told,
        )
        told("")
        print(f"{workload:10} {result.line}   ({time.monotonic() - begun:.0f} s)")
        failed = failed or not result.recovered
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
