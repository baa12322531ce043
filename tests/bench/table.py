"""What was measured: for each figure a unit, and for each column (a file system, a commit) the values of all
repetitions.  Printed as medians, and as ratios to a reference: above 1 is better than it, whichever way the unit goes.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field


@dataclass
class Table:
    units: dict[str, str] = field(default_factory=dict)
    """Of each figure: "s" where lower is better."""
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """figure -> column -> one value for each repetition."""

    def add(self, figure: str, unit: str, column: str, value: float) -> None:
        self.units[figure] = unit
        self.values.setdefault(figure, {}).setdefault(column, []).append(value)

    def median(self, figure: str, column: str) -> float | None:
        """None where nothing was measured."""
        found = self.values.get(figure, {}).get(column)
        return statistics.median(found) if found else None

    def ratio(self, figure: str, column: str, reference: str) -> float | None:
        """How many times better than `reference`: the median of the ratios of each repetition."""
        pairs = list(zip(*(self.values[figure].get(name, []) for name in (column, reference)), strict=False))
        if not pairs:
            return None
        better = statistics.median(one / two for one, two in pairs)
        return 1 / better if self.units[figure] == "s" else better

    def columns(self) -> list[str]:
        """In the order in which they came up."""
        return list(dict.fromkeys(column for columns in self.values.values() for column in columns))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Table:
        found = json.loads(text)
        return cls(found["units"], found["values"])

    def markdown(self, columns: Sequence[str], ratios: Sequence[tuple[str, str]] = ()) -> str:
        """Medians of `columns`, then the ratio of each (column, reference) in `ratios`."""
        heads = ["figure", "unit", *columns, *(f"{one} : {two}" for one, two in ratios)]
        lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
        for figure, unit in self.units.items():
            cells = [_shown(self.median(figure, column)) for column in columns]
            cells += [_shown(self.ratio(figure, one, two), digits=2) for one, two in ratios]
            lines.append(f"| {figure} | {unit} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _shown(value: float | None, digits: int | None = None) -> str:
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if value >= 1000 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
