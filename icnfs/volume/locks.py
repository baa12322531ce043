"""Who sees to it that a locked snapshot stays: providers that let nobody with these credentials delete.

A lock is a date in a record, and every verb of icnfs keeps to it.  Whoever has this machine could still delete at the
providers by its credentials, so providers are asked what these allow, and the TOML says what their buckets retain:

    append-only   an object of ours could be stored, and neither deleted nor replaced afterwards
    retained      `retention_days` of the TOML, counted from now, covers the date

A lock is *enforced* where k shares of every segment lie with such providers: what is left there rebuilds all.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from icnfs.errors import IcnfsError, ObjectMissingError, ProviderError
from icnfs.providers.trial import FOLDER
from icnfs.volume.network import Network
from icnfs.volume.repair import Repair
from icnfs.volume.together import together

log = logging.getLogger(__name__)

PROBE_SECONDS: Final = 15.0
PROBES_AT_ONCE: Final = 16
DAY: Final = 86400

APPEND_ONLY: Final = "append-only"
RETAINED: Final = "retained"


@dataclass(frozen=True)
class Enforcement:
    """By provider, how it enforces a lock; and whether that is enough for everything that is stored now."""

    by: dict[str, str]
    enough: bool


class Locks:
    """One open volume's; `loaded` is set once it is known who holds what."""

    def __init__(self, network: Network, repair: Repair, loaded: trio.Event) -> None:
        self._network = network
        self._repair = repair
        self._loaded = loaded

    async def judge(self, until: int) -> Enforcement:
        """Who enforces a lock until a Unix second.  Stores and deletes one small object at each provider."""
        by: dict[str, str] = {}
        network, now = self._network, time.time()

        async def ask(provider: str) -> None:
            facts = network.facts[provider]
            if facts.retention_days is not None and now + facts.retention_days * DAY >= until:
                by[provider] = RETAINED
            elif await is_append_only(network, provider):
                by[provider] = APPEND_ONLY

        await self._loaded.wait()
        await together((partial(ask, provider) for provider in network.homes), PROBES_AT_ONCE)
        held = [group.providers for group in self._repair.groups()]
        enough = bool(held) and all(sum(provider in by for provider in some) >= network.k for some in held)
        return Enforcement(by, enough)


async def is_append_only(network: Network, provider: str) -> bool:
    """Whether these credentials may store there, and neither delete nor replace; False where it does not answer.

    An object stays where they may not.  A provider that refuses to replace one is given nothing else for some seconds,
    as after any refusal.
    """
    transfer, name = network.transfer, f"{FOLDER}/{secrets.token_hex(16)}"
    mine, other = secrets.token_bytes(16), secrets.token_bytes(16)
    try:
        await transfer.put_object(provider, name, mine, deadline=PROBE_SECONDS)
    except IcnfsError as error:
        log.info("whether snapshots can be locked at %s is not known: %s", provider, error)
        return False
    for attempt in (
        partial(transfer.delete_object, provider, name, deadline=PROBE_SECONDS),
        partial(transfer.put_object, provider, name, other, deadline=PROBE_SECONDS),
    ):
        try:
            await attempt()
        except ProviderError as error:
            log.debug("provider %s keeps what it has: %s", provider, error)
        try:
            if await transfer.get_object(provider, name, deadline=PROBE_SECONDS) != mine:
                return False
        except ObjectMissingError:
            return False
        except IcnfsError as error:
            log.info("whether snapshots can be locked at %s is not known: %s", provider, error)
            return False
    return True
