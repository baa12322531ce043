"""Whether a segment's shares lie where the policy allows, and which must move where they do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from icnfs.placement.policy import Policy
from icnfs.placement.search import Candidate, Task, cheapest
from icnfs.providers.facts import ProviderFacts


@dataclass(frozen=True, slots=True)
class Breach:
    """One rule that a segment breaks."""

    rule: str
    """jurisdiction, safe, unknown, country, parent, drain, owner, parent-country, per-country or site."""
    shares: tuple[int, ...]
    """The indexes of those concerned."""
    text: str
    """One line that names their providers."""


def judge(
    holders: Sequence[tuple[str, bool]], k: int, facts: Mapping[str, ProviderFacts], *, safe: int, policy: Policy
) -> tuple[Breach, ...]:
    """Every rule that a segment breaks, the gravest first; () where it lies as it should.

    `holders` has by share index the provider's name and whether the share is stored there; only stored ones count.
    """
    stored = [index for index, (_, there) in enumerate(holders) if there]
    names = {index: holders[index][0] for index in stored}
    known = {index: facts[name] for index, name in names.items() if name in facts}
    found = list(_jurisdictions(known, k, policy))
    owners = len({one.owner for one in known.values()})
    if owners < safe:
        distinct = "1 owner holds" if owners == 1 else f"{owners} distinct owners hold"
        found.append(Breach("safe", tuple(stored), f"{distinct} its shares and safe = {safe}"))
    for index in stored:
        if index not in known:
            found.append(Breach("unknown", (index,), f"{names[index]} is not in the configuration"))
    found += _objections(known, policy)
    found += _over_caps(known, k, policy)
    return tuple(found)


def misplaced(
    holders: Sequence[tuple[str, bool]], k: int, facts: Mapping[str, ProviderFacts], policy: Policy
) -> tuple[int, ...]:
    """The fewest stored shares, by index, without which the others break no rule but perhaps safe.

    Those at providers that are unknown or objected to, and as many as exceed caps: of these, those move that leave the
    most owners, the later ones among equals.  For more than `search.EXACT` shares it may be more than the fewest.
    """
    stored = [index for index, (_, there) in enumerate(holders) if there]
    fine = {}
    for index in stored:
        one = facts.get(holders[index][0])
        if one is not None and policy.objection(one) is None:
            fine[one.name] = index
    candidates = [Candidate(facts[name], 0) for name in fine]
    caps = policy.caps(k)
    for count in range(len(candidates), 0, -1):
        staying = cheapest(Task(count, caps, bonus=1), candidates)
        if staying is not None:
            kept = {fine[one.name] for one in staying}
            return tuple(index for index in stored if index not in kept)
    return tuple(stored)


def _jurisdictions(known: Mapping[int, ProviderFacts], k: int, policy: Policy) -> Iterator[Breach]:
    """Owners and excluded jurisdictions that could rebuild the segment from what they hold."""
    for owner, shares in _grouped(known, "owner").items():
        if len(shares) >= k:
            text = f"{owner} holds {len(shares)} shares ({_names(shares, known)}), and {k} rebuild the segment"
            yield Breach("jurisdiction", shares, text)
    reached: defaultdict[str, list[int]] = defaultdict(list)
    for index, one in known.items():
        for country in {one.country, one.parent_country}:
            beyond = country == one.country and policy.allowed_countries and country not in policy.allowed_countries
            parent = country == one.parent_country and country in policy.excluded_parents
            if beyond or parent:
                reached[country].append(index)
    for country, indexes in sorted(reached.items()):
        if len(indexes) >= k:
            text = f"{country} reaches {len(indexes)} shares ({_names(indexes, known)}), and {k} rebuild the segment"
            yield Breach("jurisdiction", tuple(indexes), text)


def _objections(known: Mapping[int, ProviderFacts], policy: Policy) -> Iterator[Breach]:
    """What the policy has against single providers: each of its reasons by itself."""
    for index, one in known.items():
        if policy.allowed_countries and one.country not in policy.allowed_countries:
            yield Breach("country", (index,), f"{one.name} is in {one.country}, which is not allowed")
        if one.parent_country in policy.excluded_parents:
            yield Breach("parent", (index,), f"{one.name}'s parent is in {one.parent_country}, which is excluded")
        if one.drain:
            yield Breach("drain", (index,), f"{one.name} is being drained")


RULES: Final = {"owner": "owner", "parent_country": "parent-country", "country": "per-country", "site": "site"}
"""The trait that is capped -> the rule's word."""


def _over_caps(known: Mapping[int, ProviderFacts], k: int, policy: Policy) -> Iterator[Breach]:
    for cap in policy.caps(k):
        for value, shares in _grouped(known, cap.trait).items():
            if len(shares) > cap.most:
                text = f"{cap.word} {value} has {len(shares)} shares ({_names(shares, known)}), at most {cap.most}"
                yield Breach(RULES[cap.trait], shares, text)


def _grouped(known: Mapping[int, ProviderFacts], trait: str) -> dict[str, tuple[int, ...]]:
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, one in known.items():
        groups[getattr(one, trait)].append(index)
    return {value: tuple(shares) for value, shares in sorted(groups.items())}


def _names(shares: Sequence[int], known: Mapping[int, ProviderFacts]) -> str:
    return ", ".join(known[index].name for index in shares)
