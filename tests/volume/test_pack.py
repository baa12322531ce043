"""Packs hold every chunk once, whole, where its location says, and are what transfer will make of them."""

from __future__ import annotations

import os
from hashlib import shake_128

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from icnfs.providers.memory import MemoryProvider
from icnfs.transfer import bulk
from icnfs.transfer.engine import open_engine
from icnfs.transfer.messages import Order
from icnfs.volume import pack as packs


def chunk(version: int, size: int) -> bytes:
    return shake_128(b"%d" % version).digest(size)


@given(st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 5), st.integers(1, 20_000))
def test_every_chunk_is_found_where_its_location_says(sizes: list[int], k: int, target: int) -> None:
    chunks = list(enumerate(sizes, 1))
    planned = packs.plan(chunks, k, target)
    assert [version for pack in planned for version, _ in pack.places] == [version for version, _ in chunks]
    assert len({pack.id for pack in planned}) == len(planned)
    for pack in planned:
        with bulk.closing(packs.fill(pack, k, lambda version: chunk(version, sizes[version - 1]))) as fd:
            payload = os.pread(fd, 1 << 30, 0)
        assert len(payload) == k * pack.share_len
        for version, place in pack.places:
            assert place.segment == pack.id
            assert place.offset + place.length <= pack.share_len
            at = place.share * pack.share_len + place.offset
            assert payload[at : at + place.length] == chunk(version, sizes[version - 1])


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=9), st.integers(2, 5))
def test_no_share_says_more_than_its_part(sizes: list[int], k: int) -> None:
    """What no chunk takes is noise, so that neither a data share nor parity tells of the others."""
    (pack,) = packs.plan(list(enumerate(sizes, 1)), k)
    taken = bytearray(k * pack.share_len)
    for _, place in pack.places:
        at = place.share * pack.share_len + place.offset
        taken[at : at + place.length] = b"x" * place.length
    payloads = []
    for _ in range(2):
        with bulk.closing(packs.fill(pack, k, lambda version: chunk(version, sizes[version - 1]))) as fd:
            payloads.append(os.pread(fd, 1 << 30, 0))
    for at in range(len(taken) - 7):
        if not any(taken[at : at + 8]):
            assert payloads[0][at : at + 8] != payloads[1][at : at + 8]


def test_a_pack_is_closed_once_it_is_full() -> None:
    planned = packs.plan([(version, 1000) for version in range(100)], 4, 10_000)
    assert [len(pack) for pack in planned] == [10] * 10


def test_a_pack_is_closed_at_so_many_chunks_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "CHUNKS_MAX", 7)
    planned = packs.plan([(version, 1) for version in range(20)], 4)
    assert [len(pack) for pack in planned] == [7, 7, 6]


def test_places_by_version_are_the_same_places() -> None:
    (pack,) = packs.plan([(version * 7 % 31, 100 + version) for version in range(31)], 4)
    assert list(pack.ascending()) == sorted(pack.places)


def test_foretold_roots_are_those_that_transfer_makes() -> None:
    (pack,) = packs.plan([(version, 700 * version) for version in range(1, 8)], 4)

    async def main() -> tuple[bytes, ...]:
        names = tuple(f"shares/aa/{i}" for i in range(6))
        providers = [MemoryProvider(f"p{i}") for i in range(6)]
        async with open_engine(providers, watch=False) as engine:
            order = Order(pack.id, 4, 6, pack.share_len, 4 * pack.share_len, names, tuple(p.name for p in providers))
            bulk.seal(fd)
            return (await engine.put_segment(order, bulk.view(fd, 4 * pack.share_len), deadline=20)).roots

    with bulk.closing(packs.fill(pack, 4, lambda version: chunk(version, 700 * version))) as fd:
        foretold = packs.roots(fd, 4, 6, pack.share_len)
        assert trio.run(main) == foretold
