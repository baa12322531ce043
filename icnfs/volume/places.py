"""Taking possession of the providers' places: the marker, and copies of the key slots.

A place that bears no marker is free, if it bears no heads or such as we stored: then it lost what came before them.
One that bears this volume's token for this provider is ours; anything else is somebody else's and is never written to.
Whether a place is ours, and still has the last head that it said it stored (see `gone_back`), is looked at once for
each provider and mount, when it first answers, and again when it lacks what it was given (`Network.doubted`).

Looking writes nothing.  Taking a free place, giving and taking back key slots come only after the volume's heads were
looked at: a machine that was overtaken must not delete what now opens the volume.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from icnfs.errors import (
    ForeignProviderError,
    FormatError,
    IcnfsError,
    NewerFormatError,
    ObjectMissingError,
)
from icnfs.format import head as head_format
from icnfs.format import marker
from icnfs.format.head import PREFIX as HEADS
from icnfs.providers.facts import ProviderFacts
from icnfs.volume.keyring import Entry, Keyring
from icnfs.volume.network import Network

log = logging.getLogger(__name__)

VISIT_SECONDS: Final = 30.0
"""Bound of each request of a visit."""

SLOTS_SECONDS: Final = 86_400.0
"""Between looks at the key slots: a small object for each key and provider."""

DOUBT_SECONDS: Final = 1.0
DOUBT_MOST: Final = 60.0
"""Between looks for places that are doubted; twice as long each time that the look does not end the doubt."""


class Places:
    """The places of a volume's providers; `save` keeps the keyring after a delivery."""

    def __init__(self, network: Network, keyring: Keyring, save: Callable[[], None]) -> None:
        self._network = network
        self._keyring = keyring
        self._save = save

    async def is_ours(self, provider: str) -> bool:
        """True for our own place, False for a free one.

        Raises `ForeignProviderError` for any other, `NewerFormatError` for one of a later release, and what else the
        provider answers.
        """
        transfer = self._network.transfer
        try:
            raw = await transfer.get_object(provider, marker.NAME, deadline=VISIT_SECONDS)
        except ObjectMissingError:
            names = await transfer.list_objects(provider, HEADS, deadline=VISIT_SECONDS)
            if names and not await self._is_our_head(provider, names[-1]):
                raise ForeignProviderError(
                    provider, "it holds heads and no marker: it belonged to a volume; use an empty place"
                ) from None
            return False
        try:
            token = marker.unpack_marker(raw)
        except NewerFormatError as error:
            raise NewerFormatError(f"provider {provider}: {error}") from None
        except FormatError:
            raise ForeignProviderError(
                provider, "its object `volume` is not a marker of icnfs; use an empty place"
            ) from None
        if token != self._network.token(provider):
            raise ForeignProviderError(provider, self._whose(token))
        return True

    def _whose(self, token: bytes) -> str:
        if other := holder_of(self._network, token):
            return f"its place is that of provider {other} too, by another name; check its url"
        return "its place belongs to another volume, or to another provider of this one; check its url"

    async def _is_our_head(self, provider: str, name: str) -> bool:
        """Whether a head is one that this volume stored at `provider`: it may have lost all that came before it."""
        parsed, network = head_format.parse_name(name), self._network
        if parsed is None:
            return False
        try:
            raw = await network.transfer.get_object(provider, name, deadline=VISIT_SECONDS)
            head_format.unseal(raw, parsed, network.token(provider), network.open_head)
        except NewerFormatError:
            raise
        except FormatError:
            return False
        return True

    async def visit(self, provider: str) -> None:
        """See whether `provider`'s place is ours, or free (`Network.free`); cheap once that is known.

        Where it could not be seen, a doubt stays.  Raises `ForeignProviderError`, `NewerFormatError`, and what else the
        provider answers.
        """
        network = self._network
        if provider in network.taken and provider not in network.doubted:
            return
        facts, still = network.facts.get(provider), False
        try:
            ours = await self.is_ours(provider)
            back = ours and await self._went_back(provider)
            network.foreign.pop(provider, None)
            if not _is_same(facts, network.facts.get(provider)):
                return
            if ours:
                if provider in network.free:  # it was taken, and the answer was lost
                    self._keyring.lost(provider)
                self._note_ours(provider)
                network.gone_back |= {provider} if back else set()
            else:
                self._note_free(provider)
        except ForeignProviderError as error:
            self._note_foreign(provider, error.detail)
            raise
        except NewerFormatError as error:
            self._note_foreign(provider, str(error).removeprefix(f"provider {provider}: "))
            raise
        except IcnfsError:
            still = provider in network.doubted and provider in network.facts
            raise
        finally:
            network.doubted.pop(provider, trio.Event()).set()
            if still:
                network.doubt(provider)

    async def _went_back(self, provider: str) -> bool:
        """Whether it lacks a head that it said it stored, and that nobody has deleted."""
        network = self._network
        head = network.acknowledged.get(provider)
        if head is None or provider in network.clearing:
            return False
        listed = await network.transfer.list_objects(provider, head, deadline=VISIT_SECONDS)
        return head not in listed and network.acknowledged.get(provider) == head

    def _note_free(self, provider: str) -> None:
        network = self._network
        if provider in network.taken and not network.facts[provider].drain:
            log.error("provider %s: its place was emptied; what it held is stored anew", provider)
            network.emptied[provider] = network.emptied.get(provider, 0) + 1
        network.taken.discard(provider)
        network.free.add(provider)

    def _note_foreign(self, provider: str, reason: str) -> None:
        if provider not in self._network.facts:
            return
        if self._network.foreign.get(provider) != reason:
            log.warning("provider %s: nothing is stored there: %s", provider, reason)
        self._network.foreign[provider] = reason
        self._network.taken.discard(provider)

    async def take(self, provider: str) -> None:
        """Mark a free place as ours; it is to be given its key slots."""
        facts = self._network.facts.get(provider)
        log.info("provider %s: its empty place is taken", provider)
        self._network.acknowledged.pop(provider, None)
        self._network.gone_back.discard(provider)
        await self._network.transfer.put_object(
            provider, marker.NAME, marker.pack_marker(self._network.token(provider)), deadline=VISIT_SECONDS
        )
        if _is_same(facts, self._network.facts.get(provider)):
            self._keyring.lost(provider)
            self._note_ours(provider)

    def _note_ours(self, provider: str) -> None:
        self._network.free.discard(provider)
        self._network.noted.discard(provider)
        self._network.taken.add(provider)

    async def visit_all(self) -> None:
        """Visit every provider, all at once; those that cannot be stay as they are."""
        await self._each(self._network.providers, self.visit)

    async def visit_doubtful(self) -> None:
        """As `visit_all`, those that are doubted and not known to be down."""
        await self._each(sorted(self._network.doubtful), self.visit)

    @property
    def owes(self) -> bool:
        """Whether a place that is ours lacks key slots, or holds any that were removed."""
        homes = self._network.homes
        ring = self._keyring
        return any(map(ring.undelivered, homes)) or any(map(ring.undeleted, homes)) or bool(self._wanting())

    def _wanting(self) -> list[tuple[Entry, str]]:
        """Places that are ours and have no copy of a key that is to be there: see `Keyring.wanting`."""
        network = self._network
        keepers = frozenset(network.keepers) - network.foreign.keys()
        return self._keyring.wanting(
            network.homes, network.facts, lambda have: network.owners(keepers.intersection(have)) >= network.n
        )

    async def deliver_all(self) -> None:
        """`deliver` to every place that is ours, all at once; what cannot be done waits for the next time.

        Places that providers were given since the key was added are handed its slot, too.
        """
        if wanting := self._wanting():
            self._keyring.hand_out(wanting, self._network.facts)
            self._save()
        await self._each(self._network.homes, self.deliver)

    async def _each(self, providers: Iterable[str], work: Callable[[str], Awaitable[None]]) -> None:
        async def attempt(provider: str) -> None:
            try:
                await work(provider)
            except IcnfsError as error:
                log.debug("a provider's place is as it was: %s", error)

        async with trio.open_nursery() as nursery:
            for provider in tuple(providers):
                nursery.start_soon(attempt, provider)

    async def look_again(self, look: Callable[[], Awaitable[None]]) -> None:
        """Whenever places are doubted, `look`, which visits them."""
        wait, before = DOUBT_SECONDS, self._network.doubtful
        while True:
            await trio.sleep(wait)
            if self._network.doubtful:
                await look()
            left = self._network.doubtful
            wait = min(2 * wait, DOUBT_MOST) if left and left <= before else DOUBT_SECONDS
            before = left

    async def watch(self, look: Callable[[], Awaitable[object]]) -> None:
        """Daily, `look` at heads and key slots: what is lost one by one in the months of a mount must not add up."""
        while True:
            await trio.sleep(SLOTS_SECONDS)
            try:
                await look()
            except IcnfsError as error:
                log.warning("the providers' heads and key slots could not be looked at: %s", error)

    async def verify_all(self) -> int:
        """See that the key slots at every place that is ours are what was stored; how many are not.

        Those are owed again (`owes`).
        """
        bad: list[str] = []
        await self._each(self._network.homes, lambda provider: self._verify(provider, bad))
        return len(bad)

    async def _verify(self, provider: str, bad: list[str]) -> None:
        for copy in self._keyring.held(provider):
            try:
                raw = await self._network.transfer.get_object(provider, copy.name, deadline=VISIT_SECONDS)
                what = "altered"
            except ObjectMissingError:
                raw, what = b"", "missing"
            if raw != copy.slot:
                log.error("provider %s: key slot %s is %s; it is stored anew", provider, copy.name, what)
                copy.stored = False
                bad.append(copy.name)

    async def deliver(self, provider: str) -> None:
        """Give `provider` the slots it lacks and take back those that were removed."""
        changed = False
        for copy in self._keyring.undelivered(provider):
            await self._network.transfer.put_object(provider, copy.name, copy.slot, deadline=VISIT_SECONDS)
            self._keyring.delivered(provider, copy.name)
            changed = True
        for name in self._keyring.undeleted(provider):
            await self._network.transfer.delete_object(provider, name, deadline=VISIT_SECONDS)
            self._keyring.deleted(provider, name)
            changed = True
        if changed:
            self._save()


def holder_of(network: Network, token: bytes) -> str:
    """The provider whose place bears `token`, "" for none of the TOML's."""
    return next((name for name in network.providers if network.token(name) == token), "")


def _is_same(before: ProviderFacts | None, now: ProviderFacts | None) -> bool:
    """Whether the TOML still names the place that was looked at."""
    return before is not None and now is not None and before.url == now.url
