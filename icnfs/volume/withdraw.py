"""What an attempt to publish stored, and no head that was ever sent names, goes at once.

Ids are random for each attempt, so no grace is due to what nobody was told of.  Left to the search for orphans, what
each try beside full providers stores would fill up those that are not.  All the same the heads are looked at first: a
virtual machine that was resumed twice from one snapshot of its memory has drawn the same ids twice.  What was seen then
holds for SEEN_SECONDS, by the clock, for a machine may sleep in between.

Best effort, in the background: what a provider does not delete now is an orphan, and that search finds it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import trio

from icnfs.errors import IcnfsError
from icnfs.volume.network import Network
from icnfs.volume.together import together

log = logging.getLogger(__name__)

WITHDRAW_SECONDS: Final = 60.0
SEEN_SECONDS: Final = 120.0
DELETE_SECONDS: Final = 20.0
DELETES_AT_ONCE: Final = 2
"""At each provider: what is stored there meanwhile comes first."""


async def withdraw(
    network: Network, look_out: Callable[[], Awaitable[None]], objects: Iterable[tuple[str, str]]
) -> None:
    """Delete `objects`, (provider, name) each, where their providers answer, unless `look_out` raises an `IcnfsError`:
    somebody may have taken over."""
    begun, lost = time.time(), network.lost()
    wanted: dict[str, list[str]] = {}
    for provider, name in sorted(objects):
        if provider in network.facts and provider not in lost:
            wanted.setdefault(provider, []).append(name)

    async def delete(provider: str, name: str) -> None:
        if not 0.0 <= time.time() - begun <= SEEN_SECONDS:
            return
        try:
            await network.transfer.delete_object(provider, name, deadline=DELETE_SECONDS)
        except IcnfsError as error:
            log.debug("what no head names is left for now: %s", error)

    async def empty(provider: str, names: list[str]) -> None:
        await together((partial(delete, provider, name) for name in names), DELETES_AT_ONCE)

    with trio.move_on_after(WITHDRAW_SECONDS):
        try:
            await look_out()
        except IcnfsError as error:
            log.debug("what no head names is left: %s", error)
            return
        await together(partial(empty, *each) for each in wanted.items())
