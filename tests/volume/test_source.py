"""Many small cold files, and what is read ahead of them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import ProviderAwayError, TooFewProvidersError
from icnfs.format.records import Location
from icnfs.limits import KIB
from icnfs.state import loader
from icnfs.volume.ahead import FOLLOWED, HELD, WIDE, Ahead
from icnfs.volume.volume import Volume
from tests.volume.world import World, files_of, flip, get_file, list_files, put_file

FILES = 200
SEGMENT = bytes(16)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def filled(world: World) -> dict[bytes, bytes]:
    """A volume of small files, published; what they hold, in the order in which they were written."""
    noise = random.Random(1)
    contents = {b"%03d" % i: noise.randbytes(noise.randrange(1, 9000)) for i in range(FILES)}

    async def write(volume: Volume) -> None:
        for name, data in contents.items():
            await put_file(volume, name, data)
        await volume.sync()

    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    world.machine("there").recover(key)
    world.calls.clear()
    return contents


@pytest.mark.parametrize("listed", [True, False])
def test_walking_over_small_cold_files_takes_few_round_trips(world: World, listed: bool) -> None:
    contents = filled(world)
    there = world.machine("there")

    async def read(volume: Volume) -> None:
        for name in list_files(volume) if listed else contents:
            assert await get_file(volume, name) == contents[name]

    there.run(read)
    assert world.calls.count("fetch") <= FILES / 8


def test_small_cold_files_are_right_with_damage_anywhere_in_what_was_read_ahead(world: World) -> None:
    contents = filled(world)
    there = world.machine("there")
    for provider in list(world.providers.values())[:2]:
        for name in [n for n in provider.objects if n.startswith("shares/")]:
            for at in range(3000, len(provider.objects[name]), 20000):
                provider.objects[name] = flip(provider.objects[name], at)

    async def read(volume: Volume) -> None:
        for name, data in contents.items():
            assert await get_file(volume, name) == data

    there.run(read)


def _read(ahead: Ahead, location: Location, share: bytes) -> tuple[bytes, bool]:
    """What a reader gets, and whether it had to ask."""
    held = ahead.held(location)
    if held is not None:
        return held, False
    wanted = ahead.window(location, len(share))
    assert 0 <= wanted.offset <= location.offset
    assert location.offset + location.length <= wanted.offset + wanted.length <= len(share)
    if wanted != location:
        ahead.keep(ahead.ask(wanted), share[wanted.offset : wanted.offset + wanted.length])
    return share[location.offset : location.offset + location.length], True


@pytest.mark.parametrize("length", [100, 128 * KIB])
def test_ranges_here_and_there_read_nothing_ahead(length: int) -> None:
    ahead = Ahead()
    for at in (0, 10 * WIDE, 3 * WIDE, 9 * WIDE, 6 * WIDE):
        location = Location(SEGMENT, 0, at, length)
        assert ahead.window(location, 20 * WIDE) == location


def test_a_reader_of_large_ranges_that_follow_each_other_asks_for_eight_at_a_time() -> None:
    share = random.Random(3).randbytes(32 * 128 * KIB)
    ahead = Ahead()
    asked = 0
    for at in range(0, len(share), 128 * KIB):
        data, new = _read(ahead, Location(SEGMENT, 0, at, 128 * KIB), share)
        assert data == share[at : at + 128 * KIB]
        asked += new
    assert asked == 1 + 1 + 4  # the first alone, then two, then the 29 that are left


def test_reading_backwards_asks_for_what_is_read_only() -> None:
    share = bytes(16 * 128 * KIB)
    ahead = Ahead()
    for at in reversed(range(0, len(share), 128 * KIB)):
        location = Location(SEGMENT, 0, at, 128 * KIB)
        assert ahead.window(location, len(share)) == location


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 999), st.integers(1, 50)), max_size=60))
def test_what_is_held_is_what_lies_there(reads: list[tuple[int, int, int]]) -> None:
    shares = [random.Random(i).randbytes(1050) for i in range(3)]
    ahead = Ahead()
    for share, offset, length in reads:
        data, _ = _read(ahead, Location(SEGMENT, share, offset, length), shares[share])
        assert data == shares[share][offset : offset + length]


def test_only_so_much_is_held() -> None:
    ahead = Ahead()
    for _ in range(FOLLOWED + 50):
        window = Location(os.urandom(16), 0, 0, WIDE // 4)
        ahead.window(window, WIDE)
        ahead.keep(ahead.ask(window), bytes(WIDE // 4))
        assert ahead.held_bytes == sum(map(len, ahead._ranges.values())) <= HELD
    assert len(ahead._places) == FOLLOWED
    for key, offset in tuple(ahead._ranges):
        ahead.drop(Location(key[0], key[1], offset, 1))
    assert ahead.held_bytes == 0 and not ahead._starts and not ahead._coming


def test_what_lies_in_a_window_on_its_way_is_not_asked_for_again_and_not_lost_when_it_fails(world: World) -> None:
    """Eight chunks of one share at once: the first alone, the second with all that follow."""
    large = random.Random(5).randbytes(32 * 128 * KIB)

    async def write(volume: Volume) -> None:
        await put_file(volume, b"large", large)
        await volume.sync()

    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    there = world.machine("there")
    there.recover(key)

    async def read(volume: Volume) -> int:
        vfs = files_of(volume)
        handle = vfs.open(vfs.lookup(loader.ROOT_INO, b"large").ino, os.O_RDONLY)
        world.calls.clear()
        assert await vfs.read(handle.fh, 0, len(large)) == large
        asked = world.calls.count("fetch")
        assert await get_file(volume, b"large") == large
        assert world.calls.count("fetch") == asked
        return asked

    assert there.run(read) <= 4 * 3 + 4
    elsewhere = world.machine("elsewhere")
    elsewhere.recover(key)
    world.away("ada", "bee", "cat")

    async def fail(volume: Volume) -> None:
        with pytest.raises((TooFewProvidersError, ProviderAwayError)):
            await get_file(volume, b"large")
        world.away()
        assert await get_file(volume, b"large") == large

    elsewhere.run(fail)
