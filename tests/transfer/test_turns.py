"""Bulk reads come in the order in which they are wanted."""

from __future__ import annotations

import random

import trio
import trio.testing

from icnfs.transfer.turns import BULK, PLACES, Turns, turn
from tests.transfer.network import run


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

        numbers = list(range(40))
        random.Random(1).shuffle(numbers)
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(read, number)
        assert most == PLACES
        assert [sorted(order[at : at + PLACES]) for at in range(0, 36, PLACES)] == [
            list(range(at, at + PLACES)) for at in range(0, 36, PLACES)
        ]

    run(main)


def test_small_reads_wait_for_nobody_and_who_is_cancelled_gives_way() -> None:
    async def main() -> None:
        turns = Turns()

        async def read(length: int, seconds: float) -> None:
            async with turns.of(length):
                await trio.sleep(seconds)

        async with trio.open_nursery() as nursery:
            for _ in range(3 * PLACES):
                nursery.start_soon(read, BULK, 1000.0)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            await read(BULK - 1, 0.0)
            assert trio.current_time() == begun
            nursery.cancel_scope.cancel()
        await read(BULK, 1.0)
        assert trio.current_time() == begun + 1

    run(main)
