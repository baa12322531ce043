"""The search for the cheapest choice of providers within the caps: exact where it is small, bounded where it is not.

A choice costs the sum of what its providers cost, less `bonus` for every owner that had no share before.  First each
provider is taken in the order of its cost if it still fits.  That is the best choice where nobody had to be passed by,
and wherever its cost equals a lower bound: the dearest of the least costs that each cap allows by itself.  Otherwise a
branch and bound takes or passes by one provider after the other.

With `EXACT` candidates or fewer the result is the best there is.  With more, it may be given up: without any choice
after `STEPS` looks, with the best so far after `BETTER`.  Given the same arguments it always does the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from icnfs.placement.policy import Cap
from icnfs.providers.facts import ProviderFacts

EXACT: Final = 10
STEPS: Final = 500
BETTER: Final = 100
"""Looks at a candidate: see the module.

Measured with `place`, measures included: 36 us for 6 of 6 providers, 98 us for 6 of 64, 143 us for 64 of 64; with
every kind of cap 0.06 to 0.36 ms for 6 of 20.
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A provider that may be chosen, and what choosing it costs, an integer >= 0."""

    facts: ProviderFacts
    cost: int


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be chosen."""

    wanted: int
    """Providers to choose, >= 0."""
    caps: tuple[Cap, ...]
    """That per owner first."""
    kept: tuple[ProviderFacts, ...] = ()
    """Who holds shares already: they count for the caps, and break them where they do."""
    owners: int = 0
    """Distinct owners needed, the kept ones included."""
    bonus: int = 0
    """What a new owner saves."""


def cheapest(task: Task, candidates: Sequence[Candidate]) -> list[ProviderFacts] | None:
    """The choice of least cost, of the earlier candidates among equals; None where there is none or none was found."""
    if len(candidates) < task.wanted:
        return None
    return _Search(task, _by_merit(task, candidates)).run()


