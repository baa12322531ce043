"""Deadlines, retries and limits, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from icnfs.errors import ObjectMissingError, ProviderAwayError, ProviderFullError, ProviderRefusedError
from icnfs.limits import KIB
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.wrappers import Deadline, Limit, Patience, Retry, guard


class Scripted(MemoryProvider):
    """Each call takes `seconds` and raises the next of `errors`, while there is one."""

    def __init__(self, *errors: type[Exception], seconds: float = 0.0) -> None:
        super().__init__("alpha")
        self.errors = list(errors)
        self.seconds = seconds
        self.calls = 0
        self.running = 0
        self.most = 0

    async def size(self, name: str) -> int:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.running -= 1
        if self.errors:
            raise self.errors.pop(0)("alpha", "as told")
        return 7

    async def put(self, name: str, data: object) -> None:
        await self.size(name)


def run(main: Callable[[], Awaitable[None]]) -> float:
    """Run in virtual time; returns the seconds that went by."""

    async def timed() -> float:
        began = trio.current_time()
        await main()
        return trio.current_time() - began

    return trio.run(timed, clock=MockClock(autojump_threshold=0))


def test_deadline_ends_a_hanging_call() -> None:
    async def main() -> None:
        with pytest.raises(ProviderAwayError, match=r"looking up a took longer than 3\.0 s"):
            await Deadline(Scripted(seconds=1e9), 3).size("a")

    assert run(main) == pytest.approx(3)


def test_deadline_grows_with_the_bytes() -> None:
    async def main() -> None:
        await Deadline(Scripted(seconds=12), 3, 100 * KIB).put("a", bytes(1000 * KIB))
        with pytest.raises(ProviderAwayError):
            await Deadline(Scripted(seconds=14), 3, 100 * KIB).put("a", bytes(1000 * KIB))

    assert run(main) == pytest.approx(12 + 13)


def test_deadline_leaves_the_callers_own_cancellation_alone() -> None:
    async def main() -> None:
        with trio.move_on_after(1) as scope:
            await Deadline(Scripted(seconds=1e9), 3).size("a")
        assert scope.cancelled_caught

    assert run(main) == pytest.approx(1)


def test_retry_tries_again_what_may_pass() -> None:
    inner = Scripted(ProviderAwayError, ProviderAwayError)

    async def main() -> None:
        assert await Retry(inner, tries=3).size("a") == 7

    run(main)
    assert inner.calls == 3


def test_retry_ends_with_the_last_error() -> None:
    inner = Scripted(*[ProviderAwayError] * 9)

    async def main() -> None:
        with pytest.raises(ProviderAwayError, match="as told"):
            await Retry(inner, tries=4).size("a")

    run(main)
    assert inner.calls == 4


@pytest.mark.parametrize("kind", [ObjectMissingError, ProviderFullError, ProviderRefusedError, ValueError])
def test_retry_takes_every_other_answer_as_final(kind: type[Exception]) -> None:
    inner = Scripted(kind)

    async def main() -> None:
        with pytest.raises(kind):
            await Retry(inner).size("a")

    run(main)
    assert inner.calls == 1


def test_retry_pauses_longer_each_time_within_its_bounds() -> None:
    async def main() -> None:
        retry = Retry(Scripted(*[ProviderAwayError] * 9), tries=6, pause=1, longest=5, rng=random.Random(1))
        with pytest.raises(ProviderAwayError):
            await retry.size("a")

    most = 1 + 2 + 4 + 5 + 5
    assert most / 2 <= run(main) <= most


def test_limit_bounds_the_calls_at_a_time() -> None:
    inner = Scripted(seconds=1)

    async def main() -> None:
        limit = Limit(inner, 3)
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(limit.size, "a")

    assert run(main) == pytest.approx(3)
    assert inner.most == 3


def test_guard_does_not_count_the_wait_for_a_turn() -> None:
    inner = Scripted(seconds=2)

    async def main() -> None:
        guarded = guard(inner, Patience(attempt_s=3, tries=1, concurrency=1))
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(guarded.size, "a")

    assert run(main) == pytest.approx(10)


def test_guard_keeps_no_slot_while_it_pauses() -> None:
    async def main() -> None:
        inner = Scripted(ProviderAwayError)
        guarded = guard(inner, Patience(tries=2, concurrency=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guarded.size, "a")
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(0.01):
                await guarded.size("b")

    run(main)
