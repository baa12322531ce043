"""Many small cold files, and what is read ahead of them."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import DamagedError, ProviderAwayError, TooFewProvidersError
from icnfs.format.records import Location
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.limits import CHUNK_SIZE, KIB, LEAF_SIZE, MIB
from icnfs.state import loader
from icnfs.vfs.vfs import Vfs
from icnfs.volume.ahead import FOLLOWED, HELD, WIDE, Ahead
from icnfs.volume.source import STRIPES_AT_ONCE, ProviderSource
from icnfs.volume.stripes import STRIPES_MAX, Stripe, Stripes
from icnfs.volume.volume import Volume
from tests.volume.world import Machine, World, files_of, flip, get_file, list_files, put_file

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


# --- readers in order -------------------------------------------------------------------------------------------------

LARGE = 40 * MIB


async def _read_in_order(volume: Volume, name: bytes, pause: float = 0.0, until: int = LARGE) -> bytes:
    """As a mount reads: with tasks that fetch ahead, 128 KiB at a time."""
    async with trio.open_nursery() as nursery:
        vfs = Vfs(volume.store, volume.free_bytes, nursery=nursery)
        handle = vfs.open(vfs.lookup(loader.ROOT_INO, name).ino, os.O_RDONLY)
        parts = []
        for at in range(0, until, CHUNK_SIZE):
            parts.append(await vfs.read(handle.fh, at, CHUNK_SIZE))
            await trio.sleep(pause)
        vfs.release(handle.fh)
    return b"".join(parts)


def _large(world: World) -> tuple[Machine, bytes]:
    """A machine to which a file of several segments is cold; what it holds."""
    large = random.Random(7).randbytes(LARGE)

    async def write(volume: Volume) -> None:
        await put_file(volume, b"large", large)
        await volume.sync()

    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    there = world.machine("there")
    there.recover(key)
    world.calls.clear()
    return there, large


def test_a_file_read_in_order_is_fetched_in_stripes_of_all_its_segments(world: World) -> None:
    there, large = _large(world)

    async def read(volume: Volume) -> None:
        assert await _read_in_order(volume, b"large") == large

    there.run(read)
    assert world.calls.count("fetch_stripe") <= 35 * 1.2  # as counted, of 320 chunks: most of them while it begins
    assert world.calls.count("fetch") <= 4


def test_who_stops_reading_has_little_more_fetched(world: World) -> None:
    there, large = _large(world)

    async def read(volume: Volume) -> None:
        assert await _read_in_order(volume, b"large", until=MIB) == large[:MIB]
        assert not volume.store.source._stripes._stripes  # type: ignore[attr-defined]

    there.run(read)
    assert world.calls.count("fetch_stripe") <= 7 * 1.2


def test_a_file_read_in_order_is_right_with_a_share_of_every_segment_damaged(world: World) -> None:
    there, large = _large(world)
    for provider in list(world.providers.values())[:2]:
        for name in [n for n in provider.objects if n.startswith("shares/")]:
            for at in range(5000, len(provider.objects[name]), 300_000):
                provider.objects[name] = flip(provider.objects[name], at)

    async def read(volume: Volume) -> None:
        assert await _read_in_order(volume, b"large") == large

    there.run(read)


def test_a_file_read_in_order_is_right_without_n_less_k_providers(world: World) -> None:
    there, large = _large(world)

    async def read(volume: Volume) -> None:
        world.away("ada", "eel")
        assert await _read_in_order(volume, b"large") == large

    there.run(read)


INFO = SegmentInfo(SEGMENT, 4, 6, 40 * LEAF_SIZE + 100, 1, tuple(ShareInfo(f"p{i}", bytes(32), True) for i in range(6)))


def _stripe_data(stripe: Stripe) -> memoryview:
    parts = [_share(share)[stripe.offset : stripe.offset + stripe.length] for share in range(4)]
    return memoryview(b"".join(parts))


@cache
def _share(index: int) -> bytes:
    return random.Random(index).randbytes(INFO.share_len)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40 * LEAF_SIZE - 200_000), st.integers(60_000, 200_000)),
        min_size=1,
        max_size=40,
    ),
    st.randoms(),
)
def test_stripes_hold_what_lies_there_and_nothing_once_it_is_taken(
    wanted: list[tuple[int, int, int]], noise: random.Random
) -> None:
    stripes = Stripes()
    locations = [Location(SEGMENT, share, offset, length) for share, offset, length in wanted]
    new = stripes.want(1, locations, lambda _: INFO)
    assert stripes.size == sum(stripe.size for stripe in new) <= STRIPES_MAX
    for stripe in noise.sample(new, len(new)):
        if noise.random() < 0.9:
            stripes.keep(stripe, _stripe_data(stripe))
        else:
            stripes.give_up(stripe)
    for location in locations:
        assert stripes.coming(location) is None
        data = stripes.take(location)
        assert data is None or data == _share(location.share)[location.offset : location.offset + location.length]
    stripes.forget(1)
    assert stripes.size == 0 and not stripes._leaves and not stripes._places


def test_what_was_never_wanted_in_whole_is_not_waited_for() -> None:
    """A chunk that is asked for by itself may end in a stripe that is on its way."""
    stripes = Stripes()
    stripes.want(1, [Location(SEGMENT, share, 4 * LEAF_SIZE, 4 * LEAF_SIZE) for share in range(4)], lambda _: INFO)
    assert stripes.coming(Location(SEGMENT, 0, 4 * LEAF_SIZE, 100)) is not None
    assert stripes.coming(Location(SEGMENT, 0, 3 * LEAF_SIZE, LEAF_SIZE + 100)) is None


class _Providers:
    """A network and its transfer, of which no stripe comes before `let`."""

    def __init__(self) -> None:
        self.transfer = self
        self.asked = self.most = self.here = 0
        self.let = trio.Event()

    def names_of(self, segment: SegmentInfo) -> tuple[str, ...]:
        return ("x",) * segment.n

    async def fetch_stripe(
        self, segment: SegmentInfo, names: tuple[str, ...], offset: int, length: int, *, deadline: float
    ) -> memoryview:
        assert deadline == pytest.approx(20.0)
        self.asked += 1
        self.here += 1
        self.most = max(self.most, self.here)
        await self.let.wait()
        self.here -= 1
        return memoryview(bytes(length * segment.k))


def test_so_many_stripes_are_on_their_way_for_each_reader_and_the_rest_follow() -> None:
    async def main() -> None:
        providers = _Providers()
        async with trio.open_nursery() as nursery:
            source = ProviderSource(providers, _info, nursery)  # type: ignore[arg-type]
            for reader in (1, 2):
                rows = [
                    Location(bytes([reader, number]) * 8, share, 0, INFO.share_len)
                    for number in range(5)
                    for share in range(4)
                ]
                nursery.start_soon(source.expect(reader, rows, trio.current_time() + 20.0))
            await trio.sleep(30.0)
            assert providers.here == providers.asked == 2 * STRIPES_AT_ONCE
            providers.let.set()
        assert providers.asked > 2 * STRIPES_AT_ONCE and providers.most == 2 * STRIPES_AT_ONCE

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class _SlowWindows(_Providers):
    """Ranges come at once, windows not before `let`."""

    async def fetch(
        self,
        segment: SegmentInfo,
        names: tuple[str, ...],
        share: int,
        offset: int,
        length: int,
        *,
        distrust: frozenset[int],
        deadline: float,
    ) -> bytes:
        self.asked += 1
        if length > 4096:
            await self.let.wait()
        return _share(share)[offset : offset + length]


def test_who_wants_little_does_not_wait_for_what_lies_around_it() -> None:
    async def main() -> None:
        providers = _SlowWindows()
        async with trio.open_nursery() as nursery:
            source = ProviderSource(providers, _info, nursery)  # type: ignore[arg-type]

            async def get(offset: int) -> bytes:
                with trio.fail_after(30):
                    location = Location(SEGMENT, 0, offset, 4096)
                    return await source.fetch(1, location, lambda _: True, trio.current_time() + 20.0)

            for offset in (0, 5000):
                assert await get(offset) == _share(0)[offset : offset + 4096]
            await trio.testing.wait_all_tasks_blocked()
            assert providers.asked == 3
            providers.let.set()
            await trio.testing.wait_all_tasks_blocked()
            assert await get(10_000) == _share(0)[10_000:14_096]
            assert providers.asked == 3

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def _info(id: bytes) -> SegmentInfo:
    return SegmentInfo(id, 4, 6, INFO.share_len, 1, INFO.shares)


def test_however_many_read_no_more_is_held_than_may_be() -> None:
    stripes = Stripes()
    for reader in range(1, 9):
        assert 0 <= stripes.room(reader) < STRIPES_MAX
        for number in range(40):
            info = SegmentInfo(bytes([reader, number]) * 8, 4, 6, 40 * LEAF_SIZE, 1, INFO.shares)
            rows = [Location(info.id, share, 0, 30 * LEAF_SIZE) for share in range(4)]
            for stripe in stripes.want(reader, rows, lambda _, info=info: info):  # type: ignore[misc]
                stripes.keep(stripe, memoryview(bytes(stripe.size)))
            assert stripes.size <= STRIPES_MAX


def test_a_segment_whose_record_is_damaged_costs_others_nothing() -> None:
    def segment_of(id: bytes) -> SegmentInfo | None:
        if id == SEGMENT:
            return SegmentInfo(id, 4, 6, 4 * MIB, 16 * MIB, tuple(ShareInfo(n, bytes(32), True) for n in "abcdef"))
        raise DamagedError("a record is damaged")

    stripes = Stripes()
    healthy = [Location(SEGMENT, index % 4, index // 4 * CHUNK_SIZE, CHUNK_SIZE) for index in range(16)]
    new = stripes.want(1, [*healthy, Location(bytes(15) + b"x", 0, 0, CHUNK_SIZE)], segment_of)
    assert new
    for stripe in new:
        stripes.keep(stripe, memoryview(bytes(stripe.size)))
    assert all(stripes.take(location) is not None for location in healthy)
