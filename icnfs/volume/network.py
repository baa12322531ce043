"""The volume's providers as one thing: who they are, by what names they know us, and how many are enough.

Promises: it holds the keys that turn the volume's own words (segment, share, provider) into what a provider sees, and
hands transfer only the latter.  It moves nothing itself: `transfer` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

import trio

from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.crypto.names import NameHash
from icnfs.crypto.sealing import open_document, seal_document
from icnfs.errors import IcnfsError
from icnfs.format.segment import SegmentInfo
from icnfs.placement import Policy
from icnfs.providers.base import Capacity
from icnfs.providers.facts import ProviderFacts
from icnfs.providers.open import ProviderSpec
from icnfs.transfer.messages import ProviderState
from icnfs.transfer.upload import PutResult

log = logging.getLogger(__name__)

SHARES_PREFIX: Final = "shares/"

PROBE_SECONDS: Final = 5.0
"""A provider that was down has so long to say that it is back."""


class Transfer(Protocol):
    """What the volume asks of `transfer.client.TransferClient`; `deadline` is in seconds from the call."""

    async def put_segment(
        self,
        id: bytes,
        k: int,
        n: int,
        share_len: int,
        size: int,
        names: Sequence[str],
        providers: Sequence[str],
        payload_fd: int,
        only: Sequence[int] | None = None,
        *,
        enough: int | None = None,
        deadline: float = ...,
    ) -> PutResult: ...

    async def complete_segment(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        missing: Sequence[int],
        providers: Sequence[str],
        targets: Sequence[str],
        *,
        deadline: float = ...,
    ) -> PutResult: ...

    async def fetch(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        share: int,
        offset: int,
        length: int,
        *,
        distrust: Collection[int] = ...,
        rebuild: bool = ...,
        deadline: float = ...,
    ) -> bytes: ...

    async def get_segment(self, segment: SegmentInfo, names: Sequence[str], *, deadline: float = ...) -> bytes: ...
    async def put_object(self, provider: str, name: str, data: bytes, *, deadline: float = ...) -> None: ...
    async def get_object(self, provider: str, name: str, *, deadline: float = ...) -> bytes: ...
    async def list_objects(
        self, provider: str, prefix: str, after: str = ..., *, deadline: float = ...
    ) -> list[str]: ...
    async def delete_object(self, provider: str, name: str, *, deadline: float = ...) -> None: ...
    async def probe(self, provider: str, *, deadline: float = ...) -> Capacity: ...
    def states(self) -> Mapping[str, ProviderState]: ...


Starter = Callable[[Sequence[ProviderSpec]], AbstractAsyncContextManager[Transfer]]
"""Starts transfer; a test may run it in this process."""


@dataclass(frozen=True)
class Network:
    """The providers of one volume, and the keys to speak of its objects with them."""

    facts: Mapping[str, ProviderFacts]
    k: int
    n: int
    safe: int
    policy: Policy
    master: MasterKey
    transfer: Transfer
    taken: set[str] = field(default_factory=set)
    """Providers whose place is known to be ours: only these are written to (see `places`)."""
    free: set[str] = field(default_factory=set)
    """Providers whose place was found empty: new ones, or such as lost everything."""
    foreign: dict[str, str] = field(default_factory=dict)
    """Providers whose place is somebody else's, and what was found there."""

    @classmethod
    def of(cls, config: VolumeConfig, master: MasterKey, transfer: Transfer) -> Network:
        """The network that a configuration describes."""
        return cls(config.providers, config.k, config.n, config.safe, config.policy, master, transfer)

    @property
    def providers(self) -> tuple[str, ...]:
        """Names, as in the TOML."""
        return tuple(self.facts)

    @cached_property
    def names(self) -> NameHash:
        return NameHash(self.master)

    # --- how many are enough ------------------------------------------------------------------------------------------

    @property
    def durable(self) -> int:
        """Owners that must hold a head: whatever n - k owners vanish, one is left."""
        return self.n - self.k + 1

    def owners(self, providers: Iterable[str]) -> int:
        """Distinct owners among `providers`; one that the TOML no longer names counts for nothing."""
        return len({self.facts[name].owner for name in providers if name in self.facts})

    def silent(self, answering: Collection[str]) -> int:
        """Owners of whom not every provider is among `answering`: what one of them holds may lie just there."""
        return self.owners(name for name in self.facts if name not in answering)

    @property
    def silent_most(self) -> int:
        """Owners that may be `silent` while every durable head is seen all the same."""
        return self.n - self.k

    def is_safe(self, segment: SegmentInfo) -> bool:
        """Whether `safe` distinct owners hold shares of it."""
        return self.owners(share.provider for share in segment.shares if share.stored) >= self.safe

    def away(self) -> frozenset[str]:
        """Providers that nothing can be written to now: down, or their place not known to be ours."""
        states = self.transfer.states()
        down = {name for name in self.providers if name in states and states[name].state == "down"}
        return frozenset(down | (self.facts.keys() - self.taken))

    def lost(self) -> frozenset[str]:
        """Providers that are known to give back nothing now: down, or their place empty or somebody else's."""
        states = self.transfer.states()
        down = {name for name in self.providers if name in states and states[name].state == "down"}
        return frozenset(down | self.free | self.foreign.keys())

    async def wake(self) -> None:
        """Ask the providers that are down whether they are back; whoever answers is up again."""
        states = self.transfer.states()

        async def ask(provider: str) -> None:
            try:
                await self.transfer.probe(provider, deadline=PROBE_SECONDS)
            except IcnfsError:
                log.debug("provider %s is still down", provider)

        async with trio.open_nursery() as nursery:
            for provider in self.providers:
                if provider in states and states[provider].state == "down":
                    nursery.start_soon(ask, provider)

    # --- what providers see -------------------------------------------------------------------------------------------

    def token(self, provider: str) -> bytes:
        """What stands for `provider` in its marker and binds its heads to it."""
        return self.names.place_token(provider)

    def share_names(self, segment: bytes, providers: Sequence[str]) -> tuple[str, ...]:
        """The objects that hold a segment's shares, by index."""
        return tuple(self._share_name(segment, index, provider) for index, provider in enumerate(providers))

    def names_of(self, segment: SegmentInfo) -> tuple[str, ...]:
        """The objects that hold the shares of a segment, by index."""
        return self.share_names(segment.id, [share.provider for share in segment.shares])

    def _share_name(self, segment: bytes, index: int, provider: str) -> str:
        name = self.names.share_name(segment, index, provider)
        return f"{SHARES_PREFIX}{name[:2]}/{name[2:]}"

    def seal_head(self, ad: bytes, plain: bytes) -> bytes:
        return seal_document(self.master, "heads", ad, plain)

    def open_head(self, ad: bytes, sealed: bytes) -> bytes:
        return open_document(self.master, "heads", ad, sealed)

    def seal_run(self, ad: bytes, plain: bytes) -> bytes:
        return seal_document(self.master, "runs", ad, plain)

    def open_run(self, ad: bytes, sealed: bytes) -> bytes:
        return open_document(self.master, "runs", ad, sealed)


def start_transfer(specs: Sequence[ProviderSpec]) -> AbstractAsyncContextManager[Transfer]:
    """The transfer process."""
    from icnfs.transfer.client import TransferClient

    return TransferClient.start(specs)
