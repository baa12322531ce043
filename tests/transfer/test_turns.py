"""Bulk calls come in the order in which they are wanted, no more of them at a time than lie on a line."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from icnfs.limits import MIB
from icnfs.transfer.turns import BULK, LEAST, PART, UNDER_WAY, UNDER_WAY_MAX, Turns, turn
from tests.transfer.network import run

AT_ONCE = UNDER_WAY // BULK


def test_bulk_is_read_in_order_a_few_at_a_time() -> None:
    async def main() -> None:
        turns, order, most = Turns(), list[int](), 0
        running = 0

        async def read(number: int) -> None:
            nonlocal running, most
            turn.set(number)
            async with turns.of(BULK):
                running += 1
                most = max(most, running)
                order.append(number)
                await trio.sleep(1)
                running -= 1

        numbers = list(range(5 * AT_ONCE))
        random.Random(1).shuffle(numbers)
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(read, number)
        assert most == AT_ONCE
        assert [sorted(order[at : at + AT_ONCE]) for at in numbers[::-1] if at % AT_ONCE == 0] == [
            list(range(at, at + AT_ONCE)) for at in numbers[::-1] if at % AT_ONCE == 0
        ]

    run(main)


@given(
    lengths=st.lists(st.integers(1, 5 * MIB), min_size=1, max_size=30),
    holds=st.sampled_from([0.0, 1e6, 4e6, 1e9]),
    seed=st.integers(0, 99),
)
def test_no_more_bytes_are_under_way_than_fit_and_all_come(lengths: list[int], holds: float, seed: int) -> None:
    room = min(max(PART * holds, UNDER_WAY), UNDER_WAY_MAX)
    rng = random.Random(seed)

    async def main() -> None:
        turns, running, ended = Turns(lambda: holds), list[int](), 0

        async def call(length: int, seconds: float, patience: float) -> None:
            nonlocal ended
            with trio.move_on_after(patience):
                async with turns.of(length):
                    if length >= BULK:
                        running.append(length)
                        assert len(running) <= LEAST or sum(running) <= room
                    try:
                        await trio.sleep(seconds)
                    finally:
                        if length >= BULK:
                            running.remove(length)
            ended += 1

        async with trio.open_nursery() as nursery:
            for length in lengths:
                nursery.start_soon(call, length, rng.uniform(0, 2), rng.choice([0.5, 1000.0]))
        assert ended == len(lengths)
        with trio.fail_after(0.1):  # and none of it is counted any more
            async with turns.of(UNDER_WAY), turns.of(BULK):
                pass

    run(main)


@pytest.mark.parametrize("length", [BULK, MIB, 64 * MIB])
def test_two_are_under_way_however_large_they_are(length: int) -> None:
    async def main() -> None:
        turns = Turns()
        with trio.fail_after(0.1):
            async with turns.of(length), turns.of(length):
                pass

    run(main)


def test_small_reads_wait_for_nobody_and_who_is_cancelled_gives_way() -> None:
    async def main() -> None:
        turns = Turns()

        async def read(length: int, seconds: float) -> None:
            async with turns.of(length):
                await trio.sleep(seconds)

        async with trio.open_nursery() as nursery:
            for _ in range(3 * AT_ONCE):
                nursery.start_soon(read, BULK, 1000.0)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            await read(BULK - 1, 0.0)
            assert trio.current_time() == begun
            nursery.cancel_scope.cancel()
        await read(BULK, 1.0)
        assert trio.current_time() == begun + 1

    run(main)
