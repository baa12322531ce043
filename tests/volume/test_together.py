"""Several things at once: no more than were allowed, none after a failure, and the failure as itself."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from icnfs.errors import TooFewProvidersError
from icnfs.volume.together import together


def test_as_many_run_as_may_and_no_task_is_made_for_those_that_wait() -> None:
    at_once: list[int] = []
    done: list[int] = []

    async def job(number: int) -> None:
        at_once.append(trio.lowlevel.current_statistics().tasks_living)
        await trio.sleep(1)
        done.append(number)

    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        await together((partial(job, number) for number in range(1000)), 4)
        assert max(at_once) == before + 4
        assert trio.current_time() == pytest.approx(250)

    trio.run(main, clock=trio.testing.MockClock(rate=0, autojump_threshold=0))
    assert sorted(done) == list(range(1000))


def test_after_a_failure_what_runs_ends_and_nothing_else_begins() -> None:
    ended: list[int] = []

    async def job(number: int) -> None:
        await trio.sleep(number)
        if number == 1:
            raise TooFewProvidersError("no")
        ended.append(number)

    async def main() -> None:
        with pytest.raises(TooFewProvidersError):
            await together([partial(job, number) for number in (1, 2, 3)], 2)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert ended == [2]


def test_nothing_to_do_is_done_at_once() -> None:
    trio.run(together, ())
