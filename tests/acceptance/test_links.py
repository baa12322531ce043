"""The way over slow lines, short; the figures: `python -m tests.acceptance.links`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.harness import REPO
from tests.netns import missing


@pytest.mark.mount
@pytest.mark.skipif(missing() is not None, reason=f"no slow lines: {missing()}")
def test_volume_works_over_slow_lines(tmp_path: Path) -> None:
    """In a process of its own, which moves into a network namespace."""
    command = [sys.executable, "-m", "tests.acceptance.links", "--short", "--work", str(tmp_path / "work")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all targets kept" in done.stdout
