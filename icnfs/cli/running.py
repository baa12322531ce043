"""Verbs that work by themselves, without a mount: the event loop and the log around them."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import trio

from icnfs.control import log
from icnfs.control.failures import single

T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`; warnings go to stderr, everything with --debug.  An IcnfsError comes out as itself.

    SIGINT and SIGTERM cancel it; once it has cleaned up, KeyboardInterrupt is raised.
    """
    debug = click.get_current_context().find_root().params.get("debug")
    with log.logging_to(log.foreground_sink(), "debug" if debug else "warning"):
        try:
            return trio.run(_interruptible, work)
        except BaseExceptionGroup as group:
            raise single(group) from group


async def _interruptible(work: Callable[[], Awaitable[T]]) -> T:
    """`work`, ended by cancelling it: an exception that a signal raises between any two steps could tear trio apart."""
    results: list[T] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            results.append(await work())
            nursery.cancel_scope.cancel()
    if not results:
        raise KeyboardInterrupt
    return results[0]
