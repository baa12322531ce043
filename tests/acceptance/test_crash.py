"""SIGKILL of front and transfer: a prefix, at most a second short, with everything fsynced, and no repair by hand.

The 200 kills of a release: `python -m tests.acceptance.crash --kills 200 --seed 1`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.crash import Run

KILLS = 7


@pytest.mark.mount
@pytest.mark.timeout(300)
def test_every_kill_lands_on_a_prefix_that_holds_what_was_fsynced(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=20)
    try:
        run.start()
        for _ in range(KILLS):
            run.step()
        run.check_remount()
        run.check_recovery()
    finally:
        run.close()
    assert run.recoveries >= 2
