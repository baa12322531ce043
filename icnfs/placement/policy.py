"""What the owner of a volume allows, as data."""

from __future__ import annotations

from dataclasses import dataclass

from icnfs.providers.facts import ProviderFacts


@dataclass(frozen=True, slots=True)
class Policy:
    """The `[policy]` table of icnfs.toml(5); the default allows everything that the code itself allows."""

    allowed_countries: frozenset[str] = frozenset()
    """Countries in which shares may lie; empty for all."""
    excluded_parents: frozenset[str] = frozenset()
    """Countries of ultimate parents whose providers get no share."""
    max_per_owner: int | None = None
    """Most shares of one segment per owner, >= 1; never more than k - 1, whatever is asked for."""
    max_per_country: int | None = None
    max_per_site: int | None = None

    def objection(self, facts: ProviderFacts) -> str | None:
        """Why `facts` gets no share at all, or None."""
        if self.allowed_countries and facts.country not in self.allowed_countries:
            return f"{facts.name} is in {facts.country}, which is not allowed"
        if facts.parent_country in self.excluded_parents:
            return f"{facts.name}'s parent is in {facts.parent_country}, which is excluded"
        return None
