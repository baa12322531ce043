"""How many runs a published state is made of: what the next run takes in, and what must be remembered for that.

Runs are merged as they grow: the next run reaches back over the runs before it while they are small beside it, so of
runs below ABSORB_MAX there are never more than a dozen or two; and once what follows the checkpoint weighs half of it,
the next large run is a checkpoint, and once it weighs as much, the next run of any size.  So publishing costs what
changed, times a small constant, and a small change does not pay for what a large one left behind.  Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from icnfs.format.head import RUNS_MAX, RunInfo
from icnfs.limits import MIB

ABSORB_RATIO: Final = 2
"""A run is taken into the next when it is at most so many times as large."""

ABSORB_MAX: Final = 32 * MIB
"""Bytes that one publish rewrites at most, a checkpoint apart."""

LARGE_SHARE: Final = 64
"""A publish is large when what is new is at least this part of the checkpoint."""


def reach(runs: Sequence[RunInfo], fresh: int, floor: int) -> int:
    """From which generation on (exclusive) the next run holds changes, when `fresh` bytes are new; 0: a checkpoint.

    Changes of generations up to `floor` are not noted here: a run that holds such is not taken in, for what only it
    holds would be lost.  So it is with all runs that a recovery loaded.
    """
    if not runs or len(runs) >= RUNS_MAX:
        return 0
    total = fresh
    kept = len(runs)
    while kept and _is_taken_in(runs[kept - 1], total, floor):
        kept -= 1
        total += runs[kept].size
    whole = runs[0].size
    most = whole // 2 if fresh >= whole // LARGE_SHARE else whole
    if kept == 0 or total + sum(run.size for run in runs[1:kept]) > most:
        return 0
    return runs[kept - 1].upto


def _is_taken_in(run: RunInfo, total: int, floor: int) -> bool:
    noted = run.is_checkpoint or run.since >= floor
    return noted and run.size <= ABSORB_RATIO * total and total + run.size <= ABSORB_MAX


def remembered(runs: Sequence[RunInfo]) -> int:
    """Changes of generations up to this need not be noted any more: no later run reaches back so far."""
    total = 0
    since = runs[-1].upto
    for run in reversed(runs):
        total += run.size
        if run.is_checkpoint or total > ABSORB_MAX:
            break
        since = run.since
    return since


def join(runs: Sequence[RunInfo], fresh: RunInfo) -> tuple[RunInfo, ...]:
    """The runs of a state in which `fresh` replaces all that it reaches back over."""
    return (*(run for run in runs if run.upto <= fresh.since), fresh)
