"""The choice of n providers for the n shares of a segment: pure, and the same for the same arguments.

Promises, in this order:

1. No owner holds k shares or more, and the policy's caps hold.
2. The n shares lie with `safe` distinct owners at least.
3. Providers that are away are chosen only where the others do not suffice.
4. As many distinct owners as can be.
5. Over successive rotations, all providers that are as good as each other take each role equally often.

It knows nothing of prices, latencies and room: who must not be chosen now is in `away`.

The choice is a search in the rotated order: take a provider or pass it by, and turn back where what is left cannot
suffice.  With one kind of cap the bound is exact and the search never turns back; with several it may, hence STEPS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from icnfs.errors import ConfigError, TooFewProvidersError
from icnfs.placement.policy import Policy
from icnfs.providers.facts import ProviderFacts

STEPS: Final = 500
"""Looks at a provider before a search is given up: 20 us each for 6 providers, 100 us for 100.

Only several kinds of cap together, over dozens of providers, come near.  What can be placed with rotation 0 and
nobody away is placed always, for that order is tried last: a configuration that was checked once does not fail later.
"""

_DEFAULT_POLICY: Final = Policy()

_Trait = Callable[[ProviderFacts], str]


def place(
    n: int,
    k: int,
    providers: Sequence[ProviderFacts],
    *,
    safe: int,
    rotation: int = 0,
    away: Collection[str] = frozenset(),
    policy: Policy = _DEFAULT_POLICY,
) -> tuple[str, ...]:
    """The names of `n` distinct providers, by share index.

    2 <= k < safe <= n; `rotation` is any integer, one more for each segment.  Raises `ConfigError` where these
    providers can never do, and `TooFewProvidersError` where fewer than `k` of the chosen would be present, each with
    the reason.  Where only some are away they are chosen all the same, and their shares are missing for now.
    """
    if not 2 <= k < safe <= n:
        raise ConfigError(f"code {k}-of-{n}, safe {safe}: they must keep 2 <= K < safe <= N")
    usable = [facts for facts in providers if policy.objection(facts) is None]
    turn = rotation % len(usable) if usable else 0
    circle = usable[turn:] + usable[:turn]
    caps = _caps(k, policy)
    present = [facts for facts in circle if facts.name not in away]
    absent = [facts for facts in circle if facts.name in away]
    chosen = _spread(present, n, safe, caps)
    if chosen is None and absent:
        chosen = _spread(present + absent, n, safe, caps)
    if chosen is None and circle != usable:
        chosen = _spread(usable, n, safe, caps)
    if chosen is None:
        raise ConfigError(_reason(n, k, safe, providers, policy))
    _check_present(k, chosen, away)
    return tuple(facts.name for facts in circle if facts in chosen)


def _caps(k: int, policy: Policy) -> list[tuple[_Trait, int]]:
    per_owner = k - 1 if policy.max_per_owner is None else min(k - 1, policy.max_per_owner)
    caps: list[tuple[_Trait, int]] = [(_owner, per_owner)]
    if policy.max_per_country is not None:
        caps.append((_country, policy.max_per_country))
    if policy.max_per_site is not None:
        caps.append((_site, policy.max_per_site))
    return caps


def _owner(facts: ProviderFacts) -> str:
    return facts.owner


def _country(facts: ProviderFacts) -> str:
    return facts.country


def _site(facts: ProviderFacts) -> str:
    return facts.site


def _check_present(k: int, chosen: Collection[ProviderFacts], away: Collection[str]) -> None:
    missing = sorted(facts.name for facts in chosen if facts.name in away)
    if len(chosen) - len(missing) < k:
        raise TooFewProvidersError(
            f"{k} shares must be stored to be readable, and {', '.join(missing)} are away; bring them back"
        )


def _spread(
    candidates: Sequence[ProviderFacts], n: int, safe: int, caps: Sequence[tuple[_Trait, int]]
) -> set[ProviderFacts] | None:
    """`n` of the candidates, with as many owners as can be but no fewer than `safe`, or None."""
    most = min(n, len({facts.owner for facts in candidates}))
    left = STEPS
    for owners in range(most, safe - 1, -1):
        search = _Search(candidates, n, owners, caps, steps=STEPS if owners == safe else left)
        chosen = search.run()
        if chosen is not None:
            return chosen
        left = search.steps
    return None


@dataclass
class _Search:
    """One search for `n` providers of `owners` owners at least, within `caps`, the earlier candidates first."""

    candidates: Sequence[ProviderFacts]
    n: int
    owners: int
    caps: Sequence[tuple[_Trait, int]]
    steps: int
    """Looks left to take."""
    chosen: list[ProviderFacts] = field(default_factory=list)
    held: list[Counter[str]] = field(default_factory=list)
    """Beside each of `caps`: shares chosen so far by owner, country or site."""

    def run(self) -> set[ProviderFacts] | None:
        self.held = [Counter() for _ in self.caps]
        return set(self.chosen) if self._from(0) else None

    def _from(self, position: int) -> bool:
        """Complete the choice with candidates from `position` on; False leaves it as it was."""
        if len(self.chosen) == self.n:
            return self._owners_held() >= self.owners
        if self.steps <= 0 or not self._can_suffice(position):
            return False
        self.steps -= 1
        facts = self.candidates[position]
        if self._fits(facts):
            self._take(facts)
            if self._from(position + 1):
                return True
            self._give_back(facts)
        return self._from(position + 1)

    def _fits(self, facts: ProviderFacts) -> bool:
        return all(held[trait(facts)] < most for (trait, most), held in zip(self.caps, self.held, strict=True))

    def _take(self, facts: ProviderFacts) -> None:
        self.chosen.append(facts)
        for (trait, _), held in zip(self.caps, self.held, strict=True):
            held[trait(facts)] += 1

    def _give_back(self, facts: ProviderFacts) -> None:
        self.chosen.pop()
        for (trait, _), held in zip(self.caps, self.held, strict=True):
            held[trait(facts)] -= 1

    def _owners_held(self) -> int:
        return len({facts.owner for facts in self.chosen})

    def _can_suffice(self, position: int) -> bool:
        """A bound: each kind of cap by itself leaves room enough, and enough new owners are to come."""
        rest = [facts for facts in self.candidates[position:] if self._fits(facts)]
        places = self.n - len(self.chosen)
        for (trait, most), held in zip(self.caps, self.held, strict=True):
            offered = Counter(map(trait, rest))
            if sum(min(count, most - held[value]) for value, count in offered.items()) < places:
                return False
        taken = {facts.owner for facts in self.chosen}
        new = len({facts.owner for facts in rest} - taken)
        return len(taken) + min(new, places) >= self.owners


def _reason(n: int, k: int, safe: int, providers: Sequence[ProviderFacts], policy: Policy) -> str:
    """Why no choice exists, and what to change."""
    objections = [reason for reason in map(policy.objection, providers) if reason is not None]
    excluded = f" ({'; '.join(objections)})" if objections else ""
    usable = [facts for facts in providers if policy.objection(facts) is None]
    if len(usable) < n:
        return f"{n} shares need {n} providers and there are {len(usable)}{excluded}; add providers or lower N"
    for trait, most in _caps(k, policy):
        counts = Counter(map(trait, usable))
        room = sum(min(count, most) for count in counts.values())
        if room < n:
            what = trait.__name__.strip("_")
            return (
                f"only {room} of {n} shares can be placed with at most {most} per {what}{excluded}; "
                f"add a provider of another {what} or lower N"
            )
    owners = len({facts.owner for facts in usable})
    if owners < safe:
        return f"safe = {safe} distinct owners, and there are {owners}{excluded}; add owners or lower safe"
    return f"the limits per owner, country and site leave no choice of {n} providers{excluded}; loosen one of them"
