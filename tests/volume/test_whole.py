"""Every head is one moment of the tree, whatever is written, evicted, folded and unreachable while it is made."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from icnfs.errors import TooFewProvidersError
from icnfs.providers.memory import MemoryProvider
from icnfs.state.loader import ROOT_INO
from icnfs.volume import publish
from icnfs.volume.volume import Volume
from tests.volume.world import NAMES, World, files_of, get_file, list_files, put_file

FILES = 4
PIECES = 3
PIECE = 1 << 17
PUBLISHES = 10


class Rounds:
    """Writes all pieces of all files in order, again and again; a piece holds its round's number throughout."""

    def __init__(self, volume: Volume, chance: random.Random) -> None:
        self._volume = volume
        self._chance = chance
        self.round = 0

    async def write(self) -> None:
        vfs = files_of(self._volume)
        handles = []
        for i in range(FILES):
            handle, _ = vfs.create(ROOT_INO, b"f%d" % i, 0o100644, os.O_RDWR, 0, 0)
            handles.append(handle.fh)
        while True:
            self.round += 1
            for fh in handles:
                for piece in range(PIECES):
                    if vfs.congested:
                        await vfs.wait_room()
                    await self._piece(vfs, fh, piece)
                    await trio.sleep(self._chance.choice([0, 0, 0.003]))

    async def _piece(self, vfs: object, fh: int, piece: int) -> None:
        """Whole, or its first bytes alone, which makes a patch of what may lie at the providers only."""
        size = self._chance.choice([PIECE, 8])
        await vfs.write(fh, piece * PIECE, (self.round.to_bytes(8, "big") * (size // 8)))  # type: ignore[attr-defined]


async def pieces_of(volume: Volume) -> list[int]:
    """The round of each piece, in the order in which they are written; 0 before the first."""
    rounds = []
    vfs = files_of(volume)
    there = {name for name, _, _ in vfs.readdir(vfs.opendir(ROOT_INO), 0)}
    for i in range(FILES):
        data = await get_file(volume, b"f%d" % i) if b"f%d" % i in there else b""
        for piece in range(PIECES):
            rounds.append(int.from_bytes(data[piece * PIECE : piece * PIECE + 8], "big"))
    return rounds


def one_moment(rounds: list[int]) -> bool:
    """Each piece is of the round that is being written or, from some piece on, of the one before."""
    return sorted(rounds, reverse=True) == rounds and rounds[0] - rounds[-1] <= 1


def copy_of(world: World, root: Path) -> World:
    """What the providers hold, for another machine to take over without disturbing anybody."""
    root.mkdir()
    other = World(root)
    for name, provider in world.providers.items():
        other.providers[name].objects = dict(provider.objects)
    return other


@pytest.mark.parametrize("folding", [True, False])
def test_each_published_state_is_one_moment(
    world: World, tmp_path: Path, folding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not folding:
        monkeypatch.setattr(publish, "FOLD_SECONDS", 0.0)
    chance = random.Random(7)
    here = world.machine()
    key = here.init().recovery_key
    seen: list[list[int]] = []

    def recovered(number: int) -> list[int]:
        there = copy_of(world, tmp_path / f"copy{number}").machine()
        there.recover(key)
        return there.run(pieces_of)

    async def body(volume: Volume) -> None:
        await volume.first_look()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Rounds(volume, chance).write)
            for number in range(PUBLISHES):
                world.away(*chance.sample(NAMES, chance.choice([0, 0, 1, 2, 3])))
                await trio.sleep(0.05)
                try:
                    await volume.publisher.publish()
                except TooFewProvidersError:
                    continue
                seen.append(await trio.to_thread.run_sync(partial(recovered, number)))
            nursery.cancel_scope.cancel()

    here.run(body, cache_clean=0, read_deadline=5.0)
    assert len(seen) >= 3
    assert all(map(one_moment, seen)), seen
    assert all(old <= new for old, new in pairwise(seen))


def test_small_runs_over_a_large_checkpoint_survive_crashes_and_recoveries(world: World, tmp_path: Path) -> None:
    """Publishes that end at any put, remounts, and machines that take over, in a seeded order."""
    chance = random.Random(3)
    machine = world.machine()
    key = machine.init().recovery_key
    names: set[bytes] = set()
    most_runs = 0

    async def base(volume: Volume) -> None:
        for i in range(1500):
            await put_file(volume, b"base-%04d" % i, b"")
        await volume.sync()

    async def step(volume: Volume, number: int, cut_after: int | None) -> None:
        nonlocal most_runs
        await volume.first_look()
        name = b"step-%02d" % number
        await put_file(volume, name, b"s" * chance.choice([0, 10, 2000]))
        names.add(name)
        await volume.store.flush()
        with ends_after(cut_after):
            await volume.publisher.publish()
        head = volume.publisher.head
        assert head is not None
        most_runs = max(most_runs, len(head.runs))

    async def steps_of(volume: Volume) -> set[bytes]:
        return {name for name in list_files(volume) if name.startswith(b"step")}

    machine.run(base)
    for number in range(20):
        cut_after = chance.choice([None, None, chance.randrange(20)])
        machine.run(partial(step, number=number, cut_after=cut_after))
        if cut_after is None:
            there = copy_of(world, tmp_path / f"copy{number}").machine()
            there.recover(key)
            assert there.run(steps_of) == names
            if chance.random() < 0.3:
                machine = world.machine(f"m{number}")
                machine.recover(key)
    assert most_runs >= 3, "runs were kept beside the checkpoint, and some taken in"


@contextmanager
def ends_after(puts: int | None) -> Iterator[None]:
    """Whatever runs within ends, as if killed, at the given put of any provider."""
    left = puts
    real = MemoryProvider.put
    with trio.CancelScope() as scope, pytest.MonkeyPatch.context() as patch:

        async def put(self: MemoryProvider, name: str, data: bytes) -> None:
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    scope.cancel()
                    await trio.sleep_forever()
            await real(self, name, data)

        patch.setattr(MemoryProvider, "put", put)
        yield


def test_a_patch_of_a_chunk_that_cannot_be_had_is_published_as_a_patch(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    data = bytearray(os.urandom(300_000))

    async def write(volume: Volume) -> None:
        await put_file(volume, b"f", bytes(data))
        await volume.sync()

    here.run(write)
    there = world.machine("there")
    there.recover(key)

    async def patch(volume: Volume) -> None:
        vfs = files_of(volume)
        handle = vfs.open(vfs.lookup(ROOT_INO, b"f").ino, os.O_RDWR)
        volume.store.contents.fold = fails  # type: ignore[method-assign]
        await vfs.write(handle.fh, 140_000, b"changed")
        data[140_000:140_007] = b"changed"
        await volume.publisher.publish()
        assert volume.store.reader.count(5) > 0  # type: ignore[arg-type]

    there.run(patch)
    world.lose("ada", "bee")
    last = world.machine("last")
    last.recover(key)

    async def read(volume: Volume) -> bytes:
        return await get_file(volume, b"f")

    assert last.run(read) == data


async def fails(*_: object) -> None:
    raise TooFewProvidersError("what lies beneath cannot be had")
