"""What is held against a provider that refuses to store, by size and time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import ProviderFullError, ProviderRefusedError
from icnfs.providers.refusals import GAP_MAX_SECONDS, GAP_SECONDS, Refusals

FULL = ProviderFullError("p", "its disk is full")
MIB = 1 << 20


def test_gaps_grow_to_a_bound_and_end_with_a_success() -> None:
    refusals, now, gaps = Refusals(), 0.0, []
    for _ in range(9):
        refusals.refused(FULL, MIB, now)
        assert refusals.state(now) == "refused"
        begun = now
        while refusals.state(now) != "due":
            now += 1
        gaps.append(now - begun)
    assert gaps == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert (gaps[0], gaps[-1]) == (GAP_SECONDS, GAP_MAX_SECONDS)
    refusals.stored(MIB)
    assert refusals.state(now) == "ok"
    refusals.refused(FULL, MIB, now)
    assert refusals.state(now + GAP_SECONDS) == "due"


def test_the_refusal_is_raised_anew_while_it_lasts() -> None:
    refusals = Refusals()
    refusals.refused(FULL, MIB, 0.0)
    with pytest.raises(ProviderFullError, match="provider p: its disk is full"):
        refusals.begin(MIB, 1.0)


def test_what_is_smaller_than_all_that_was_refused_is_stored_and_proves_nothing() -> None:
    refusals = Refusals()
    refusals.refused(FULL, MIB, 0.0)
    assert refusals.begin(1000, 1.0) is False
    refusals.stored(1000)
    assert refusals.state(1.0) == "refused"
    with pytest.raises(ProviderFullError):
        refusals.begin(MIB, 1.0)
    refusals.refused(FULL, 1000, 1.0)
    with pytest.raises(ProviderFullError):
        refusals.begin(1000, 2.0)
    assert refusals.begin(1000, GAP_SECONDS)
    refusals.done()
    refusals.stored(1000)
    assert refusals.begin(1000, GAP_SECONDS) is False, "what it took it may be given again"
    assert refusals.state(GAP_SECONDS) == "due", "but not of the size that it refused"


def test_room_that_shows_again_ends_the_gap_and_only_that_of_one_that_was_full() -> None:
    for error, state in ((FULL, "due"), (ProviderRefusedError("p", "read-only"), "refused")):
        refusals = Refusals()
        refusals.refused(error, MIB, 0.0)
        for free in (5 * MIB, 4 * MIB, None, 4 * MIB + MIB - 1):
            refusals.told(free, 1.0)
            assert refusals.state(1.0) == "refused"
        refusals.told(5 * MIB, 1.0)
        assert refusals.state(1.0) == state


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5))))
def test_however_much_is_to_be_stored_little_is_sent(asked: list[tuple[float, int]]) -> None:
    """One that refuses all is sent one object of each gap, and as few more as are smaller than all before."""
    refusals, now, sent = Refusals(), 0.0, 0
    for wait, size in asked:
        now += wait
        try:
            tried = refusals.begin(size, now)
        except ProviderFullError:
            continue
        sent += 1
        if tried:
            refusals.done()
        refusals.refused(FULL, size, now)
    assert sent <= 5 + now / GAP_SECONDS
