"""How good a provider is for a share, as a number: 0 for the best, and the same for those that are as good.

Three things are looked at, each as a multiple of the median of all that may be chosen, so that they compare:

    cost      EUR per TB kept for the volume's life:
              life_months * (eur_per_tb_month + reads * eur_per_tb_read) + eur_per_tb_read,
              the last for the one time that everything is read, to leave or to recover
    latency   seconds to the first byte, as measured
    room      1 / free bytes: half the median's room counts as twice the median

The score is the sum over the three of weight times what the provider has above the best one, in thousandths of the
median.  Those within one step of each other (`COST`, `LATENCY`, `ROOM`) count as the same: noise in the measures
neither breaks a tie nor favours anybody.  What is not known counts as the median of what is.

Reading by itself is scored in the same way: eur_per_tb_read with the weight of cost, and latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from icnfs.placement.weights import Measure, Weights
from icnfs.providers.facts import ProviderFacts


@dataclass(frozen=True, slots=True)
class Scale:
    """How one thing is made comparable."""

    step: float
    """Parts of the median within which two values count as the same."""
    least: float
    """No median counts as less, in the thing's own unit: below it differences do not matter."""


COST: Final = Scale(0.05, 1.0)
"""Prices are exact, so their step is small: it lets two that ask almost the same share the work."""
LATENCY: Final = Scale(0.25, 0.02)
ROOM: Final = Scale(0.25, 1e-18)
"""Two providers with more than 10**18 bytes free are as good."""

MOST: Final = 100.0
"""Nothing counts as more than so many medians: a provider without any room, for one."""

UNKNOWN: Final = Measure()


def totals(
    providers: Sequence[ProviderFacts], weights: Weights, measures: Mapping[str, Measure]
) -> tuple[list[int], list[int]]:
    """Beside each of `providers`: its score for holding a share, and that for being read from; both >= 0."""
    months = weights.life_months
    per_read = months * weights.reads + 1
    cost = [months * facts.eur_per_tb_month + per_read * facts.eur_per_tb_read for facts in providers]
    holding = _levels(cost, weights.cost, COST)
    reading = _levels([facts.eur_per_tb_read for facts in providers], weights.cost, COST)
    if measures:
        known = [measures.get(facts.name, UNKNOWN) for facts in providers]
        latency = _levels([measure.latency_s for measure in known], weights.latency, LATENCY)
        inverse = [None if (free := measure.free_bytes) is None else 1 / max(free, 1) for measure in known]
        room = _levels(inverse, weights.room, ROOM)
        holding = [sum(parts) for parts in zip(holding, latency, room, strict=True)]
        reading = [sum(parts) for parts in zip(reading, latency, strict=True)]
    return holding, reading


def _levels(values: Sequence[float | None], weight: float, scale: Scale) -> list[int]:
    """Weight times what each value is above the least one, in thousandths of the median, in steps.

    A level begins at the smallest value that is a step or more above the beginning of the level before: values with
    less than a step between them are on one level unless another value lies just below them.
    """
    known = sorted(value for value in values if value is not None)
    if not known or not weight or known[0] == known[-1]:
        return [0] * len(values)
    median = known[(len(known) - 1) // 2]
    unit = scale.step * max(median, scale.least)
    start = known[0]
    if known[-1] - start < unit:
        return [0] * len(values)
    most = int(MOST / scale.step)
    points = weight * scale.step * 1000
    level_of: dict[float, int] = {}
    beginning, level = start, 0
    for value in known:
        if value - beginning >= unit:
            beginning, level = value, round(points * min(int((value - start) / unit), most))
        level_of[value] = level
    return [level_of[median if value is None else value] for value in values]
