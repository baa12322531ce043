"""A drain of few files under load; more: `python -m tests.acceptance.drain`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.drain import breaches, run


@pytest.mark.mount
@pytest.mark.timeout(240)
def test_drain_under_load_keeps_the_policy_and_leaves_nothing(tmp_path: Path) -> None:
    verdict = run(tmp_path, seed=20, cold_files=24, rate=6e6, kind="plain", say=lambda line: None)
    assert not verdict.wrong, "\n".join(verdict.wrong[:20] + verdict.lines)


def test_checker_knows_a_breach() -> None:
    """Two shares with one owner, two on their way; two sites of one country are allowed, three are not."""
    six = ("amsterdam", "helsinki", "lyon", "munich", "paris", "vilnius")
    assert breaches([{"provider": name, "stored": True} for name in six]) == []
    assert breaches([{"provider": name, "stored": True} for name in ("lyon", *six)])
    assert breaches([{"provider": name, "stored": True} for name in six[:5]]) == []
    assert breaches([{"provider": name, "stored": True} for name in six[:4]]) == ["at 4 owners, not 6"]
