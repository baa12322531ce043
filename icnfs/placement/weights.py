"""What a choice of providers weighs: how much each quality counts, and what was measured of each provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Weights:
    """The `[placement]` table of icnfs.toml(5); a weight of 0 leaves its quality out."""

    cost: float = 1.0
    latency: float = 1.0
    room: float = 1.0
    life_months: float = 36.0
    """How long a byte is expected to be stored."""
    reads: float = 0.1
    """Bytes read from providers in a month, as a part of the bytes that are stored."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What was measured of one provider; None where that is not known."""

    latency_s: float | None = None
    """Seconds of a small read."""
    free_bytes: int | None = None
