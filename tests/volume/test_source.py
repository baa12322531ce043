"""Many small cold files, and what is read ahead of them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.format.records import Location
from icnfs.limits import KIB
from icnfs.volume.ahead import AHEAD, HELD, Ahead
from icnfs.volume.volume import Volume
from tests.volume.world import World, flip, get_file, list_files, put_file

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


def test_one_small_file_here_and_there_reads_nothing_ahead() -> None:
    ahead = Ahead()
    for at in (0, 10 * AHEAD, 3 * AHEAD, 9 * AHEAD, AHEAD):
        location = Location(SEGMENT, 0, at, 100)
        assert ahead.window(location, 20 * AHEAD) == location
        ahead.keep(location, location, bytes(100))


def test_large_ranges_are_left_alone() -> None:
    ahead = Ahead()
    first = Location(SEGMENT, 0, 0, 100 * KIB)
    ahead.keep(first, first, bytes(100 * KIB))
    following = Location(SEGMENT, 0, 100 * KIB, 100 * KIB)
    assert ahead.window(following, 20 * AHEAD) == following


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 999), st.integers(1, 50)), max_size=60))
def test_what_is_held_is_what_lies_there(reads: list[tuple[int, int, int]]) -> None:
    shares = [random.Random(i).randbytes(1050) for i in range(3)]
    ahead = Ahead()
    for share, offset, length in reads:
        location = Location(SEGMENT, share, offset, length)
        held = ahead.held(location)
        if held is None:
            window = ahead.window(location, 1050)
            assert 0 <= window.offset <= offset
            assert offset + length <= window.offset + window.length <= 1050
            ahead.keep(location, window, shares[share][window.offset : window.offset + window.length])
            held = ahead.held(location) or shares[share][offset : offset + length]
        assert held == shares[share][offset : offset + length]


def test_only_so_much_is_held() -> None:
    ahead = Ahead()
    for _ in range(20 * HELD):
        location = Location(os.urandom(16), 0, 0, 10)
        ahead.keep(location, location, bytes(10))
        ahead.keep(location, location._replace(length=100), bytes(100))
    assert len(ahead._ranges) == HELD
    assert len(ahead._last) == 8 * HELD
