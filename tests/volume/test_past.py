"""A snapshot that is open: what was there is there, whatever became of the volume, and nothing is written for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio

from icnfs.errors import MountedError, SnapshotError
from icnfs.volume.past import open_past
from icnfs.volume.volume import Volume, open_volume
from tests.volume.test_collect import collected, content
from tests.volume.test_compact import NAME, located, old_versions, overwrite, sparse
from tests.volume.test_snapshots import make
from tests.volume.world import BOUND, Machine, World, files_of, get_file, list_files, put_file

T = TypeVar("T")


@pytest.fixture
def here(world: World) -> Machine:
    return world.machine()


async def look(machine: Machine, snapshot: str, body: Callable[[Volume], Awaitable[T]]) -> T:
    with trio.fail_after(BOUND):
        async with open_past(
            machine.config(), snapshot, machine.state_dir, machine.secrets, start=machine.world.start
        ) as volume:
            return await body(volume)


async def everything(volume: Volume) -> dict[bytes, bytes]:
    return {name: await get_file(volume, name) for name in list_files(volume)}


def leftovers(machine: Machine) -> list[str]:
    return sorted(path.name for path in machine.state_dir.parent.iterdir() if "@" in path.name)


def test_what_was_there_is_there_beside_the_mount_and_after_collection(world: World, here: Machine) -> None:
    here.init()
    one = {b"a": content(1), b"b": content(2, 900_000), b"same": content(3)}
    two = {b"a": content(4), b"new": content(5), b"same": content(3)}

    async def main(volume: Volume) -> None:
        for name, data in one.items():
            await put_file(volume, name, data)
        await make(volume, "one")
        vfs = files_of(volume)
        vfs.unlink(1, b"b")
        vfs.unlink(1, b"a")
        for name, data in two.items():
            await put_file(volume, name, data)
        await make(volume, "two")
        for name in two:
            vfs.unlink(1, name)
        await put_file(volume, b"now", content(6))
        await volume.sync()
        for _ in range(3):
            await collected(volume)
        objects = world.objects("")

        async def side_by_side(first: Volume) -> None:
            assert await look(here, "two", everything) == two
            assert await everything(first) == one
            assert first.store.read_only and first.status().files == 4
            with pytest.raises(MountedError, match="mounted here already"):
                await look(here, "one", everything)

        await look(here, "one", side_by_side)
        assert world.objects("") == objects, "nothing is written or deleted for it"
        assert leftovers(here) == []
        assert await everything(volume) == {b"now": content(6)}
        with pytest.raises(SnapshotError, match="no snapshot three"):
            await look(here, "three", everything)
        assert leftovers(here) == []

    here.run(main)
    assert len(world.objects("heads/")["ada"]) > 0


def test_it_needs_no_local_state_and_clears_what_a_crash_left(world: World, here: Machine) -> None:
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        await make(volume, "one")
        await put_file(volume, b"f", content(2))
        await volume.sync()

    here.run(main)
    there = world.machine("there")
    there.recover(key)
    elsewhere = world.machine("elsewhere")
    elsewhere.secrets = there.secrets
    for name in ("demo@one", "demo@other"):
        (elsewhere.state_dir.parent / name / "state").mkdir(parents=True)
        (elsewhere.state_dir.parent / name / "state" / "junk").write_bytes(b"x")

    async def body() -> None:
        assert await look(elsewhere, "one", everything) == {b"f": content(1)}

    trio.run(body)
    assert leftovers(elsewhere) == []


def test_it_is_read_while_as_many_providers_are_gone_as_may_be(world: World, here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1, 2_000_000))
        await make(volume, "one")

    here.run(main)
    world.lose("ada", "dog")

    async def body() -> None:
        assert await look(here, "one", everything) == {b"f": content(1, 2_000_000)}

    trio.run(body)


def test_what_moves_while_it_is_open_is_still_read(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction moves what only the snapshot keeps, and the segments that it knew go from the providers."""
    monkeypatch.setattr("icnfs.volume.past.FOLLOW_SECONDS", 0.2)
    here.init()

    async def main(volume: Volume) -> None:
        contents = await sparse(volume)
        then = {NAME: b"".join(contents)}
        await make(volume, "then")
        old = {version: located(volume)[version].segment for version in old_versions(volume)}

        async def beside(past: Volume) -> None:
            await overwrite(volume, contents, list(range(len(contents))))
            await volume.sync()
            for _ in range(3):
                await collected(volume)
            assert all(volume.store.segment(segment) is None for segment in old.values())
            with trio.fail_after(20):
                while any(located(past)[version].segment == segment for version, segment in old.items()):
                    await trio.sleep(0.05)
            assert await everything(past) == then

        await look(here, "then", beside)

    here.run(main)


def test_it_follows_a_volume_that_is_mounted_anew(world: World, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new mount's salt has a number of its own: what is noted under it is read."""
    monkeypatch.setattr("icnfs.volume.past.FOLLOW_SECONDS", 0.2)
    here.init()

    async def first(volume: Volume) -> list[bytes]:
        contents = await sparse(volume)
        await make(volume, "then")
        return contents

    contents = here.run(first)
    then = {NAME: b"".join(contents)}

    async def beside(past: Volume) -> None:
        old = {version: located(past)[version].segment for version in old_versions(past)}
        async with open_volume(here.config(), here.state_dir, here.secrets, start=world.start) as volume:
            await overwrite(volume, contents, list(range(len(contents))))
            await volume.sync()
            for _ in range(3):
                await collected(volume)
            while any(located(past)[version].segment == segment for version, segment in old.items()):
                await trio.sleep(0.1)
            assert await everything(past) == then
            ours, theirs = dict(past.store.salts), dict(volume.store.salts)
            assert ours.items() > theirs.items(), "all of the volume's, and its own"

    async def main() -> None:
        await look(here, "then", beside)

    trio.run(main)