def _by_merit(task: Task, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The cheapest first, where only the first of an owner saves the bonus: earlier ones first among equals."""
    seen = {facts.owner for facts in task.kept}
    merits: list[tuple[int, int, Candidate]] = []
    for candidate in sorted(candidates, key=_cost):
        owner = candidate.facts.owner
        merits.append((candidate.cost if owner in seen else candidate.cost - task.bonus, len(merits), candidate))
        seen.add(owner)
    merits.sort()
    return [candidate for _, _, candidate in merits]


_cost = attrgetter("cost")


@dataclass(slots=True)
class _Search:
    """One search over `order`, the candidates by merit."""

    task: Task
    order: list[Candidate]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    """Beside `order`: what the candidate is for each of the caps; the first is its owner."""
    room: list[dict[str, int]] = field(default_factory=list)
    """Beside the caps: shares that may still be placed, by what is capped."""
    owners: Counter[str] = field(default_factory=Counter)
    """Shares by owner, so far."""
    chosen: list[int] = field(default_factory=list)
    cost: int = 0
    by_cost: list[int] = field(default_factory=list)
    best: list[int] | None = None
    best_cost: int = 0
    steps: int = 0

    def run(self) -> list[ProviderFacts] | None:
        caps = self.task.caps
        traits = attrgetter("name", *(cap.trait for cap in caps))
        self.rows = [traits(candidate.facts)[1:] for candidate in self.order]
        self.room = [{row[i]: cap.most for row in self.rows} for i, cap in enumerate(caps)]
        for facts in self.task.kept:
            self.owners[facts.owner] += 1
            for room, value in zip(self.room, traits(facts)[1:], strict=True):
                if value in room:
                    room[value] -= 1
        if not self._greedy():
            self.by_cost = sorted(range(len(self.order)), key=lambda i: self.order[i].cost)
            self._branch(0)
        return None if self.best is None else [self.order[i].facts for i in self.best]

    def _greedy(self) -> bool:
        """Take whoever fits; True where nothing can be better.  Leaves the choice empty and the result in `best`."""
        wanted = self.task.wanted
        for position in range(len(self.order)):
            if len(self.chosen) == wanted:
                break
            if self._fits(position):
                self._take(position)
        if len(self.chosen) == wanted and len(self.owners) >= self.task.owners:
            self.best, self.best_cost = self.chosen.copy(), self.cost
        done = self.best is not None and (wanted == 0 or self.chosen[-1] == wanted - 1)
        if not done:
            while self.chosen:
                self._give_back()
        return done

    def _branch(self, position: int) -> None:
        """Improve on `best` with what can be had from `position` on; leaves the choice as it was."""
        if len(self.chosen) == self.task.wanted:
            better = self.best is None or self.cost < self.best_cost
            if better and len(self.owners) >= self.task.owners:
                self.best, self.best_cost = self.chosen.copy(), self.cost
            return
        if self._spent():
            return
        self.steps += 1
        bound = self._bound(position)
        if bound is None or (self.best is not None and bound >= self.best_cost):
            return
        if self._fits(position):
            self._take(position)
            self._branch(position + 1)
            self._give_back()
        self._branch(position + 1)

    def _spent(self) -> bool:
        return len(self.order) > EXACT and self.steps >= (STEPS if self.best is None else BETTER)

    def _bound(self, position: int) -> int | None:
        """What the choice will cost at least, completed from `position` on; None where it cannot be completed."""
        places = self.task.wanted - len(self.chosen)
        rest = [i for i in self.by_cost if i >= position and self._fits(i)]
        new = len({self.rows[i][0] for i in rest} - self.owners.keys())
        if len(rest) < places or len(self.owners) + min(new, places) < self.task.owners:
            return None
        least = self._owner_bound(rest, places)
        if least is None:
            return None
        saved = self.task.bonus * min(new, places)
        for cap in range(1, len(self.room)):
            cost = self._cap_bound(cap, rest, places)
            if cost is None:
                return None
            least = max(least, cost - saved)
        return self.cost + least

    def _owner_bound(self, rest: list[int], places: int) -> int | None:
        """The least cost of `places` of `rest` with no cap but that per owner: exact, the bonus included."""
        room = self.room[0].copy()
        seen = set(self.owners)
        costs = []
        for i in rest:
            owner = self.rows[i][0]
            if room[owner] > 0:
                room[owner] -= 1
                costs.append(self.order[i].cost if owner in seen else self.order[i].cost - self.task.bonus)
                seen.add(owner)
        if len(costs) < places:
            return None
        costs.sort()
        return sum(costs[:places])

    def _cap_bound(self, cap: int, rest: list[int], places: int) -> int | None:
        """The least cost of `places` of `rest` with no cap but one, without the bonus."""
        room = self.room[cap].copy()
        cost = 0
        for i in rest:
            if not places:
                break
            value = self.rows[i][cap]
            if room[value] > 0:
                room[value] -= 1
                cost += self.order[i].cost
                places -= 1
        return None if places else cost

    def _fits(self, position: int) -> bool:
        for room, value in zip(self.room, self.rows[position], strict=True):  # noqa: SIM110 - three times as fast
            if room[value] <= 0:
                return False
        return True

    def _take(self, position: int) -> None:
        row = self.rows[position]
        self.chosen.append(position)
        self.cost += self.order[position].cost
        if not self.owners[row[0]]:
            self.cost -= self.task.bonus
        self.owners[row[0]] += 1
        for room, value in zip(self.room, row, strict=True):
            room[value] -= 1

    def _give_back(self) -> None:
        position = self.chosen.pop()
        row = self.rows[position]
        self.cost -= self.order[position].cost
        self.owners[row[0]] -= 1
        if not self.owners[row[0]]:
            del self.owners[row[0]]
            self.cost += self.task.bonus
        for room, value in zip(self.room, row, strict=True):
            room[value] += 1
