"""Damaged shares: every provider in turn, the three kinds of damage spread over them.

All eighteen: `python -m tests.acceptance.corruption`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from tests.acceptance.corruption import DAMAGES, Published, check, publish
from tests.acceptance.harness import PROVIDERS


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    origin = publish(tmp_path_factory.mktemp("origin"))
    with origin.volume:
        yield origin


@pytest.mark.mount
@pytest.mark.parametrize(("provider", "how"), list(zip(PROVIDERS, cycle(DAMAGES), strict=False)))
def test_every_file_reads_back_and_a_scrub_names_the_provider(
    published: Published, tmp_path: Path, provider: str, how: str
) -> None:
    check(published, tmp_path / "machine", provider, how)
