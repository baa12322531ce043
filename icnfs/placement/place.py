"""The choice of providers for the shares of a segment: pure, and the same for the same arguments.

Promises, in this order:

1. No owner holds k shares or more, the policy's caps hold, and nobody to whom it objects is chosen.
2. The n shares lie with `safe` distinct owners at least.
3. As few providers as can be are chosen that are away.
4. As many distinct owners as can be.
5. The least total score (`icnfs.placement.score`), and the first shares, which hold the data, lie where reading is
   cheapest and fastest.
6. Over successive rotations, all providers that are as good as each other take each role equally often; and the data
   of each segment begins with the provider after the one where that of the last ended, but for one more once all were
   gone round, so that whoever reads a few segments ahead draws on all alike.

The best choice is found for sure among `search.EXACT` providers or fewer; among more, 3 to 5 are as good as the search
got.  What can be placed with rotation 0, nobody away and nothing measured is placed always, for that search is tried
last: a configuration that was checked once does not fail later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from operator import attrgetter
from types import MappingProxyType
from typing import Final, TypeVar

from icnfs.errors import ConfigError, TooFewProvidersError
from icnfs.placement.change import full, no_place
from icnfs.placement.policy import Policy
from icnfs.placement.score import totals
from icnfs.placement.search import Candidate, Task, cheapest
from icnfs.placement.weights import Measure, Weights
from icnfs.providers.facts import ProviderFacts

DEFAULT_POLICY: Final = Policy()
DEFAULT_WEIGHTS: Final = Weights()
_TAKE_NONE: Final = "take none now (`icnfs status` says why); bring them back, or make room there"
NOTHING_MEASURED: Final[Mapping[str, Measure]] = MappingProxyType({})


def place(
    n: int,
    k: int,
    providers: Sequence[ProviderFacts],
    *,
    safe: int,
    rotation: int = 0,
    away: Collection[str] = frozenset(),
    policy: Policy = DEFAULT_POLICY,
    weights: Weights = DEFAULT_WEIGHTS,
    measures: Mapping[str, Measure] = NOTHING_MEASURED,
) -> tuple[str, ...]:
    """The names of `n` distinct providers, by share index.

    2 <= k < safe <= n; `rotation` is any integer, one more for each segment; `measures` is by name of provider.
    Raises `ConfigError` where these providers can never do, with what cannot be met and the smallest change that would
    meet it, and `TooFewProvidersError` where fewer than `k` of the chosen would be present.  Where only some are away
    they are chosen all the same, and their shares are missing for now.
    """
    if not 2 <= k < safe <= n:
        raise ConfigError(f"code {k}-of-{n}, safe {safe}: they must keep 2 <= K < safe <= N")
    usable = [facts for facts in providers if policy.objection(facts) is None]
    field = _Field(usable, *totals(usable, weights, measures), rotation, away, stride=k)
    caps = policy.caps(k)
    chosen = cheapest(Task(n, caps, owners=safe, bonus=field.bonus), field.candidates)
    if chosen is None and (rotation or away or measures):
        plain = _Field(usable, *totals(usable, weights, {}))
        chosen = cheapest(Task(n, caps, owners=safe, bonus=plain.bonus), plain.candidates)
    if chosen is None:
        raise ConfigError(no_place(n, k, safe, providers, policy))
    _check_present(k, chosen, away)
    return field.by_reading(chosen)


def refill(
    holders: Sequence[str | None],
    k: int,
    providers: Sequence[ProviderFacts],
    *,
    safe: int,
    rotation: int = 0,
    away: Collection[str] = frozenset(),
    policy: Policy = DEFAULT_POLICY,
    weights: Weights = DEFAULT_WEIGHTS,
    measures: Mapping[str, Measure] = NOTHING_MEASURED,
) -> tuple[str, ...]:
    """`holders`, by share index, with a provider chosen wherever it says None.

    Who holds a share keeps it, even against the policy or unknown to `providers`; those chosen keep every cap together
    with the kept ones that are known, hold no other share, and are not away.  They belong to as many more owners as can
    be: `safe` distinct ones are reached where the kept ones allow it.  Raises `ConfigError` where `providers` can never
    do, and `TooFewProvidersError` where they could if nobody were away.
    """
    kept = tuple(facts for facts in providers if facts.name in holders)
    free = [facts for facts in providers if facts.name not in holders and policy.objection(facts) is None]
    wanted = sum(holder is None for holder in holders)
    caps = policy.caps(k)
    present = [facts for facts in free if facts.name not in away]
    field = _Field(present, *totals(present, weights, measures), rotation)
    task = Task(wanted, caps, kept, safe, field.bonus)
    chosen = cheapest(task, field.candidates)
    if chosen is None:
        chosen = cheapest(Task(wanted, caps, kept, 0, field.bonus), field.candidates)
    if chosen is None:
        if cheapest(Task(wanted, caps, kept), [Candidate(facts, 0) for facts in free]) is None:
            raise ConfigError(full(wanted, caps, kept, free, providers, policy))
        missing = sorted(facts.name for facts in free if facts.name in away)
        raise TooFewProvidersError(
            f"{_shares(wanted)} must be placed, and {', '.join(missing)}, who may hold some, {_TAKE_NONE}"
        )
    new = iter(field.by_reading(chosen))
    return tuple(next(new) if holder is None else holder for holder in holders)


def _shares(count: int) -> str:
    return "1 share" if count == 1 else f"{count} shares"


def _check_present(k: int, chosen: Collection[ProviderFacts], away: Collection[str]) -> None:
    missing = sorted(facts.name for facts in chosen if facts.name in away)
    if len(chosen) - len(missing) < k:
        raise TooFewProvidersError(f"{k} shares must be stored to be readable, and {', '.join(missing)} {_TAKE_NONE}")


_name = attrgetter("name")
_T = TypeVar("_T")


@dataclass(slots=True)
class _Field:
    """Who may be chosen, with the costs that make the search's least cost the least of promises 3 to 5."""

    providers: Sequence[ProviderFacts]
    holding: Sequence[int]
    reading: Sequence[int]
    rotation: int = 0
    away: Collection[str] = frozenset()
    stride: int = 1

    @property
    def bonus(self) -> int:
        """More than all scores together."""
        return len(self.providers) * max(self.holding, default=0) + 1

    @property
    def candidates(self) -> list[Candidate]:
        """All of them, those of equal cost in turn; one that is away costs more than all owners can save."""
        costs = self.holding
        if self.away:
            absence = self.bonus * (len(self.providers) + 1)
            costs = [
                cost + absence if facts.name in self.away else cost
                for facts, cost in zip(self.providers, self.holding, strict=True)
            ]
        found = [Candidate(facts, cost) for facts, cost in zip(self.providers, costs, strict=True)]
        return self._in_turn(found, costs)

    def by_reading(self, chosen: Collection[ProviderFacts]) -> tuple[str, ...]:
        """The names of `chosen`, those first from which reading is best, equal ones in turn."""
        names = set(map(_name, chosen))
        return tuple(facts.name for facts in self._in_turn(self.providers, self.reading) if facts.name in names)

    def _in_turn(self, items: Sequence[_T], scores: Sequence[int]) -> list[_T]:
        """By score, and each run of equal ones turned by `stride` places for each rotation.

        So many turns as it has items take it through all places, each once, whatever their number and the stride.
        """
        groups: dict[int, list[_T]] = {}
        for item, score in zip(items, scores, strict=True):
            groups.setdefault(score, []).append(item)
        ordered: list[_T] = []
        for score in sorted(groups):
            group = groups[score]
            shared = gcd(self.stride, len(group))
            rounds, steps = divmod(self.rotation, len(group) // shared)
            turn = (steps * self.stride + rounds % shared) % len(group)
            ordered += group[turn:]
            ordered += group[:turn]
        return ordered
