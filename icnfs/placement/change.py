"""Why no choice of providers exists, and the smallest change with which one does, found by trying.

A change to the policy is looked for first: one cap raised, one provider drained no longer, `safe` lowered, one more
country allowed or one parent's country excluded no longer; then two of them together.  Beside it, or where none helps,
providers to add; and where both are needed, both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from icnfs.placement.policy import Cap, Policy
from icnfs.placement.search import Candidate, Task, cheapest
from icnfs.providers.facts import ProviderFacts

NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class Situation:
    """All that decides whether shares can be placed."""

    n: int
    k: int
    safe: int
    providers: tuple[ProviderFacts, ...]
    policy: Policy

    @property
    def usable(self) -> list[ProviderFacts]:
        return [facts for facts in self.providers if self.policy.objection(facts) is None]

    def solvable(self) -> bool:
        """Whether `place` finds a choice with rotation 0 and equal scores."""
        task = Task(self.n, self.policy.caps(self.k), owners=self.safe, bonus=1)
        return cheapest(task, [Candidate(facts, 0) for facts in self.usable]) is not None


Edit = Callable[[Situation], Situation]


@dataclass(frozen=True, slots=True)
class Change:
    """One way to change a situation, or several together."""

    edits: tuple[Edit, ...]
    words: str
    """What is changed, in words of the TOML."""
    size: int
    """How far numbers are moved and how many providers are added; 1 for a yes or no."""

    def applied(self, now: Situation) -> Situation:
        for edit in self.edits:
            now = edit(now)
        return now

    def __add__(self, other: Change) -> Change:
        return Change(self.edits + other.edits, f"{self.words} and {other.words}", self.size + other.size)


def no_place(n: int, k: int, safe: int, providers: Sequence[ProviderFacts], policy: Policy) -> str:
    """One line for providers of which `n` can never be chosen: what cannot be met, and what would meet it."""
    now = Situation(n, k, safe, tuple(providers), policy)
    changes = ", or ".join(change.words for change in smallest(now))
    return f"{_unmet(now)}{_excluded(providers, policy)}; smallest change: {changes}"


def full(
    wanted: int,
    caps: Sequence[Cap],
    kept: Sequence[ProviderFacts],
    free: Sequence[ProviderFacts],
    providers: Sequence[ProviderFacts],
    policy: Policy,
) -> str:
    """One line for `wanted` shares that no provider of `free` may take beside those that `kept` hold."""
    what = "1 share needs another provider" if wanted == 1 else f"{wanted} shares need other providers"
    excluded = _excluded([facts for facts in providers if facts not in kept], policy)
    if len(free) < wanted:
        return f"{what} and there {_are(len(free))}{excluded}; add providers"
    for cap in caps:
        places = _places(cap, free, kept)
        if places < wanted:
            return (
                f"{what} and at most {cap.most} per {cap.word} leaves {places}{excluded}; "
                f"add providers of other {cap.words} or raise max_per_{cap.trait}"
            )
    return f"{what} and {_together(caps)} leave none{excluded}; add providers or raise one of them"


def _unmet(now: Situation) -> str:
    """The constraint that cannot be met: the first that fails by itself, or all caps together."""
    usable = now.usable
    if len(usable) < now.n:
        return f"{now.n} shares need {now.n} providers and there {_are(len(usable))}"
    caps = now.policy.caps(now.k)
    for cap in caps:
        places = _places(cap, usable, ())
        if places < now.n:
            return f"at most {cap.most} per {cap.word} leaves {places} places for {now.n} shares"
    owners = len({facts.owner for facts in usable})
    if owners < now.safe:
        return f"safe = {now.safe} distinct owners and there {_are(owners)}"
    return f"{_together(caps)} leave no choice of {now.n} providers of {now.safe} owners"


def _places(cap: Cap, offered: Sequence[ProviderFacts], kept: Sequence[ProviderFacts]) -> int:
    held = Counter(getattr(facts, cap.trait) for facts in kept)
    counts = Counter(getattr(facts, cap.trait) for facts in offered)
    return sum(min(count, max(0, cap.most - held[value])) for value, count in counts.items())


def _together(caps: Sequence[Cap]) -> str:
    return " and ".join(f"at most {cap.most} per {cap.word}" for cap in caps)


def _excluded(providers: Sequence[ProviderFacts], policy: Policy) -> str:
    """In brackets, what the policy has against `providers`: the first few by name."""
    objections = [reason for reason in map(policy.objection, providers) if reason is not None]
    if len(objections) > NAMED:
        objections[NAMED:] = [f"and {len(objections) - NAMED} others"]
    return f" ({'; '.join(objections)})" if objections else ""


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


# --- changes ----------------------------------------------------------------------------------------------------------

Ladder = Sequence[Change]
"""Changes of one rule, each of which allows all that those before it allow."""


def smallest(now: Situation) -> list[Change]:
    """The smallest change of policy and the fewest providers to add, each by itself enough; where there is neither, the
    smallest that does both.  Never empty.
    """
    found = [change for change in (_of_policy(now), _of_providers(now)) if change is not None]
    return found or [_of_both(now)]


def _of_policy(now: Situation) -> Change | None:
    """The smallest change of one rule that is enough, or else of two."""
    ladders = [ladder for ladder in _ladders(now) if ladder]
    single = [change for ladder in ladders if (change := _lowest(now, ladder)) is not None]
    if single:
        return min(single, key=_size)
    pairs: list[Change] = []
    for first, second in combinations(ladders, 2):
        if not (first[-1] + second[-1]).applied(now).solvable():
            continue
        for change in first:
            change_too = _lowest(now, [change + other for other in second])
            if change_too is not None:
                pairs.append(change_too)
    return min(pairs, key=_size, default=None)


def _lowest(now: Situation, ladder: Ladder) -> Change | None:
    """The first of `ladder` that makes it solvable."""
    if not ladder or not ladder[-1].applied(now).solvable():
        return None
    return ladder[bisect_left(ladder, True, 0, len(ladder) - 1, key=lambda change: change.applied(now).solvable())]


def _size(change: Change) -> int:
    return change.size


def _ladders(now: Situation) -> Iterator[Ladder]:
    """Every way to loosen one rule, the least grave first."""
    policy = now.policy
    for facts in now.providers:
        if facts.drain:
            yield [Change((_undrained(facts.name),), f"no longer drain {facts.name}", 1)]
    for cap in policy.caps(now.k):
        highest = now.k - 1 if cap.trait == "owner" else now.n
        key = f"max_per_{cap.trait}"
        raised = range(cap.most + 1, highest + 1)
        yield [Change((_with_policy(**{key: most}),), f"{key} = {most}", most - cap.most) for most in raised]
    lower = range(now.safe - 1, now.k, -1)
    yield [Change((_with_safe(safe),), f"safe = {safe}", now.safe - safe) for safe in lower]
    if policy.allowed_countries:
        for country in sorted({facts.country for facts in now.providers} - policy.allowed_countries):
            yield [Change((_allowing(country),), f"{country} in allowed_countries", 1)]
    for parent in sorted(policy.excluded_parents & {facts.parent_country for facts in now.providers}):
        yield [Change((_including(parent),), f"{parent} no longer in excluded_parents", 1)]


def _undrained(name: str) -> Edit:
    return lambda now: replace(
        now, providers=tuple(replace(one, drain=False) if one.name == name else one for one in now.providers)
    )


def _with_policy(**changes: Any) -> Edit:
    return lambda now: replace(now, policy=replace(now.policy, **changes))


def _with_safe(safe: int) -> Edit:
    return lambda now: replace(now, safe=safe)


def _allowing(country: str) -> Edit:
    return lambda now: replace(
        now, policy=replace(now.policy, allowed_countries=now.policy.allowed_countries | {country})
    )


def _including(parent: str) -> Edit:
    return lambda now: replace(now, policy=replace(now.policy, excluded_parents=now.policy.excluded_parents - {parent}))


# --- providers to add -------------------------------------------------------------------------------------------------

NEWS: Final = ((), ("country",), ("parent_country",), ("country", "parent_country"))
"""What may have to be new of providers that are added, besides their owners and sites, which always are."""


def _of_providers(now: Situation) -> Change | None:
    """The fewest providers that make it solvable, with as little new of them as can be."""
    found = [change for news in NEWS if (change := _lowest(now, _additions(now, news))) is not None]
    return min(found, key=_size, default=None)


def _of_both(now: Situation) -> Change:
    """The smallest change of one rule after which adding providers is enough; it always is where nothing is capped."""
    found = []
    for ladder in _ladders(now):
        for change in ladder:
            added = _of_providers(change.applied(now))
            if added is not None:
                found.append(change + added)
                break
    if not found:
        capped = now.policy.caps(now.k)[1:]
        words = " and ".join(f"no max_per_{cap.trait}" for cap in capped)
        uncapped = Change((_with_policy(**{f"max_per_{cap.trait}": None for cap in capped}),), words, now.n)
        added = _of_providers(uncapped.applied(now))
        assert added is not None, "n providers of new owners can be chosen where only owners are capped"
        found.append(uncapped + added)
    return min(found, key=_size)


def _additions(now: Situation, news: tuple[str, ...]) -> Ladder:
    """1 to n providers of new owners at new sites; fewer where the policy allows no more countries that are new."""
    added: list[ProviderFacts] = []
    ladder: list[Change] = []
    for number in range(1, now.n + 1):
        others = [*now.usable, *added]
        country = _country("country" in news, others, now.policy, number)
        parent = _parent("parent_country" in news, others, number)
        if country is None:
            break
        added.append(ProviderFacts(f"new {number}", "", f"new owner {number}", parent, country, f"new site {number}"))
        ladder.append(Change((_with_providers(tuple(added)),), _describe(added, now.policy, news), number))
    return ladder


def _with_providers(added: tuple[ProviderFacts, ...]) -> Edit:
    return lambda now: replace(now, providers=now.providers + added)


def _country(new: bool, others: Sequence[ProviderFacts], policy: Policy, number: int) -> str | None:
    """Where one more provider is to be: in a new country, or in that with the fewest of `others`."""
    counts = Counter(facts.country for facts in others)
    if new and policy.allowed_countries:
        return min(policy.allowed_countries - counts.keys(), default=None)
    if new:
        return f"new country {number}"
    return _rarest(counts, policy.allowed_countries)


def _parent(new: bool, others: Sequence[ProviderFacts], number: int) -> str:
    return f"new parent {number}" if new else _rarest(Counter(facts.parent_country for facts in others), frozenset())


def _rarest(counts: Counter[str], allowed: frozenset[str]) -> str:
    return min(counts or allowed or {"any country"}, key=lambda value: (counts[value], value))


def _describe(added: Sequence[ProviderFacts], policy: Policy, news: tuple[str, ...]) -> str:
    """What to add, and, where it matters, where."""
    one = len(added) == 1
    words = ["1 more provider of another owner" if one else f"{len(added)} more providers of other owners"]
    more = "1 more country" if one else f"{len(added)} more countries"
    countries = ", ".join(sorted({facts.country for facts in added}))
    if "country" in news:
        words.append(f"in {more} ({countries})" if policy.allowed_countries else f"in {more}")
    elif policy.max_per_country is not None or policy.allowed_countries:
        words.append(f"in {countries}")
    if "parent_country" in news:
        words.append(f"with parents in {more}")
    elif policy.max_per_parent_country is not None:
        words.append(f"with parents in {', '.join(sorted({facts.parent_country for facts in added}))}")
    if policy.max_per_site is not None:
        words.append("at another site" if one else "at other sites")
    return " ".join(words)
