"""Milestones: nothing passes before its grace is over, and everything does soon after."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from icnfs.volume import milestones
from icnfs.volume.milestones import PARTS, Milestones

steps = st.lists(st.tuples(st.integers(1, 400), st.integers(0, 3)), max_size=60)


@given(steps, st.integers(0, 1000))
def test_a_generation_passes_when_it_was_published_for_a_grace(looks: list[tuple[int, int]], grace: int) -> None:
    kept: Milestones = ()
    now = generation = 0
    seen: list[tuple[int, int]] = []
    for wait, more in looks:
        now, generation = now + wait, generation + more
        seen.append((now, generation))
        kept = milestones.extended(kept, now, grace, generation)
        passed = milestones.passed(kept, now, grace)
        assert passed <= max((held for time, held in seen if time <= now - grace), default=-1), "not before"
        late = now - grace - grace // PARTS - 400
        assert passed >= max((held for time, held in seen if time <= late), default=-1), "nor long after"
        assert len(kept) <= PARTS * 2 + 2
        assert milestones.decode(milestones.encode(kept)) == kept


def test_a_clock_that_is_set_back_begins_anew_and_loses_nothing_that_passed() -> None:
    kept = milestones.extended((), 1_000, 100, 1)
    kept = milestones.extended(kept, 500, 100, 2)
    assert milestones.passed(kept, 599, 100) == -1
    assert milestones.passed(kept, 600, 100) == 2


@given(st.binary(max_size=40))
def test_anything_else_is_no_milestone(data: bytes) -> None:
    assert isinstance(milestones.decode(data), tuple)
    assert milestones.decode(None) == ()
