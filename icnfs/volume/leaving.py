"""Leaving a provider: every share of it stored elsewhere, and then nothing of the volume left there.

Steps, each of which may be broken off and begun again:

1. Its shares move (`repair` does it, since a provider that is being drained may hold none), and its copies of key slots
   go to providers that have none.
2. A head is published that names nothing there.
3. Whatever of the volume lies there is deleted, the marker last, for it is what tells that the rest is ours.

Older heads still name shares there: of segments that are gone by now.  Each of those has n - 1 others.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from icnfs.errors import (
    ConfigError,
    ForeignProviderError,
    IcnfsError,
    ProviderAwayError,
    ProviderError,
    ProviderLiesError,
    UsageError,
)
from icnfs.format import marker
from icnfs.format.head import PREFIX as HEADS
from icnfs.providers import trial
from icnfs.volume import keyring as keyrings
from icnfs.volume.network import SHARES_PREFIX, Network
from icnfs.volume.places import VISIT_SECONDS
from icnfs.volume.publish import Publisher
from icnfs.volume.repair import Repair
from icnfs.volume.standing import Holding, holdings_of
from icnfs.volume.together import together

LOOK_SECONDS: Final = 0.5
"""Between looks at what is left, while nothing can be moved."""

DELETES_AT_ONCE: Final = 8
DELETES_STEP: Final = 256
"""Objects deleted between two looks at the heads."""


@dataclass(frozen=True)
class LeaveProgress:
    """Bytes of shares that have left, of those that were there in all; shares left; what it waits for, "" for
    nothing."""

    moved_bytes: int
    total_bytes: int
    shares_left: int
    waiting: str


@dataclass(frozen=True)
class LeaveResult:
    """What has left: shares and their bytes.

    `left` objects are still listed there that no volume made.  `unreachable` tells why what lies there could not be
    deleted; "" where nothing of the volume is left.  `kept`: the provider says that it keeps what it deletes, as older
    versions.
    """

    shares: int
    bytes: int
    left: int
    unreachable: str
    kept: bool = False


class Leaving:
    """One provider's end; `care` and `publish` are the volume's."""

    def __init__(
        self,
        network: Network,
        repair: Repair,
        keys: keyrings.Keyring,
        care: Callable[[], Awaitable[bool]],
        publish: Callable[[], Awaitable[None]],
        publisher: Publisher,
    ) -> None:
        self._network = network
        self._repair = repair
        self._keys = keys
        self._care = care
        self._publish = publish
        self._publisher = publisher

    async def run(self, provider: str, progress: Callable[[LeaveProgress], None]) -> LeaveResult:
        """Leave `provider`, which is being drained; see the module.

        Raises `UsageError` where it is not being drained, `ConfigError` where the policy allows no other place for what
        it holds, `FencedError`; what can be waited for is waited for.
        """
        facts = self._network.facts.get(provider)
        if facts is None or not facts.drain:
            raise UsageError(f"provider {provider} is not being drained; write drain = true in its table first")
        first = self._holding(provider)
        if self._keys.bequeath(provider, self._network.homes):
            self._keys.save()
        while True:
            await self._move(provider, first.bytes, progress)
            await self._publish()
            if not self._concerns(provider):
                break
        left, kept, unreachable = 0, False, ""
        self._network.clearing.add(provider)
        try:
            self._network.doubt(provider)  # what lies there is deleted: it must be ours now
            await self._publisher.settle()
            self._require_ours(provider)
            left, kept = await self._clear(provider)
        except ProviderError as error:
            unreachable = str(error)
        finally:
            self._network.clearing.discard(provider)
            self._network.doubted.pop(provider, trio.Event()).set()  # it holds nothing that counts
        return LeaveResult(first.segments, first.bytes, left, unreachable, kept)

    def _holding(self, provider: str) -> Holding:
        return holdings_of(self._repair.groups()).get(provider, Holding(provider, 0, 0))

    def _concerns(self, provider: str) -> bool:
        """Whether any share lies there, or was to."""
        return self._holding(provider).segments > 0 or provider in self._repair.lacking_at()

    async def _move(self, provider: str, total: int, progress: Callable[[LeaveProgress], None]) -> None:
        while self._concerns(provider):
            now = self._holding(provider)
            obstacle = self._repair.obstacle
            total = max(total, now.bytes)
            progress(LeaveProgress(total - now.bytes, total, now.segments, str(obstacle or "")))
            if not await self._care() and self._concerns(provider):
                if isinstance(self._repair.obstacle, ConfigError):
                    raise self._repair.obstacle
                await trio.sleep(LOOK_SECONDS)
        progress(LeaveProgress(total, total, 0, ""))

    def _require_ours(self, provider: str) -> None:
        """Raise `ProviderError` unless its place is known to be the volume's, or empty."""
        network = self._network
        if provider in network.foreign:
            raise ForeignProviderError(provider, network.foreign[provider])
        if provider in network.doubted or provider not in network.taken | network.free:
            raise ProviderAwayError(provider, network.trouble(provider) or "its place cannot be looked at")

    async def _clear(self, provider: str) -> tuple[int, bool]:
        """Delete what is there of the volume; how many other objects are listed afterwards, and whether the provider
        keeps what it deletes.

        Before each part it looks whether another machine has taken over: that one may use the place.  The mark goes
        once the listing shows it and nothing else of the volume: one that lacks the mark hides the rest, too.
        """
        transfer = self._network.transfer
        if provider in self._network.free:
            left = await transfer.list_objects(provider, "", deadline=VISIT_SECONDS)
            nothing = f"{trial.FOLDER}/{secrets.token_hex(16)}"  # what was deleted there before is not known any more
            return len(left), await transfer.delete_object(provider, nothing, deadline=VISIT_SECONDS)
        try:
            for prefix in _prefixes():
                names = await transfer.list_objects(provider, prefix, deadline=VISIT_SECONDS)
                names = [name for name in names if name != marker.NAME]
                for at in range(0, len(names), DELETES_STEP):
                    await self._publisher.look_out()
                    deletions = (
                        partial(transfer.delete_object, provider, name, deadline=VISIT_SECONDS)
                        for name in names[at : at + DELETES_STEP]
                    )
                    await together(deletions, DELETES_AT_ONCE)
            _require_gone(provider, await transfer.list_objects(provider, "", deadline=VISIT_SECONDS))
            await self._publisher.look_out()
            self._network.taken.discard(provider)
            kept = await transfer.delete_object(provider, marker.NAME, deadline=VISIT_SECONDS)
            left = await transfer.list_objects(provider, "", deadline=VISIT_SECONDS)
        except IcnfsError:
            self._network.taken.add(provider)
            raise
        self._network.free.add(provider)
        return len(left), kept


def _require_gone(provider: str, listed: Sequence[str]) -> None:
    """Raise `ProviderError` unless the volume's mark alone is listed of all that is the volume's."""
    if marker.NAME not in listed:
        raise ProviderLiesError(provider, "its listing hides the volume's mark, and what else it holds; ask it why")
    if ours := [name for name in listed if name.startswith((SHARES_PREFIX, HEADS, keyrings.PREFIX))]:
        what = f"it lists {len(ours)} objects still that it said are deleted, such as {ours[0]}"
        raise ProviderLiesError(provider, f"{what}; try again later, or ask it why")


def _prefixes() -> Iterator[str]:
    """Of all that a volume stores; shares in parts, so that no listing grows large."""
    yield from (f"{SHARES_PREFIX}{digit}" for digit in "abcdefghijklmnopqrstuvwxyz234567")
    yield from (HEADS, keyrings.PREFIX)
