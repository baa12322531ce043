"""The audit's order and pace in virtual time: every share within its days, never more than may be read, and what is
lost is noticed as often as the page says."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.config import AuditRules
from icnfs.erasure import hashtree
from icnfs.limits import KIB, MIB
from icnfs.volume.sweep import DAY, LEAST, State, Sweep, a_day, leaves_expected, unnoticed, unnoticed_leaves

RULES = AuditRules()
SHARES = 6


class Auditor:
    """Drives a sweep as `audit` does, once every `step` seconds; remembers what was looked at, and when."""

    def __init__(self, ids: list[bytes], share_len: int, rules: AuditRules, seed: int, step: float = 600.0) -> None:
        self.rng = random.Random(seed)
        self.sweep = Sweep(State(), self.rng)
        self.ids, self.share_len, self.rules, self.step = ids, share_len, rules, step
        self.now = 1e9
        self.stored = len(ids) * share_len * SHARES
        self.seen: dict[bytes, float] = {}
        self.leaves: list[tuple[bytes, int, int]] = []
        self.read: dict[int, int] = {}

    def run(self, days: float, off: tuple[float, float] = (0, 0)) -> None:
        """For so many days; between the moments `off`, in days from now, it is not running."""
        begun = self.now
        while self.now < begun + days * DAY:
            at = (self.now - begun) / DAY
            if not off[0] <= at < off[1]:
                self.look()
            self.now += self.step

    def look(self) -> None:
        sweep = self.sweep
        if not sweep.state.begun:
            sweep.begin(self.now)
        queue = sweep.upcoming(self.ids, len(self.ids))
        if not queue and sweep.is_over(self.now, self.rules):
            sweep.begin(self.now)
        while queue and sweep.is_due(queue[0], self.now, self.rules):
            visits = sweep.plan(self.share_len, range(SHARES), self.stored, self.now, self.rules)
            if visits is None:
                break
            cost = sum(visit.cost for visit in visits)
            sweep.spend(cost, self.now)
            sweep.visited(queue[0])
            self.seen[queue[0]] = self.now
            self.leaves += [(queue[0], visit.index, leaf) for visit in visits for leaf in visit.leaves]
            day = int(self.now // DAY)
            self.read[day] = self.read.get(day, 0) + cost
            queue.pop(0)


def ids(count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(16) for _ in range(count)]


def test_by_default_every_share_is_looked_at_within_14_days_and_a_thousandth_is_read_a_day() -> None:
    """A volume of full segments, 36 GiB stored, for three sweeps."""
    auditor = Auditor(ids(1500), 4 * MIB, RULES, 1)
    for _ in range(3):
        begun = auditor.now
        auditor.run(14)
        assert len([id for id in auditor.ids if auditor.seen[id] >= begun]) == 1500
        auditor.run(0.05)
    assert max(auditor.read.values()) <= 0.001 * auditor.stored
    assert auditor.sweep.state.sweeps == 3
    visits = 3 * 1500 * SHARES
    assert 0.75 < len(auditor.leaves) / visits < 0.80, "most visits read a leaf as well"


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    share_len=st.one_of(st.integers(1, 200), st.integers(1, 16 * MIB)),
    days=st.floats(1, 40),
    most=st.floats(0.001, 100),
    seed=st.integers(0, 2**32),
)
def test_no_day_has_more_than_its_bytes_and_no_visit_what_a_share_has_not(
    count: int, share_len: int, days: float, most: float, seed: int
) -> None:
    auditor = Auditor(ids(count, seed), share_len, AuditRules(True, days, most), seed, step=DAY / 8)
    auditor.run(12)
    assert max(auditor.read.values(), default=0) <= a_day(auditor.stored, auditor.rules)
    assert all(0 <= leaf < hashtree.leaf_count(share_len) for _, _, leaf in auditor.leaves)


def test_a_small_volume_is_looked_at_leaf_by_leaf_for_it_costs_next_to_nothing() -> None:
    auditor = Auditor(ids(20), 900 * KIB, RULES, 5)
    auditor.run(14.1)
    assert len(auditor.seen) == 20
    assert len(auditor.leaves) >= 20 * SHARES
    assert max(auditor.read.values()) <= LEAST


def test_leaves_are_read_in_proportion_to_size() -> None:
    stored = 1 << 50
    each = [leaves_expected(length, stored, RULES) * 64 * KIB / length for length in (4 * MIB, 8 * MIB, 16 * MIB)]
    assert all(0.0120 < part < 0.0122 for part in each)
    assert leaves_expected(1000, stored, RULES) == 0, "the list of hashes is all that may be read of it"


def test_a_sweep_that_cannot_have_both_reads_fewer_leaves_and_then_takes_longer() -> None:
    """Full segments, one day: 0.1 % is less than a leaf of each.  Tiny shares: their lists alone are more."""
    auditor = Auditor(ids(1500), 4 * MIB, AuditRules(True, 1, 0.1), 2, step=300)
    auditor.run(1)
    assert len(auditor.seen) == 1500
    assert len(auditor.leaves) < 1500 * SHARES / 10
    slow = Auditor(ids(4000), 2 * MIB, AuditRules(True, 1, 0.001), 3, step=3600)
    slow.stored = 1 << 42
    slow.run(1)
    assert len(slow.seen) < 4000
    assert max(slow.read.values()) <= a_day(slow.stored, slow.rules)
    slow.run(5)
    assert len(slow.seen) == 4000


def test_it_goes_on_where_it_was_and_catches_up_after_a_pause() -> None:
    auditor = Auditor(ids(300), 4 * MIB, RULES, 4)
    auditor.run(5)
    before = set(auditor.seen)
    assert 0.25 < len(before) / 300 < 0.45
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(auditor.sweep.state), type=State)
    auditor.sweep = Sweep(kept, random.Random(9))
    auditor.seen.clear()
    auditor.run(9.05, off=(0, 4))
    assert before.isdisjoint(auditor.seen)
    assert before | set(auditor.seen) == set(auditor.ids)


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    auditor = Auditor(ids(100), 4 * MIB, RULES, 4)
    auditor.run(7)
    auditor.now -= 100 * DAY
    auditor.run(14.1)
    assert len(auditor.seen) == 100


def test_every_sweep_visits_every_segment_once_in_the_order_of_the_first() -> None:
    everything = ids(50)
    orders = []
    for sweep in [Sweep(State(), random.Random(1))] * 2 + [Sweep(State(), random.Random(2))]:
        sweep.begin(1.0)
        order = []
        while some := sweep.upcoming(everything, 7):
            order += some
            sweep.visited(some[-1])
        assert sorted(order) == sorted(everything)
        orders.append(tuple(order))
    assert orders[0] == orders[1] != orders[2]


# --- what it detects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lost", "days"), [(1, 7), (10, 1), (10, 3), (50, 1), (100, 0.5)])
def test_lost_shares_go_unnoticed_as_rarely_as_computed(lost: int, days: float) -> None:
    """Of 1000 shares of one provider, the sweep simulated from a random point on; 400 losses for each figure."""
    count, trials = 1000, 400
    auditor = Auditor(ids(count, 3), MIB, RULES, 3, step=DAY / 48)
    auditor.run(14)
    first = dict(auditor.seen)
    auditor.run(14.1)
    rng = random.Random(lost)
    missed = 0
    for _ in range(trials):
        moment = 1e9 + rng.uniform(0, 14) * DAY
        gone = rng.sample(auditor.ids, lost)
        found = min(first[id] if first[id] >= moment else auditor.seen[id] for id in gone)
        missed += found > moment + days * DAY
    computed = unnoticed(count, lost, days, RULES)
    spread = 3.5 * (computed * (1 - computed) / trials) ** 0.5
    assert abs(missed / trials - computed) <= spread + 0.01


def test_after_a_whole_sweep_no_lost_share_is_unnoticed() -> None:
    assert unnoticed(1000, 1, 14, RULES) == 0.0
    assert unnoticed(1000, 1, 7, RULES) == pytest.approx(0.5)


@pytest.mark.parametrize(("part", "days"), [(0.01, 7), (0.01, 14), (0.001, 14), (0.1, 1)])
def test_altered_leaves_go_unnoticed_as_rarely_as_computed(part: float, days: float) -> None:
    """One provider's 1000 shares of full segments; leaves altered here and there."""
    count, share_len, trials = 1000, 4 * MIB, 300
    stored = count * share_len * SHARES
    rng = random.Random(7)
    sweep = Sweep(State(), rng)
    leaves = hashtree.leaf_count(share_len)
    visits = round(count * days / RULES.days)
    missed = 0
    for _ in range(trials):
        bad = {(rng.randrange(count), rng.randrange(leaves)) for _ in range(round(part * count * leaves))}
        seen = (
            (share, leaf)
            for share in range(visits)
            for leaf in (sweep.plan(share_len, [0], stored, share * DAY, RULES) or [])[0].leaves
        )
        missed += not any(each in bad for each in seen)
    computed = unnoticed_leaves(count, share_len, part, days, stored, RULES)
    spread = 3.5 * (computed * (1 - computed) / trials) ** 0.5
    assert abs(missed / trials - computed) <= spread + 0.02


def test_the_readme_says_what_is_computed() -> None:
    """Each figure of its table, as a percentage with two digits."""
    page = (Path(__file__).parents[2] / "README.md").read_text()
    days = (1, 3, 7, 14)
    for part in (0.001, 0.01, 0.1):
        lost = [unnoticed(1000, round(1000 * part), each, RULES) for each in days]
        altered = [unnoticed_leaves(1000, 4 * MIB, part, each, 24_000 * MIB, RULES) for each in days]
        for what, figures in (("shares lost", lost), ("leaves altered", altered)):
            cells = " | ".join(f"{100 * figure:.2g} %" for figure in figures)
            assert f"| {100 * part:g} % of the {what} | {cells} |" in page
