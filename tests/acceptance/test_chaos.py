"""Some seconds of harmed providers; the ten minutes: `python -m tests.acceptance.chaos --minutes 10 --seed 1`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.chaos import Size, run
from tests.acceptance.load import MIB


@pytest.mark.mount
@pytest.mark.timeout(240)
def test_no_read_fails_and_no_write_is_lost_while_providers_are_harmed(tmp_path: Path) -> None:
    size = Size(12.0, cold_files=12, cold_size=2 * MIB, harm=(1.0, 4.0))
    verdict = run(tmp_path, seed=20, size=size, kind="plain", say=lambda line: None)
    assert not verdict.wrong, "\n".join(verdict.wrong[:20] + verdict.lines)
