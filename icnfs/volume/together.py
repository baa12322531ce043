"""Running several things at once and hearing of the first failure as itself, not as a group.

A nursery reports failures as an ExceptionGroup and cancels the rest.  Here the rest is let finish, since what it
stores is kept, and then the first `IcnfsError` is raised; anything else is a fault and is left to the nursery.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import trio

from icnfs.errors import IcnfsError


async def together(jobs: Iterable[Callable[[], Awaitable[object]]], most: int | None = None) -> None:
    """Run all `jobs`, at most `most` at once; once one has failed, those not yet begun are left out."""
    failures: list[IcnfsError] = []
    limiter = trio.CapacityLimiter(most if most is not None else 10_000)

    async def run(job: Callable[[], Awaitable[object]]) -> None:
        async with limiter:
            if failures:
                return
            try:
                await job()
            except IcnfsError as error:
                failures.append(error)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(run, job)
    if failures:
        raise failures[0]
