"""Few files, and two of six providers that lose everything; more: `python -m tests.acceptance.loss`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.loss import run


@pytest.mark.mount
@pytest.mark.timeout(240)
def test_two_places_that_are_emptied_under_load_are_filled_again_and_no_read_fails(tmp_path: Path) -> None:
    """How long it takes shows the full form, on a machine that does nothing else."""
    verdict = run(tmp_path, mib=48, gone=False, rate=8e6, seed=5, factor=float("inf"), say=lambda line: None)
    assert not verdict.wrong, "\n".join(verdict.wrong[:20] + verdict.lines)
