"""Byte classes and harms of every kind of object, as many as one machine for each kind can show; all of them:
`python -m tests.acceptance.classes`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.classes import ROOM, SHARES, Origin, batches, beyond, cases_of, publish, run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    made = publish(tmp_path_factory.mktemp("classes") / "origin")
    with made.volume:
        yield made


@pytest.mark.parametrize("kind", ["share", "head", "slot", "marker"])
def test_what_is_harmed_is_named_and_worked_around(origin: Origin, tmp_path: Path, kind: str) -> None:
    """Shares of contents, runs and checkpoint stand beside one another."""
    kinds = SHARES if kind in SHARES else (kind,)
    cases = [case for case in cases_of(origin) if case.kind in kinds]
    random.Random(11).shuffle(cases)
    assert run(origin, tmp_path / kind, batches(cases)[0]) == []


@pytest.mark.parametrize("kind", ROOM)
def test_what_is_beyond_repair_is_an_error_that_names_it(origin: Origin, tmp_path: Path, kind: str) -> None:
    said, wrong = beyond(origin, tmp_path / kind, kind)
    assert wrong == [], said
