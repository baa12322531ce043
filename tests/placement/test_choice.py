"""Placing and refilling against every possible choice: rules, the best score, turns, noise, and changes that help."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.errors import ConfigError, TooFewProvidersError
from icnfs.placement import Measure, Policy, Weights, judge, misplaced, place, refill
from icnfs.placement.change import Situation, smallest
from icnfs.placement.score import totals
from icnfs.providers.facts import ProviderFacts

TRAITS = ("owner", "parent_country", "country", "site")

providers = st.lists(
    st.builds(
        lambda owner, parent, country, site, price, drain: ProviderFacts(
            "", "", owner, parent, country, site, price, price / 2, drain=drain
        ),
        st.sampled_from("ABCDEF"),
        st.sampled_from(["DE", "US", "CH"]),
        st.sampled_from(["DE", "FI", "US"]),
        st.sampled_from("wxyz"),
        st.sampled_from([0.0, 4.0, 5.0, 20.0]),
        st.sampled_from([False] * 7 + [True]),
    ),
    min_size=3,
    max_size=9,
).map(lambda rows: tuple(replace(row, name=f"p{i}") for i, row in enumerate(rows)))
caps = st.none() | st.integers(1, 4)
policies = st.builds(
    Policy,
    st.sampled_from([frozenset(), frozenset({"DE", "FI"})]),
    st.sampled_from([frozenset(), frozenset(), frozenset({"US"})]),
    caps,
    caps,
    caps,
    caps,
)
measured = st.dictionaries(
    st.sampled_from([f"p{i}" for i in range(9)]),
    st.builds(Measure, st.sampled_from([None, 0.01, 0.05, 0.5]), st.sampled_from([None, 0, 10**9, 10**12])),
)
WEIGHTS = Weights()


@st.composite
def codes(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(3, 6))
    k = draw(st.integers(2, n - 1))
    return n, k, draw(st.integers(k + 1, n))


def fits(new: tuple[ProviderFacts, ...], kept: tuple[ProviderFacts, ...], k: int, policy: Policy) -> bool:
    """Whether `new` may take shares beside `kept`, spelt out rule by rule."""
    for one in new:
        if policy.allowed_countries and one.country not in policy.allowed_countries:
            return False
        if one.parent_country in policy.excluded_parents or one.drain:
            return False
    for trait in TRAITS:
        most = getattr(policy, f"max_per_{trait}")
        if trait == "owner":
            most = min(k - 1, most or k)
        counts = Counter(getattr(one, trait) for one in (*new, *kept))
        if most is not None and any(counts[getattr(one, trait)] > most for one in new):
            return False
    return True


def owners(*groups: tuple[ProviderFacts, ...]) -> int:
    return len({one.owner for group in groups for one in group})


@settings(max_examples=400, deadline=None)
@given(providers, codes(), policies, measured, st.integers(-9, 99), st.data())
def test_place_agrees_with_the_best_of_all_choices(
    network: tuple[ProviderFacts, ...],
    code: tuple[int, int, int],
    policy: Policy,
    measures: dict[str, Measure],
    rotation: int,
    data: st.DataObject,
) -> None:
    n, k, safe = code
    away = data.draw(st.sets(st.sampled_from([one.name for one in network]), max_size=3))
    usable = [one for one in network if policy.objection(one) is None]
    holding, reading = totals(usable, WEIGHTS, measures)
    score = {one.name: value for one, value in zip(usable, holding, strict=True)}
    read_score = {one.name: value for one, value in zip(usable, reading, strict=True)}

    def merit(chosen: tuple[ProviderFacts, ...]) -> tuple[int, int, int]:
        return sum(one.name in away for one in chosen), -owners(chosen), sum(score[one.name] for one in chosen)

    possible = [c for c in itertools.combinations(network, n) if fits(c, (), k, policy) and owners(c) >= safe]
    try:
        names = place(n, k, network, safe=safe, rotation=rotation, away=away, policy=policy, measures=measures)
    except ConfigError:
        assert not possible
        return
    except TooFewProvidersError:
        assert possible and min(map(merit, possible))[0] > n - k
        return
    chosen = tuple(one for one in network if one.name in names)
    assert len(set(names)) == len(names) == n and chosen in possible
    assert merit(chosen) == min(map(merit, possible))
    assert [read_score[name] for name in names] == sorted(read_score[name] for name in names)


@settings(max_examples=400, deadline=None)
@given(providers, codes(), policies, measured, st.integers(-9, 99), st.data())
def test_refill_agrees_with_the_best_of_all_choices(
    network: tuple[ProviderFacts, ...],
    code: tuple[int, int, int],
    policy: Policy,
    measures: dict[str, Measure],
    rotation: int,
    data: st.DataObject,
) -> None:
    n, k, safe = code
    names = [one.name for one in network]
    away = data.draw(st.sets(st.sampled_from(names), max_size=3))
    order = data.draw(st.permutations([*names, "gone"]))[:n]
    holders = [data.draw(st.sampled_from([name, None])) for name in order]
    holders += [None] * (n - len(holders))
    kept = tuple(one for one in network if one.name in holders)
    free = [one for one in network if one.name not in holders]
    wanted = holders.count(None)
    possible = [c for c in itertools.combinations(free, wanted) if fits(c, kept, k, policy)]
    present = [c for c in possible if not away & {one.name for one in c}]
    try:
        filled = refill(holders, k, network, safe=safe, rotation=rotation, away=away, policy=policy, measures=measures)
    except ConfigError as error:
        assert not possible and "\n" not in str(error)
        return
    except TooFewProvidersError as error:
        assert possible and not present and any(name in str(error) for name in away)
        return
    assert all(held in (None, now) for held, now in zip(holders, filled, strict=True))
    assert len(set(filled)) == len(filled) == n
    new = tuple(one for one in free if one.name in filled)
    assert new in present
    chosen_from = [one for one in free if policy.objection(one) is None and one.name not in away]
    score = dict(zip([one.name for one in chosen_from], totals(chosen_from, WEIGHTS, measures)[0], strict=True))

    def merit(choice: tuple[ProviderFacts, ...]) -> tuple[int, int]:
        return -owners(choice, kept), sum(score[one.name] for one in choice)

    assert merit(new) == min(map(merit, present))


@settings(max_examples=300, deadline=None)
@given(providers, codes(), policies, st.data())
def test_judge_and_misplaced_agree_with_every_rule_spelt_out(
    network: tuple[ProviderFacts, ...], code: tuple[int, int, int], policy: Policy, data: st.DataObject
) -> None:
    n, k, safe = code
    facts = {one.name: one for one in network}
    order = data.draw(st.permutations([*facts, "gone"]))[:n]
    holders = [(name, data.draw(st.sampled_from([True, True, True, False]))) for name in order]
    stored = [index for index, (_, there) in enumerate(holders) if there]

    def clean(indexes: tuple[int, ...]) -> bool:
        held = [facts.get(holders[index][0]) for index in indexes]
        known = tuple(one for one in held if one is not None)
        return len(known) == len(held) and fits(known, (), k, policy)

    breaches = judge(holders, k, facts, safe=safe, policy=policy)
    rules = {breach.rule for breach in breaches}
    known = tuple(facts[holders[i][0]] for i in stored if holders[i][0] in facts)
    assert clean(tuple(stored)) == (not rules - {"safe"})
    assert ("safe" in rules) == (owners(known) < safe)
    assert ("unknown" in rules) == any(holders[i][0] == "gone" for i in stored)
    assert ("drain" in rules) == any(one.drain for one in known)
    jurisdictions = [c for c in ("DE", "FI", "US", "CH") if sum(reaches(c, one, policy) for one in known) >= k]
    assert ("jurisdiction" in rules) == bool(
        jurisdictions or max(Counter(one.owner for one in known).values(), default=0) >= k
    )
    assert all("\n" not in b.text and set(b.shares) <= set(stored) for b in breaches)

    moving = misplaced(holders, k, facts, policy)
    assert clean(tuple(i for i in stored if i not in moving)) and set(moving) <= set(stored)
    fewer = itertools.combinations(stored, len(stored) - len(moving) + 1)
    assert not any(map(clean, fewer)), "no smaller set does"
    kept = [None if index in moving or not there else name for index, (name, there) in enumerate(holders)]
    try:
        after = refill(kept, k, network, safe=safe, policy=policy)
    except ConfigError:
        return
    again = judge([(name, True) for name in after], k, facts, safe=safe, policy=policy)
    assert {breach.rule for breach in again} <= {"safe"}


def reaches(country: str, one: ProviderFacts, policy: Policy) -> bool:
    beyond = bool(policy.allowed_countries) and country not in policy.allowed_countries
    return (one.country == country and beyond) or (one.parent_country == country and country in policy.excluded_parents)


@settings(max_examples=300, deadline=None)
@given(providers, codes(), policies)
def test_the_changes_that_are_named_are_enough(
    network: tuple[ProviderFacts, ...], code: tuple[int, int, int], policy: Policy
) -> None:
    n, k, safe = code
    try:
        place(n, k, network, safe=safe, policy=policy)
    except ConfigError as error:
        now = Situation(n, k, safe, network, policy)
        changes = smallest(now)
        assert changes and str(error).endswith(", or ".join(change.words for change in changes))
        for change in changes:
            after = change.applied(now)
            assert after != now and len(place(n, k, after.providers, safe=after.safe, policy=after.policy)) == n


def provider(name: str, country: str = "DE", price: float = 4.0, **rest: object) -> ProviderFacts:
    return ProviderFacts(name, "", f"owner {name}", "DE", country, f"site {name}", price, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "policy", "what"),
    [
        (
            [provider(c, x) for c, x in zip("abcdef", ["DE", "FI", "SE", "FR", "DE", "FI"], strict=True)],
            Policy(max_per_country=1),
            "at most 1 per country leaves 4 places for 6 shares; smallest change: max_per_country = 2, or 2 more "
            "providers of other owners in 2 more countries",
        ),
        (
            [*map(provider, "abcde"), provider("f", drain=True)],
            Policy(),
            "6 shares need 6 providers and there are 5 (f is being drained); smallest change: no longer drain f, or "
            "1 more provider of another owner",
        ),
        (
            [*map(provider, "abcde"), provider("f", "FI")],
            Policy(allowed_countries=frozenset({"DE"})),
            "6 shares need 6 providers and there are 5 (f is in FI, which is not allowed); smallest change: FI in "
            "allowed_countries, or 1 more provider of another owner in DE",
        ),
        (
            list(map(provider, "abcdef")),
            Policy(max_per_country=3, max_per_parent_country=5),
            "at most 5 per parent country leaves 5 places for 6 shares; smallest change: max_per_parent_country = 6 "
            "and max_per_country = 6, or 3 more providers of other owners in 3 more countries with parents in 3 more "
            "countries",
        ),
    ],
)
def test_reason_and_change_in_words(network: list[ProviderFacts], policy: Policy, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place(6, 3, network, safe=6, policy=policy)
    assert str(caught.value) == what


def test_cheaper_faster_and_roomier_providers_are_preferred_and_weights_of_nothing_leave_them_out() -> None:
    network = [provider(f"p{i}", price=8.0 if i < 3 else 4.0) for i in range(6)]
    assert set(place(3, 2, network, safe=3)) == {"p3", "p4", "p5"}
    slow = {f"p{i}": Measure(0.4 if i % 2 else 0.05, None) for i in range(6)}
    assert set(place(3, 2, network, safe=3, measures=slow, weights=Weights(cost=0))) == {"p0", "p2", "p4"}
    full = {f"p{i}": Measure(None, 0 if i > 2 else 10**12) for i in range(6)}
    assert set(place(3, 2, network, safe=3, measures=full)) == {"p0", "p1", "p2"}
    assert place(3, 2, network, safe=3, measures=full, weights=Weights(0, 0, 0)) == ("p0", "p1", "p2")


def test_reading_price_counts_as_often_as_all_is_read_and_once_more() -> None:
    dear_to_read = replace(provider("a", price=4.0), eur_per_tb_read=10.0)
    network = [dear_to_read, *(provider(name, price=7.0) for name in "bcd")]
    assert "a" in place(3, 2, network, safe=3, weights=Weights(reads=0.1))
    assert "a" not in place(3, 2, network, safe=3, weights=Weights(reads=1.0))
    assert place(4, 2, network, safe=4, weights=Weights(reads=0.1))[-1] == "a", "no data where reading is dear"
    brief = replace(dear_to_read, eur_per_tb_read=25.0)
    assert "a" in place(3, 2, [brief, *network[1:]], safe=3, weights=Weights(reads=0, life_months=36))
    assert "a" not in place(3, 2, [brief, *network[1:]], safe=3, weights=Weights(reads=0, life_months=6))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(2, 8), st.integers(-50, 50), st.data())
def test_equals_take_turns_beside_better_ones_and_under_noise(
    better: int, equal: int, start: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(max(3, better + 1), better + equal)) if better + equal >= 3 else 3
    network = [provider(f"p{i}", price=4.0 if i < better else 9.0) for i in range(better + equal)]
    network = list(data.draw(st.permutations(network)))
    calm = {one.name: Measure(0.1, 10**12) for one in network}
    taken: Counter[str] = Counter()
    for i in range(equal):
        noisy = {one.name: Measure(0.1 * data.draw(st.floats(0.9, 1.1)), 10**12) for one in network}
        if better + equal < 3:
            return
        names = place(n, 2, network, safe=3, rotation=start + i, measures=noisy)
        assert names == place(n, 2, network, safe=3, rotation=start + i, measures=calm)
        taken.update(names)
    cheap = {one.name for one in network if one.eur_per_tb_month == 4.0}
    assert {taken[name] for name in cheap} == {equal}
    assert {taken[one.name] for one in network if one.name not in cheap} == {n - better}
