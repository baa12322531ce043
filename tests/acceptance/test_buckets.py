"""A part of a real tree in six buckets; the whole: `python -m tests.acceptance.buckets`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.buckets import check


@pytest.mark.mount
def test_tree_comes_back_from_six_buckets_whose_shares_another_client_lists(tmp_path: Path) -> None:
    lines: list[str] = []
    check(tmp_path, full=False, say=lines.append)
    assert len(lines) == 5
