"""However much is published, and in what sizes, runs stay few, cover everything, and cost a small constant."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.format.head import RunInfo
from icnfs.limits import MIB
from icnfs.volume import runs


def publish(
    state: tuple[RunInfo, ...], generation: int, fresh: int, whole: int, floor: int = 0
) -> tuple[tuple[RunInfo, ...], int]:
    """One publish of `fresh` new bytes in a volume of `whole`; the runs after it, and the bytes written."""
    since = runs.reach(state, fresh, floor)
    absorbed = sum(run.size for run in state if run.since >= since)
    size = whole if since == 0 else fresh + absorbed
    return runs.join(state, RunInfo(bytes(16), since, generation, 0, size, ())), size


@given(st.lists(st.tuples(st.integers(0, 40 * MIB), st.booleans()), min_size=1, max_size=200))
def test_runs_are_contiguous_and_what_a_later_one_needs_is_remembered(steps: list[tuple[int, bool]]) -> None:
    """Whether the same machine goes on or, from time to time, another that recovered and has no notes."""
    state: tuple[RunInfo, ...] = ()
    floor = whole = 0
    for generation, (fresh, recovered) in enumerate(steps, 1):
        whole += fresh
        if recovered:
            floor = generation - 1
        since = runs.reach(state, fresh, floor)
        assert since == 0 or since >= floor, "a run reaches back over changes that were forgotten"
        state, _ = publish(state, generation, fresh, whole, floor)
        assert state[0].since == 0
        assert all(a.upto == b.since for a, b in pairwise(state))
        assert state[-1].upto == generation
        floor = max(floor, runs.remembered(state))


@pytest.mark.parametrize("fresh", [1, 10_000, 3 * MIB])
def test_many_equal_publishes_cost_a_small_multiple_and_few_runs(fresh: int) -> None:
    state: tuple[RunInfo, ...] = ()
    whole = written = 0
    for generation in range(1, 2001):
        whole += fresh
        state, size = publish(state, generation, fresh, whole)
        written += size
        assert len(state) <= 20 + whole // runs.ABSORB_MAX
    assert written <= 25 * whole


def test_a_small_change_to_a_large_volume_is_a_small_run() -> None:
    state = (RunInfo(bytes(16), 0, 1, 0, 1000 * MIB, ()),)
    state, size = publish(state, 2, 1000, 1000 * MIB)
    assert size == 1000
    assert len(state) == 2


def test_a_small_change_does_not_pay_for_the_checkpoint_that_a_large_one_left_due() -> None:
    state = (
        RunInfo(bytes(16), 0, 1, 0, 1000 * MIB, ()),
        RunInfo(bytes(16), 1, 2, 0, 499 * MIB, ()),
    )
    assert publish(state, 3, 2 * MIB, 1500 * MIB)[1] == 2 * MIB
    assert publish(state, 3, 20 * MIB, 1500 * MIB)[1] == 1500 * MIB, "a large one makes it"
    state = (state[0], RunInfo(bytes(16), 1, 2, 0, 999 * MIB, ()))
    assert publish(state, 3, 2 * MIB, 2000 * MIB)[1] == 2000 * MIB, "it is not put off for ever"
