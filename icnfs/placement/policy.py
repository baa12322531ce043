"""What the owner of a volume allows, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from icnfs.providers.facts import ProviderFacts


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `most` shares of one segment at providers of which `trait` is the same."""

    trait: str
    """A field of `ProviderFacts`."""
    most: int

    @property
    def word(self) -> str:
        return self.trait.replace("_", " ")

    @property
    def words(self) -> str:
        return PLURALS[self.trait]


PLURALS: Final = {"owner": "owners", "parent_country": "parent countries", "country": "countries", "site": "sites"}
"""Every trait that can be capped, in the order in which caps are looked at."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The `[policy]` table of icnfs.toml(5); the default allows everything that the code itself allows."""

    allowed_countries: frozenset[str] = frozenset()
    """Countries in which shares may lie; empty for all."""
    excluded_parents: frozenset[str] = frozenset()
    """Countries of ultimate parents whose providers get no share."""
    max_per_owner: int | None = None
    """Most shares of one segment per owner, >= 1; never more than k - 1, whatever is asked for."""
    max_per_parent_country: int | None = None
    max_per_country: int | None = None
    max_per_site: int | None = None

    def objection(self, facts: ProviderFacts) -> str | None:
        """Why `facts` gets no share at all, or None."""
        if self.allowed_countries and facts.country not in self.allowed_countries:
            return f"{facts.name} is in {facts.country}, which is not allowed"
        if facts.parent_country in self.excluded_parents:
            return f"{facts.name}'s parent is in {facts.parent_country}, which is excluded"
        if facts.drain:
            return f"{facts.name} is being drained"
        return None

    def caps(self, k: int) -> tuple[Cap, ...]:
        """Every cap on the shares of a segment that `k` of them rebuild; that per owner is first and always there."""
        per_owner = k - 1 if self.max_per_owner is None else min(k - 1, self.max_per_owner)
        found = [Cap("owner", per_owner)]
        if self.max_per_parent_country is not None:
            found.append(Cap("parent_country", self.max_per_parent_country))
        if self.max_per_country is not None:
            found.append(Cap("country", self.max_per_country))
        if self.max_per_site is not None:
            found.append(Cap("site", self.max_per_site))
        return tuple(found)
