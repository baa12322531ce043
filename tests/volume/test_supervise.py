from __future__ import annotations

import itertools
import logging

import pytest
import trio
from trio.testing import MockClock

from icnfs.volume.supervise import AGAIN_SECONDS, supervised


def test_a_task_that_fails_is_logged_and_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    runs: list[float] = []

    async def task() -> None:
        runs.append(trio.current_time())
        if len(runs) < 3:
            raise KeyError("surprise")

    with caplog.at_level(logging.ERROR):
        trio.run(supervised, "care", task, clock=MockClock(autojump_threshold=0))
    assert [b - a for a, b in itertools.pairwise(runs)] == [AGAIN_SECONDS, AGAIN_SECONDS]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "care failed" in caplog.text


def test_cancelling_ends_it() -> None:
    async def main() -> None:
        with trio.move_on_after(1) as scope:
            await supervised("care", trio.sleep_forever)
        assert scope.cancelled_caught

    trio.run(main, clock=MockClock(autojump_threshold=0))
