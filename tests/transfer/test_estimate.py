"""What is expected of a provider, and how long it is waited for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.limits import HEDGE_SECONDS, MIB
from icnfs.transfer.estimate import (
    ENOUGH,
    HALF_LIFE,
    LATE_MAX,
    PATIENCE_LEAST,
    SLOWEST_USEFUL,
    SMALL,
    UNKNOWN_RATE,
    Estimate,
    Pace,
)


def _takes(estimate: Estimate, length: int, now: float, seconds: float) -> float:
    """One call alone; the time at its end."""
    call = estimate.begin(length, now)
    estimate.done(call, now + seconds)
    return now + seconds


def _steady(
    estimate: Estimate, now: float = 0.0, *, latency: float = 0.04, rate: float = 25e6, count: int = 10
) -> float:
    for _ in range(count):
        now = _takes(estimate, 100, now, latency)
        now = _takes(estimate, MIB, now, latency + MIB / rate)
    return now


def test_a_rate_is_guessed_and_patience_is_the_longest_while_nothing_is_known() -> None:
    estimate = Estimate(Pace())
    assert estimate.expected(MIB, 0.0) == MIB / UNKNOWN_RATE and estimate.rate is None and estimate.latency is None
    assert estimate.patience(0, 0.0) == HEDGE_SECONDS
    assert estimate.patience(MIB, 0.0) == HEDGE_SECONDS + MIB / SLOWEST_USEFUL


def test_latency_and_rate_are_told_apart() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate)
    assert estimate.latency == pytest.approx(0.04) and estimate.rate == pytest.approx(25e6)
    assert estimate.expected(4 * MIB, now) == pytest.approx(0.04 + 4 * MIB / 25e6)


def test_a_line_holds_its_rate_by_its_latency() -> None:
    estimate = Estimate(Pace())
    assert estimate.holds() == 0.0
    _takes(estimate, 100, 0.0, 0.04)
    assert estimate.holds() == 0.0, "the rate is not known yet"
    _steady(estimate)
    assert estimate.holds() == pytest.approx(0.04 * 25e6)


def test_a_call_given_up_for_another_shows_a_slower_rate_but_never_a_faster_one() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate, count=20)
    quick = estimate.begin(MIB, now)
    estimate.given_up(quick, now + 0.05)
    assert estimate.rate == pytest.approx(25e6)
    slow = estimate.begin(MIB, now)
    slow.patience = 2.0
    estimate.given_up(slow, now + 1.0)
    assert estimate.rate is not None and estimate.rate < 15e6


def test_a_line_that_becomes_slow_is_known_after_a_few_calls_and_one_that_recovers_after_more() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate, count=20)
    for _ in range(3):
        now = _takes(estimate, MIB, now, 0.04 + MIB / 2.5e6)
    assert estimate.rate is not None and estimate.rate < 5e6
    for _ in range(3):
        now = _takes(estimate, MIB, now, 0.04 + MIB / 25e6)
    assert estimate.rate < 0.5 * 25e6


def test_what_is_in_flight_there_comes_first() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate)
    calls = [estimate.begin(MIB, now) for _ in range(5)]
    assert estimate.expected(MIB, now) == pytest.approx(0.04 + 6 * MIB / 25e6)
    for call in calls:
        estimate.given_up(call, now)
    assert estimate.in_flight == 0 and estimate.expected(0, now) == pytest.approx(0.04)


def test_small_calls_that_overlap_tell_how_slow_it_has_become() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate)
    calls = [estimate.begin(SMALL, now + number / 100) for number in range(20)]
    for number, call in enumerate(calls):
        estimate.done(call, now + number / 100 + 1.2)
    assert estimate.latency == pytest.approx(1.2, rel=0.05)


def test_the_bytes_before_it_are_not_the_latency_of_a_small_call() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate)
    large = estimate.begin(4 * MIB, now)
    for _ in range(20):
        small = estimate.begin(100, now)
        estimate.done(small, now + 0.04 + 4 * MIB / 25e6)
    estimate.given_up(large, now)
    assert estimate.latency == pytest.approx(0.04, rel=0.05)


def test_a_full_line_shows_its_rate_and_not_that_of_one_call() -> None:
    estimate = Estimate(Pace())
    now = _takes(estimate, 100, 0.0, 0.04)
    for _ in range(10):
        calls = [estimate.begin(MIB, now) for _ in range(8)]
        for place, call in enumerate(calls, 1):
            estimate.done(call, now + 0.04 + place * MIB / 25e6)
        now += 0.04 + 8 * MIB / 25e6
    assert estimate.rate == pytest.approx(25e6, rel=0.01)


def test_patience_is_what_19_of_20_calls_take() -> None:
    estimate = Estimate(Pace())
    now = 0.0
    for number in range(200):
        now = _takes(estimate, 100, now, 0.3 if number % 20 == 7 else 0.1)
    assert 0.1 <= estimate.patience(100, now) <= 0.3
    for number in range(200):
        now = _takes(estimate, 100, now, 0.3 if number % 5 == 3 else 0.1)
    assert estimate.patience(100, now) == pytest.approx(0.3, rel=0.05)


def test_patience_has_bounds() -> None:
    quick, slow = Estimate(Pace()), Estimate(Pace())
    now = _steady(quick, latency=1e-6, rate=1e12)
    assert quick.patience(100, now) == PATIENCE_LEAST
    now = _steady(slow, latency=30.0)
    assert slow.patience(100, now) == HEDGE_SECONDS + 100 / SLOWEST_USEFUL


def test_a_provider_of_which_nothing_is_known_is_taken_for_one_like_the_others() -> None:
    pace = Pace()
    new, known = Estimate(pace), [Estimate(pace) for _ in range(3)]
    for one, latency in zip(known, (0.02, 0.04, 0.9), strict=True):
        now = _steady(one, latency=latency)
    assert new.expected(0, now) == pytest.approx(0.04)
    assert new.patience(0, now) < HEDGE_SECONDS


def test_a_call_that_is_late_counts_before_it_ends() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate)
    call = estimate.begin(100, now)
    assert estimate.expected(0, now + call.patience / 2) < call.patience / 2 + 0.05
    assert estimate.expected(0, now + 1.0) == 1.0
    estimate.given_up(call, now + 1.5)
    assert estimate.expected(0, now + 1.5) == 1.5


def test_who_hangs_is_tried_ever_more_seldom_and_one_good_answer_clears_it() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate)
    expected = []
    for _ in range(9):
        call = estimate.begin(100, now)
        now += 1.01 * call.patience
        estimate.given_up(call, now)
        expected.append(estimate.expected(0, now))
    assert expected == sorted(expected) and expected[0] < 0.1 and expected[-1] > 2 * expected[-3]
    assert estimate.expected(0, now + HALF_LIFE) == pytest.approx(expected[-1] / 2) and expected[-1] <= LATE_MAX
    now = _takes(estimate, 100, now, 0.04)
    assert estimate.expected(0, now) < 0.1


def test_calls_that_were_not_late_say_nothing_when_they_are_given_up() -> None:
    estimate = Estimate(Pace())
    now = _steady(estimate)
    before = estimate.expected(MIB, now), len(estimate.multiples)
    estimate.given_up(estimate.begin(MIB, now), now + 0.01)
    assert (estimate.expected(MIB, now + 0.01), len(estimate.multiples)) == pytest.approx(before, rel=0.01)


def test_who_was_slow_and_is_not_asked_is_forgiven() -> None:
    pace = Pace()
    slow, others = Estimate(pace), [Estimate(pace) for _ in range(3)]
    now = _steady(slow, rate=2.5e6)
    for one in others:
        _steady(one)
    usual, known = others[0].expected(MIB, now), slow.expected(MIB, now)
    assert known > 5 * usual
    assert slow.expected(MIB, now + HALF_LIFE) - usual == pytest.approx((known - usual) / 2, rel=0.01)
    later = _steady(slow, now + 4 * HALF_LIFE, count=3)
    assert slow.rate == pytest.approx(25e6, rel=0.4), "old samples weigh little once they are old"
    assert slow.expected(MIB, later) < 2 * usual


@given(
    st.lists(
        st.tuples(st.integers(0, 4 * MIB), st.floats(0, 100), st.booleans(), st.floats(0, 50)),
        min_size=ENOUGH,
        max_size=80,
    )
)
def test_estimates_are_finite_and_nothing_stays_in_flight(calls: list[tuple[int, float, bool, float]]) -> None:
    estimate = Estimate(Pace())
    now = 0.0
    for length, took, good, pause in calls:
        call = estimate.begin(length, now)
        now += took
        (estimate.done if good else estimate.given_up)(call, now)
        now += pause
        assert 0 <= estimate.expected(MIB, now) < math.inf
        assert PATIENCE_LEAST <= estimate.patience(MIB, now) <= estimate.longest(MIB)
    assert estimate.in_flight == 0
