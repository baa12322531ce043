"""The simulation keeps every promise, replays exactly, and catches a build that is broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from icnfs.format.segment import SegmentInfo
from icnfs.volume import repair
from icnfs.volume.network import Network
from tests.simulation.run import run_seed

REPO = Path(__file__).parents[2]
SEEDS = 20
PARTS = 6
REPLAYED = range(500, 504)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_is_kept(part: int) -> None:
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        result = run_seed(seed)
        assert not result.broken, f"python -m tests.simulation --replay {seed} --verbose"


def test_a_seed_replays_in_another_process() -> None:
    code = "from tests.simulation.run import run_seed\nfor seed in range(500, 504): print(run_seed(seed).digest)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == [run_seed(seed).digest for seed in REPLAYED]


async def _restores_nothing(self: repair.Repair, segment: SegmentInfo, to: dict[int, str]) -> SegmentInfo:
    return repair._with(segment, to)


def test_a_repair_that_stores_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair.Repair, "_restore", _restores_nothing)
    assert any(run_seed(seed).broken for seed in range(100))


def test_a_head_that_too_few_hold_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "durable", property(lambda _: 1))
    assert any(run_seed(seed).broken for seed in range(100))
