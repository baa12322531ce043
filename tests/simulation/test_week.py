"""A week of overwriting keeps the providers below 1.3 times what lives, and collection below 0.3 of what is written."""

from __future__ import annotations

import pytest

from icnfs.limits import MIB
from tests.simulation.week import simulate


@pytest.mark.parametrize(("workload", "mib", "segment_mib"), [("zipf", 192, 3), ("kept", 96, 2)])
def test_a_week_stays_inside_the_bounds(workload: str, mib: int, segment_mib: int) -> None:
    """In a small volume, of which what waits out its grace is a larger part than of a real one."""
    result = simulate(workload, mib=mib, days=7, segment=segment_mib * MIB)
    assert result.recovered
    assert result.stored < 1.3, "without compaction the first one comes to 1.31"
    assert result.stored_with_grace < 1.35
    assert result.moved < 0.3
    assert result.compacted or workload != "zipf"
