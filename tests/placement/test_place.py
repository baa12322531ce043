"""Placement against an exhaustive search, and its reasons."""

from __future__ import annotations

import itertools
from collections import Counter
from itertools import pairwise
from math import gcd

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.errors import ConfigError, TooFewProvidersError
from icnfs.placement import Policy, place
from icnfs.providers.facts import ProviderFacts


def facts(name: str, owner: str = "", country: str = "DE", site: str = "", parent: str = "DE") -> ProviderFacts:
    return ProviderFacts(name, f"/srv/{name}", owner or f"owner of {name}", parent, country, site or f"site of {name}")


SIX = [facts(name) for name in "abcdef"]

some_facts = st.builds(
    lambda owner, country, site, parent: ("", owner, country, site, parent),
    st.sampled_from("ABCDE"),
    st.sampled_from(["DE", "FI", "US"]),
    st.sampled_from("xyz"),
    st.sampled_from(["DE", "US"]),
)
networks = st.lists(some_facts, min_size=1, max_size=8).map(
    lambda rows: [facts(f"p{i}", *row[1:]) for i, row in enumerate(rows)]
)
caps = st.none() | st.integers(1, 3)
policies = st.builds(
    Policy,
    allowed_countries=st.sampled_from([frozenset(), frozenset({"DE", "FI"})]),
    excluded_parents=st.sampled_from([frozenset(), frozenset({"US"})]),
    max_per_owner=caps,
    max_per_country=caps,
    max_per_site=caps,
)


@st.composite
def codes(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(3, 6))
    k = draw(st.integers(2, n - 1))
    return n, k, draw(st.integers(k + 1, n))


def allowed(chosen: tuple[ProviderFacts, ...], k: int, safe: int, policy: Policy) -> bool:
    def most(values: list[str], cap: int | None) -> bool:
        return cap is None or max(Counter(values).values()) <= cap

    owners = [one.owner for one in chosen]
    return (
        all(policy.objection(one) is None for one in chosen)
        and max(Counter(owners).values()) < k
        and len(set(owners)) >= safe
        and most(owners, policy.max_per_owner)
        and most([one.country for one in chosen], policy.max_per_country)
        and most([one.site for one in chosen], policy.max_per_site)
    )


def choices(network: list[ProviderFacts], n: int, k: int, safe: int, policy: Policy) -> list[tuple[ProviderFacts, ...]]:
    return [chosen for chosen in itertools.combinations(network, n) if allowed(chosen, k, safe, policy)]


@settings(max_examples=300)
@given(networks, codes(), policies, st.integers(-5, 20), st.data())
def test_choice_keeps_every_rule_and_is_found_whenever_one_exists(
    network: list[ProviderFacts], code: tuple[int, int, int], policy: Policy, rotation: int, data: st.DataObject
) -> None:
    n, k, safe = code
    away = data.draw(st.sets(st.sampled_from([one.name for one in network])))
    possible = choices(network, n, k, safe, policy)
    present = choices([one for one in network if one.name not in away], n, k, safe, policy)
    try:
        names = place(n, k, network, safe=safe, rotation=rotation, away=away, policy=policy)
    except ConfigError as error:
        assert not possible and "\n" not in str(error)
        return
    except TooFewProvidersError:
        assert possible and not present
        return
    assert len(names) == len(set(names)) == n
    chosen = tuple(one for one in network if one.name in names)
    assert allowed(chosen, k, safe, policy)
    assert len(set(names) - away) >= k
    if present:
        assert not set(names) & away, "who is away is chosen only when the others do not suffice"
    fewest = min(sum(one.name in away for one in choice) for choice in possible)
    assert len(set(names) & away) == fewest
    equal = [choice for choice in possible if sum(one.name in away for one in choice) == fewest]
    best = max(len({one.owner for one in choice}) for choice in equal)
    assert len({one.owner for one in chosen}) == best, "as many owners as can be"


