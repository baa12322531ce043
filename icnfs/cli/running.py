"""Verbs that work by themselves, without a mount: the event loop and the log around them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import click
import trio

from icnfs.control import log
from icnfs.control.failures import single

T = TypeVar("T")


def run(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`; warnings go to stderr, everything with --debug.  An IcnfsError comes out as itself."""
    debug = click.get_current_context().find_root().params.get("debug")
    with log.logging_to(log.foreground_sink(), "debug" if debug else "warning"):
        try:
            return trio.run(work)
        except BaseExceptionGroup as group:
            raise single(group) from group
