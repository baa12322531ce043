from __future__ import annotations

from pathlib import Path

import trio

from icnfs.limits import MIB
from tests.bench.aged import SLICE, age


def test_a_state_ages_and_its_file_stays_near_what_it_holds(tmp_path: Path) -> None:
    """What passed through many times is used again: the file does not grow with it."""
    speeds = trio.run(age, tmp_path / "state", 2 * SLICE, 8)
    assert all(min(*speed.clock, *speed.processor) > 0 for pair in speeds.values() for speed in pair)
    assert (tmp_path / "state" / "data" / "data.mdb").stat().st_size < 4 * SLICE + 16 * MIB
