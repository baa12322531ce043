"""Tasks beside requests must not take the mount down with them.

A fault in one (a bug, or a library's surprise) is logged with its traceback and the task begins anew after a while;
everything durable is as it was, for each of them may be interrupted anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

AGAIN_SECONDS: Final = 5.0
"""Until a task that failed begins anew."""

log = logging.getLogger(__name__)


async def supervised(name: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run `task` until it returns; begin it anew whenever it fails."""
    while True:
        try:
            await task()
            return
        except Exception as fault:
            kind = type(fault).__name__
            log.error("%s failed and begins anew in %.0f s: %s", name, AGAIN_SECONDS, kind, exc_info=True)
        await trio.sleep(AGAIN_SECONDS)
