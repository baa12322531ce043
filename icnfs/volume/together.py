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
    listed = tuple(jobs)
    waiting = iter(listed)

    async def work() -> None:
        for job in waiting:
            if failures:
                return
            try:
                await job()
            except IcnfsError as error:
                failures.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(min(len(listed), most or len(listed))):
            nursery.start_soon(work)
    if failures:
        raise failures[0]
