"""What an attempt to publish stored, and no head that was ever sent names, goes at once.

Ids are random for each attempt, so nothing else can name it, and no grace is due to what nobody was told of.  Left to
the search for orphans, what each try beside full providers stores would fill up those that are not.

Best effort, within WITHDRAW_SECONDS: what a provider does not delete now is an orphan, and that search finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Final

import trio

from icnfs.errors import IcnfsError
from icnfs.volume.network import Network
from icnfs.volume.together import together

log = logging.getLogger(__name__)

WITHDRAW_SECONDS: Final = 10.0
DELETES_AT_ONCE: Final = 8


async def withdraw(network: Network, objects: Iterable[tuple[str, str]]) -> None:
    """Delete `objects`, (provider, name) each, where their providers answer."""
    lost = network.lost()
    wanted = [(provider, name) for provider, name in objects if provider in network.facts and provider not in lost]

    async def delete(provider: str, name: str) -> None:
        try:
            await network.transfer.delete_object(provider, name, deadline=WITHDRAW_SECONDS)
        except IcnfsError as error:
            log.debug("what no head names is left for now: %s", error)

    with trio.move_on_after(WITHDRAW_SECONDS):
        await together((partial(delete, *each) for each in wanted), DELETES_AT_ONCE)
