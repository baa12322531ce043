"""Wherever a publish is cut off, the providers hold one published cut, and the next publish goes on from there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from functools import partial

import pytest
import trio

from icnfs.errors import FencedError, LocalDiskError
from icnfs.providers.memory import MemoryProvider
from icnfs.state import cut as cuts
from icnfs.state.cut import Row
from icnfs.volume.volume import Volume, open_volume
from tests.volume.world import Machine, World, get_file, list_files, put_file


async def read_all(volume: Volume) -> dict[bytes, bytes]:
    return {name: await get_file(volume, name) for name in list_files(volume)}


class Cutter:
    """Cancels a scope at the moment of the n-th put, before or after it takes effect."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self.after = after
        self.scope = trio.CancelScope()
        self._real = MemoryProvider.put

    async def put(self, provider: MemoryProvider, name: str, data: bytes) -> None:
        self.left -= 1
        if self.after:
            await self._real(provider, name, data)
        if self.left <= 0:
            self.scope.cancel()
            await trio.sleep_forever()
        if not self.after:
            await self._real(provider, name, data)


def published(world: World, name: str, key: str) -> dict[bytes, bytes]:
    """What an empty machine finds; the providers are as before afterwards."""
    kept = {n: dict(p.objects) for n, p in world.providers.items()}
    there = world.machine(name)
    there.recover(key)
    found = there.run(read_all, read_only=True)
    for provider, objects in kept.items():
        world.providers[provider].objects = objects
    return found


def test_cut_off_at_any_put_the_providers_hold_the_old_or_the_new_state(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    old: dict[bytes, bytes] = {}
    new: dict[bytes, bytes] = {}
    finished = False
    for step in range(40):
        new = {**new, b"f%d" % (step % 5): os.urandom(200 + step), b"large": os.urandom(150_000)}
        finished = _publish_cut_off(here, new, Cutter(1 + step // 2, after=bool(step % 2)))
        found = published(world, f"there{step}", key)
        assert found in (old, new), f"step {step}: a mixture"
        assert not finished or found == new
        assert here.run(read_all, read_only=True) == new, "local state keeps everything"
        old = found
        if finished:
            break
    assert finished, "the last steps were to let a whole publish through"


@pytest.mark.parametrize("reopened", [False, True])
def test_cut_off_while_many_locations_are_noted_nothing_is_missing_from_the_next_head(
    world: World, monkeypatch: pytest.MonkeyPatch, reopened: bool
) -> None:
    """They are noted in steps after the head; where the mount goes on, it still has what it uploaded."""
    monkeypatch.setattr("icnfs.state.cut.KEEP_STEP", 3)
    monkeypatch.setattr("icnfs.volume.added.KEPT_MAX", 0)
    monkeypatch.setattr("icnfs.volume.pack.CHUNKS_MAX", 2)
    here = world.machine()
    key = here.init().recovery_key
    contents = {b"f%d" % n: os.urandom(40_000) for n in range(10)}
    take = cuts._take

    async def body(volume: Volume, steps: int) -> bool:
        left = steps
        broke_off = False

        async def cut_off(rows: Iterator[Row]) -> list[Row]:
            nonlocal left
            left -= 1
            if left < 0:
                raise LocalDiskError("the disk is gone")
            return await take(rows)

        for name in list(contents)[steps // 4 :]:
            contents[name] = os.urandom(40_000)
            await put_file(volume, name, contents[name])
        await volume.store.flush()
        monkeypatch.setattr(cuts, "_take", cut_off)
        try:
            await volume.publisher.publish()
        except LocalDiskError:
            broke_off = True
        monkeypatch.setattr(cuts, "_take", take)
        if not reopened:
            await volume.publisher.publish()
            assert volume.store.dirty_bytes == 0
        return broke_off

    async def again(volume: Volume) -> None:
        await put_file(volume, b"last", b"x")
        await volume.publisher.publish()
        assert volume.store.dirty_bytes == 0

    for steps in (1, 3, 4, 9):
        assert here.run(partial(body, steps=steps)) == (steps < 9)
        assert published(world, f"after{steps}", key).items() >= contents.items()
        here.run(again)
        assert published(world, f"there{steps}", key) == {**contents, b"last": b"x"}


def _publish_cut_off(here: Machine, new: dict[bytes, bytes], cutter: Cutter) -> bool:
    async def body(volume: Volume) -> bool:
        for name, data in new.items():
            await put_file(volume, name, data)
        await volume.store.flush()
        real = MemoryProvider.put

        async def put(self: MemoryProvider, name: str, data: bytes) -> None:
            await cutter.put(self, name, data)

        MemoryProvider.put = put  # type: ignore[method-assign, assignment]
        try:
            with cutter.scope:
                await volume.publisher.publish()
                return True
            return False
        finally:
            MemoryProvider.put = real  # type: ignore[method-assign]

    return here.run(body)


def test_of_two_copies_that_publish_at_once_at_most_one_goes_on(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    copies = []
    for name in ("a", "b"):
        shutil.copytree(here.state_dir, world.root / name / "demo")
        copy = world.machine(name)
        copy.secrets = here.secrets
        copies.append(copy)

    async def write(volume: Volume, mark: bytes) -> bool:
        await put_file(volume, mark, mark)
        await volume.store.flush()
        for _ in range(3):
            try:
                await volume.publisher.publish()
            except FencedError:
                return False
            await put_file(volume, mark + b"2", mark)
            await volume.store.flush()
        return True

    async def both() -> list[bool]:
        results: list[bool] = []

        async def one(machine: Machine, mark: bytes) -> None:
            async with open_volume(machine.config(), machine.state_dir, machine.secrets, start=world.start) as volume:
                results.append(await write(volume, mark))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for machine, mark in zip(copies, (b"a", b"b"), strict=True):
                    nursery.start_soon(one, machine, mark)
        return results

    assert sum(trio.run(both)) <= 1
    found = published(world, "there", key)
    assert not ({b"a", b"b"} <= set(found)), "a mixture of two machines"