@given(st.integers(3, 9), st.integers(-100, 100), st.data())
def test_roles_rotate_evenly(m: int, start: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(3, m))
    k = data.draw(st.integers(2, n - 1))
    network = [facts(f"p{i}") for i in range(m)]
    placed = [place(n, k, network, safe=k + 1, rotation=start + i) for i in range(m)]
    for role in range(n):
        assert sorted(names[role] for names in placed) == sorted(one.name for one in network)


@pytest.mark.parametrize(("m", "n", "k"), [(6, 6, 4), (9, 9, 6), (10, 6, 4), (7, 6, 4), (5, 5, 3), (12, 12, 8)])
def test_data_of_a_few_segments_in_a_row_lies_with_all_alike(m: int, n: int, k: int) -> None:
    network = [facts(f"p{i:02}") for i in range(m)]
    cycle = m // gcd(k, m)
    for start in (0, cycle, 5 * cycle):
        data = [place(n, k, network, safe=k + 1, rotation=start + i)[:k] for i in range(cycle)]
        assert set(Counter(name for names in data for name in names).values()) == {k * cycle // m}
        for first, second in pairwise(data):
            assert len({*first, *second}) == min(2 * k, m)


@given(st.integers(), st.sets(st.sampled_from("abcdefg"), max_size=3))
def test_same_arguments_same_choice(rotation: int, away: set[str]) -> None:
    network = [*SIX, facts("g")]
    first = place(6, 3, network, safe=4, rotation=rotation, away=away)
    assert place(6, 3, list(network), safe=4, rotation=rotation, away=frozenset(away)) == first


def test_provider_that_is_away_keeps_its_place_where_no_other_can_take_it() -> None:
    assert place(6, 4, SIX, safe=6, away={"c"}) == tuple("abcdef")
    assert "c" not in place(6, 4, [*SIX, facts("g")], safe=6, away={"c"})


def test_fewer_than_k_present_is_refused_by_name() -> None:
    with pytest.raises(TooFewProvidersError, match="a, b, c take none now"):
        place(6, 4, SIX, safe=6, away={"a", "b", "c"})


def test_large_network_with_every_cap_is_placed_in_bounded_steps() -> None:
    network = [facts(f"p{i}", f"o{i % 50}", f"c{i % 11}", f"s{i % 29}") for i in range(256)]
    policy = Policy(max_per_owner=2, max_per_country=6, max_per_site=3)
    assert len(place(64, 40, network, safe=50, rotation=100, policy=policy)) == 64


@pytest.mark.parametrize(
    ("network", "safe", "policy", "what"),
    [
        (
            SIX[:5],
            6,
            Policy(),
            "6 shares need 6 providers and there are 5; smallest change: 1 more provider of another owner",
        ),
        (SIX, 6, Policy(excluded_parents=frozenset({"DE"})), "a's parent is in DE, which is excluded"),
        (SIX, 6, Policy(allowed_countries=frozenset({"FI"})), "a is in DE, which is not allowed"),
        ([facts(c, "X") for c in "abcd"] + SIX[4:], 5, Policy(), "at most 3 per owner leaves 5 places for 6 shares"),
        (
            [facts(c, (c in "ab" and "X") or c) for c in "abcdef"],
            6,
            Policy(),
            "safe = 6 distinct owners and there are 5; smallest change: safe = 5, or 1 more",
        ),
        (SIX, 6, Policy(max_per_country=2), "at most 2 per country leaves 2 places for 6 shares"),
        (
            [facts(c, site="x") for c in "abcdef"],
            6,
            Policy(max_per_site=5),
            "at most 5 per site leaves 5 places for 6 shares",
        ),
    ],
)
def test_reason_says_what_to_change(network: list[ProviderFacts], safe: int, policy: Policy, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        place(6, 4, network, safe=safe, policy=policy)


@pytest.mark.parametrize(("n", "k", "safe"), [(6, 1, 6), (6, 6, 6), (6, 4, 4), (6, 4, 7), (0, 0, 0)])
def test_code_that_promises_nothing_is_refused(n: int, k: int, safe: int) -> None:
    with pytest.raises(ConfigError, match="2 <= K < safe <= N"):
        place(n, k, SIX, safe=safe)
