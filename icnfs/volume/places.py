"""Taking possession of the providers' places: the marker, and copies of the key slots.

A place that bears no marker and no heads is free.  One that bears this volume's token for this provider is ours;
anything else is somebody else's and is never written to.  Whether a place is ours is looked at once for each provider
and mount, when it first answers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from icnfs.errors import ForeignProviderError, FormatError, IcnfsError, NewerFormatError, ObjectMissingError
from icnfs.format import marker
from icnfs.format.head import PREFIX as HEADS
from icnfs.volume.keyring import Keyring
from icnfs.volume.network import Network

log = logging.getLogger(__name__)

VISIT_SECONDS: Final = 30.0
"""Bound of each request of a visit."""


class Places:
    """The places of a volume's providers; `save` keeps the keyring after a delivery."""

    def __init__(self, network: Network, keyring: Keyring, save: Callable[[], None]) -> None:
        self._network = network
        self._keyring = keyring
        self._save = save

    async def is_ours(self, provider: str) -> bool:
        """True for our own place, False for a free one.

        Raises `ForeignProviderError` for any other, `NewerFormatError` for one that is ours and of a later release,
        and what else the provider answers.
        """
        transfer = self._network.transfer
        try:
            raw = await transfer.get_object(provider, marker.NAME, deadline=VISIT_SECONDS)
        except ObjectMissingError:
            if await transfer.list_objects(provider, HEADS, deadline=VISIT_SECONDS):
                raise ForeignProviderError(
                    provider, "it holds heads and no marker: it belonged to a volume; use an empty place"
                ) from None
            return False
        try:
            token = marker.unpack_marker(raw)
        except NewerFormatError as error:
            raise ForeignProviderError(provider, str(error)) from None
        except FormatError:
            raise ForeignProviderError(
                provider, "its object `volume` is not a marker of icnfs; use an empty place"
            ) from None
        if token != self._network.token(provider):
            raise ForeignProviderError(
                provider, "its place belongs to another volume, or to another provider of this one; check its url"
            )
        return True

    async def visit(self, provider: str) -> None:
        """Make sure that `provider`'s place is ours and holds what it should; cheap once that is known.

        Raises `ForeignProviderError`, and what else the provider answers.
        """
        network = self._network
        if provider not in network.taken:
            try:
                ours = await self.is_ours(provider)
            except ForeignProviderError as error:
                network.foreign[provider] = error.detail
                raise
            if not ours:
                await self.take(provider)
            network.foreign.pop(provider, None)
            network.taken.add(provider)
        await self._deliver(provider)

    async def take(self, provider: str) -> None:
        """Mark a free place as ours."""
        log.info("provider %s: its empty place is taken", provider)
        await self._network.transfer.put_object(
            provider, marker.NAME, marker.pack_marker(self._network.token(provider)), deadline=VISIT_SECONDS
        )
        self._keyring.lost(provider)
        self._network.taken.add(provider)

    async def visit_all(self) -> dict[str, IcnfsError]:
        """Visit every provider, all at once; the errors of those that could not be."""
        errors: dict[str, IcnfsError] = {}

        async def visit(provider: str) -> None:
            try:
                await self.visit(provider)
            except IcnfsError as error:
                errors[provider] = error

        async with trio.open_nursery() as nursery:
            for provider in self._network.providers:
                nursery.start_soon(visit, provider)
        return errors

    async def _deliver(self, provider: str) -> None:
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
