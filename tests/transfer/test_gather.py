"""Any `need` of several candidates: who is asked, and when."""

from __future__ import annotations

import math

import trio
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import IcnfsError, ProviderAwayError
from icnfs.transfer.gather import Gathered, Hedges, Patience, gather
from tests.transfer.network import run

HEDGE = 2.0


async def _gather(need: int, delays: list[float], failing: set[int]) -> tuple[Gathered[int], list[int], float]:
    asked: list[int] = []

    async def read(candidate: int) -> int:
        asked.append(candidate)
        await trio.sleep(delays[candidate])
        if candidate in failing:
            raise ProviderAwayError(f"p{candidate}", "away")
        return candidate * 10

    begun = trio.current_time()
    gathered = await gather(need, range(len(delays)), read, lambda _: Patience(0.0, HEDGE, HEDGE), Hedges())
    return gathered, asked, trio.current_time() - begun


def test_healthy_candidates_are_asked_no_more_than_needed() -> None:
    async def main() -> None:
        gathered, asked, _ = await _gather(4, [0.1] * 6, set())
        assert gathered.got == {0: 0, 1: 10, 2: 20, 3: 30} and sorted(asked) == [0, 1, 2, 3]

    run(main)


def test_a_failure_is_replaced_at_once() -> None:
    async def main() -> None:
        gathered, asked, seconds = await _gather(4, [0.1] * 6, {1})
        assert set(gathered.got) == {0, 2, 3, 4} and set(gathered.errors) == {1}
        assert sorted(asked) == [0, 1, 2, 3, 4] and math.isclose(seconds, 0.2)

    run(main)


def test_candidates_that_hang_cost_one_hedge() -> None:
    async def main() -> None:
        gathered, _, seconds = await _gather(4, [math.inf, 0.1, math.inf, 0.1, 0.1, 0.1], set())
        assert set(gathered.got) == {1, 3, 4, 5}
        assert math.isclose(seconds, HEDGE + 0.1)

    run(main)


def test_the_last_one_is_late_by_what_the_others_took_and_costs_one_hedge() -> None:
    class Counted(Hedges):
        taken = 0

        def take(self) -> bool:
            self.taken += 1
            return super().take()

    async def main() -> None:
        hedges = Counted()

        async def read(candidate: int) -> int:
            await trio.sleep(math.inf if candidate == 3 else 0.1)
            return candidate

        for usual in (1.0, HEDGE):
            hedges.taken, begun = 0, trio.current_time()
            gathered = await gather(4, range(6), read, lambda _, u=usual: Patience(0.05, u, HEDGE), hedges)  # type: ignore[misc]
            assert set(gathered.got) == {0, 1, 2, 4}
            assert math.isclose(trio.current_time() - begun, 0.3), "twice what the others took, and another read"
            assert hedges.taken == 1, "of what has come nobody is to be asked again"

    run(main)


def test_when_too_few_answer_all_have_been_asked() -> None:
    async def main() -> None:
        gathered, asked, _ = await _gather(4, [0.1] * 6, {0, 1, 2})
        assert len(gathered.got) == 3 and set(gathered.errors) == {0, 1, 2} and len(asked) == 6

    run(main)


@given(
    need=st.integers(1, 4),
    fates=st.lists(st.sampled_from(["good", "fails", "hangs", "late"]), min_size=1, max_size=8),
)
def test_enough_good_candidates_always_suffice(need: int, fates: list[str]) -> None:
    delays = [{"hangs": math.inf, "late": 50.0}.get(fate, 0.1) for fate in fates]
    good = {index for index, fate in enumerate(fates) if fate in ("good", "late")}

    async def main() -> None:
        with trio.move_on_after(1000) as scope:
            gathered, *_ = await _gather(need, delays, {i for i, fate in enumerate(fates) if fate == "fails"})
            assert all(isinstance(error, IcnfsError) for error in gathered.errors.values())
            assert set(gathered.got) <= good and (len(gathered.got) >= need or "hangs" not in fates)
        if len(good) >= need or "hangs" not in fates:
            assert not scope.cancelled_caught

    run(main)
