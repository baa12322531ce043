"""Deadlines, retries and limits, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from icnfs.errors import ObjectMissingError, ProviderAwayError, ProviderFullError, ProviderRefusedError
from icnfs.limits import KIB, MIB, READS_PER_PROVIDER
from icnfs.providers.breaker import Switch
from icnfs.providers.guard import ATTEMPT_SECONDS, Rates, guard
from icnfs.providers.line import Line
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.wrappers import Deadline, Limit, Pace, Retry


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
        limit = Limit(inner, 3, 1)
        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(limit.size, "a")

    assert run(main) == pytest.approx(3)
    assert inner.most == 3


def test_limit_keeps_reads_writes_and_probes_apart() -> None:
    inner = Scripted(seconds=1)

    async def main() -> None:
        limit = Limit(inner, 1, 1)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(limit.size, "a")
            nursery.start_soon(limit.put, "a", b"")
            await trio.testing.wait_all_tasks_blocked()
            assert inner.running == 2
            with trio.fail_after(0.1):
                await limit.probe()

    assert run(main) == pytest.approx(5)


def test_retry_gives_up_where_there_is_no_hope() -> None:
    inner = Scripted(*[ProviderAwayError] * 9)

    async def main() -> None:
        with pytest.raises(ProviderAwayError):
            await Retry(inner, tries=5, hopeless=lambda: inner.calls == 2).size("a")

    run(main)
    assert inner.calls == 2


def test_pace_holds_its_own_rate_and_the_one_that_is_shared() -> None:
    async def main() -> None:
        shared = Line(3 * MIB)
        paced = [Pace(MemoryProvider(name), [Line(2 * MIB), shared]) for name in "ab"]
        async with trio.open_nursery() as nursery:
            for provider in paced:
                for index in range(3):
                    nursery.start_soon(provider.put, str(index), bytes(4 * MIB))

    assert run(main) == pytest.approx(24 / 3, rel=0.02)


def test_pace_counts_what_a_whole_object_brought() -> None:
    async def main() -> None:
        inner = MemoryProvider("alpha")
        inner.objects["a"] = bytes(10 * MIB)
        paced = Pace(inner, (), [Line(MIB)])
        await paced.get("a")
        await paced.get("a", 0, MIB)
        await paced.size("a")

    assert run(main) == pytest.approx(11)


def test_a_rate_may_be_changed_while_somebody_waits_for_it() -> None:
    async def main() -> None:
        line = Line(MIB)
        paced = Pace(MemoryProvider("alpha"), [line])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(paced.put, "a", bytes(50 * MIB))
            await trio.sleep(10)
            line.rate = 8 * MIB

    assert run(main) == pytest.approx(10 + 5, rel=0.02)


def test_guard_counts_neither_the_wait_for_a_turn_nor_for_the_rate_against_a_deadline() -> None:
    inner = Scripted(seconds=ATTEMPT_SECONDS - 1)
    rounds = 3

    async def main() -> None:
        guarded = guard(inner, Switch(), Rates(up=[Line(KIB)])).once
        async with trio.open_nursery() as nursery:
            for _ in range(rounds * READS_PER_PROVIDER):
                nursery.start_soon(guarded.size, "a")
            nursery.start_soon(guarded.put, "a", bytes(int(1.5 * ATTEMPT_SECONDS) * KIB))

    assert run(main) == pytest.approx(rounds * (ATTEMPT_SECONDS - 1), rel=0.05)


def test_guard_keeps_no_slot_while_it_pauses() -> None:
    async def main() -> None:
        inner = Scripted(*[ProviderAwayError] * READS_PER_PROVIDER)
        guarded = guard(inner, Switch()).again
        async with trio.open_nursery() as nursery:
            for _ in range(READS_PER_PROVIDER):
                nursery.start_soon(guarded.size, "a")
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(0.01):
                await guarded.size("b")

    run(main)
