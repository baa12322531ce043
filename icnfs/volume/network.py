"""The volume's providers as one thing: who they are, by what names they know us, and how many are enough.

Promises: it holds the keys that turn the volume's own words (segment, share, provider) into what a provider sees, and
hands transfer only the latter.  It moves nothing itself: `transfer` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

import trio

from icnfs import placement
from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.crypto.names import NameHash
from icnfs.crypto.sealing import open_document, seal_document
from icnfs.errors import ConfigError, IcnfsError, TooFewProvidersError
from icnfs.format.segment import SegmentInfo
from icnfs.placement import Measure, Policy, Weights
from icnfs.providers.base import Capacity
from icnfs.providers.facts import ProviderFacts
from icnfs.providers.open import ProviderSpec
from icnfs.transfer.checks import Looked
from icnfs.transfer.messages import Limits, ProviderState, ShareEvent
from icnfs.transfer.upload import PutResult

log = logging.getLogger(__name__)

SHARES_PREFIX: Final = "shares/"

SEGMENTS_AT_ONCE: Final = 8
"""Segments that are stored, restored or compacted at the same time, at most."""

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
        verified: bool = ...,
        deadline: float = ...,
    ) -> bytes: ...

    async def fetch_stripe(
        self, segment: SegmentInfo, names: Sequence[str], offset: int, length: int, *, deadline: float = ...
    ) -> memoryview: ...
    async def get_segment(self, segment: SegmentInfo, names: Sequence[str], *, deadline: float = ...) -> bytes: ...
    async def check(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        index: int,
        leaves: Sequence[int] | None = ...,
        *,
        deadline: float = ...,
    ) -> Looked: ...
    async def put_object(
        self, provider: str, name: str, data: bytes, *, new: bool = ..., deadline: float = ...
    ) -> None: ...
    async def get_object(self, provider: str, name: str, *, most: int = ..., deadline: float = ...) -> bytes: ...
    async def list_objects(
        self, provider: str, prefix: str, after: str = ..., *, page: bool = ..., deadline: float = ...
    ) -> list[str]: ...
    async def peek(self, provider: str, name: str, length: int, *, deadline: float = ...) -> tuple[int, bytes]: ...
    async def delete_object(self, provider: str, name: str, *, deadline: float = ...) -> bool: ...
    async def probe(self, provider: str, *, deadline: float = ...) -> Capacity: ...
    async def set_providers(self, specs: Sequence[ProviderSpec], limits: Limits) -> None: ...
    def states(self) -> Mapping[str, ProviderState]: ...

    heard: Callable[[ShareEvent], None]
    """Called with what becomes of shares that were on their way when `put_segment` returned, and once with each share
    that is found bad or missing."""


Starter = Callable[[Sequence[ProviderSpec], Limits], AbstractAsyncContextManager[Transfer]]
"""Starts transfer; a test may run it in this process."""


@dataclass
class Network:
    """The providers of one volume, and the keys to speak of its objects with them.

    Who the providers are and what the policy says may change while it is used (`adopt`); the code may not.
    """

    facts: Mapping[str, ProviderFacts]
    k: int
    n: int
    safe: int
    policy: Policy
    weights: Weights
    master: MasterKey
    transfer: Transfer
    taken: set[str] = field(default_factory=set)
    """Providers whose place is known to be ours: only these are written to (see `places`)."""
    free: set[str] = field(default_factory=set)
    """Providers whose place was found empty: new ones, or such as lost everything."""
    doubted: dict[str, trio.Event] = field(default_factory=dict)
    """Providers whose place is to be looked at again, since something is not there that was; what is set then."""
    emptied: dict[str, int] = field(default_factory=dict)
    """How many times a place that was ours was found empty."""
    noted: set[str] = field(default_factory=set)
    """Providers of which it is noted durably that they hold nothing, since their place was found empty."""
    moved: set[str] = field(default_factory=set)
    """Providers whose url has changed, until it is known whether what they held moved with them."""
    acknowledged: dict[str, str] = field(default_factory=dict)
    """The newest head that each provider said it stored, but for those that were deleted there since."""
    gone_back: set[str] = field(default_factory=set)
    """Providers that lack this head, until it is known what else they lack (see `gone_back`)."""
    clearing: set[str] = field(default_factory=set)
    """Providers that are being left, from which all is being deleted."""
    foreign: dict[str, str] = field(default_factory=dict)
    """Providers whose place is somebody else's, and what was found there."""
    unused: Callable[[], frozenset[str]] = frozenset
    """Providers that are known to hold no share, nor is one missing there."""
    suspended: Callable[[], frozenset[str]] = frozenset
    """Providers whose answers of late were wrong too often, or that were away too long (see `trust`)."""
    liars: Callable[[], frozenset[str]] = frozenset
    """Those of them whose answers were wrong."""

    upload: int = 0
    download: int = 0
    """Bytes per second to and from all of them together; 0 for no bound."""

    @classmethod
    def of(cls, config: VolumeConfig, master: MasterKey, transfer: Transfer) -> Network:
        """The network that a configuration describes."""
        made = cls(config.providers, config.k, config.n, config.safe, config.policy, config.weights, master, transfer)
        made.upload, made.download = config.upload, config.download
        return made

    def let_go(self, wanted: Mapping[str, ProviderFacts]) -> None:
        """Who will be another place, or none, is given nothing more: nobody has looked at the other one."""
        self.taken -= {
            name for name, facts in self.facts.items() if name not in wanted or wanted[name].url != facts.url
        }

    def adopt(self, config: VolumeConfig) -> set[str]:
        """Take over providers, policy and weights; those that moved, which are visited as if they were new."""
        moved: set[str] = set()
        known = (self.taken, self.free, self.noted, self.foreign, self.gone_back)
        for name, facts in self.facts.items():
            there = config.providers.get(name)
            if there is None or there.url != facts.url:
                for places in known:
                    places.pop(name, None) if isinstance(places, dict) else places.discard(name)
                self.doubted.pop(name, trio.Event()).set()
                self.moved.discard(name) if there is None else moved.add(name)
        self.moved |= moved
        self.facts, self.policy, self.weights = config.providers, config.policy, config.weights
        self.upload, self.download = config.upload, config.download
        return moved

    def check_clearing(self, wanted: Mapping[str, ProviderFacts]) -> None:
        """ConfigError where a provider from which all is being deleted would be used again, or be another place."""
        for name in self.clearing:
            there = wanted.get(name)
            if there is None or not there.drain or there.url != self.facts[name].url:
                raise ConfigError(f"what lies at provider {name} is being deleted; wait for the end of its drain")

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
        facts = self.facts  # they may change, and the committer's thread asks, too
        return len({facts[name].owner for name in providers if name in facts})

    def silent(self, answering: Collection[str]) -> int:
        """Owners of whom not every provider is among `answering`: what one of them holds may lie just there."""
        return self.owners(self.missing_of(answering))

    def missing_of(self, answering: Collection[str]) -> frozenset[str]:
        """Providers that are not among `answering`; an empty one that was left, or given nothing yet, holds nothing."""
        idle = {name for name in self.free if name in self.facts and self.facts[name].drain} | self.unused() & self.free
        return frozenset(self.facts.keys() - answering - idle)

    @property
    def silent_most(self) -> int:
        """Owners that may be `silent` while every durable head is seen all the same."""
        return self.n - self.k

    def is_safe_now(self, segment: SegmentInfo) -> bool:
        """Whether `safe` distinct owners hold shares of it and can give them back."""
        lost = self.lost()
        held = (share.provider for share in segment.shares if share.stored and share.provider not in lost)
        return self.owners(held) >= self.safe

    def away(self) -> frozenset[str]:
        """Providers that are given no new shares now: down, refusing to store, their place not known to be ours, or
        suspended.

        A suspension counts while there are enough others: a share at a doubtful provider is better than none.
        """
        gone = self._down() | self.refusing().keys() | (self.facts.keys() - self.taken)
        suspended = self.suspended() - gone
        others = [name for name in self.homes if name not in gone and name not in suspended]
        enough = len(others) >= self.n and self.owners(others) >= self.safe
        return frozenset(gone | suspended if enough else gone)

    def refusing(self) -> dict[str, str]:
        """Providers that are up and have lately refused to store what they were given, and why."""
        states = self.transfer.states().items()
        return {name: state.error for name, state in states if name in self.facts and state.writes == "refused"}

    def trouble(self, provider: str) -> str:
        """What is wrong with one, "" for nothing that is known."""
        state = self.transfer.states().get(provider)
        return self.foreign.get(provider) or (state.error if state is not None else "")

    def lost(self) -> frozenset[str]:
        """Providers that are known to give back nothing now: down, or their place empty or somebody else's."""
        return frozenset(self._down() | self.free | self.foreign.keys())

    @property
    def vacant(self) -> frozenset[str]:
        """Providers whose place was found empty and is to be taken."""
        return frozenset(name for name in self.free if name in self.facts and not self.facts[name].drain)

    @property
    def unnoted(self) -> frozenset[str]:
        """Of these, such that count as holding what they were given."""
        return self.vacant - self.noted

    @property
    def keepers(self) -> tuple[str, ...]:
        """Providers that are to keep what they are given, whatever is known of their places."""
        return tuple(name for name, facts in self.facts.items() if not facts.drain)

    @property
    def homes(self) -> tuple[str, ...]:
        """Providers whose place is ours and that are to keep what they are given."""
        return tuple(name for name in self.keepers if name in self.taken)

    def _down(self) -> set[str]:
        states = self.transfer.states()
        return {name for name in self.providers if name in states and states[name].is_down}

    # --- where shares go ----------------------------------------------------------------------------------------------

    def place(self, rotation: int) -> tuple[str, ...]:
        """Providers for the n shares of a new segment (see `placement.place`)."""
        with self._naming_refusals():
            return placement.place(
                self.n,
                self.k,
                tuple(self.facts.values()),
                safe=self.safe,
                rotation=rotation,
                away=self.away(),
                policy=self.policy,
                weights=self.weights,
                measures=self._measures(),
            )

    def spare(
        self, segment: SegmentInfo, wanted: Sequence[int], rotation: int, shunned: Collection[str] = frozenset()
    ) -> tuple[dict[int, str], IcnfsError | None]:
        """By index, who may take shares `wanted` of a segment now, and what stands in the way of those left out.

        Nobody of `shunned` is chosen, nor who is away; the other shares count where they lie, or were to lie.
        """
        holders: list[str | None] = [share.provider for share in segment.shares]
        everybody = list(holders)
        for index in wanted:
            everybody[index] = None
        try:
            places = self._refill(everybody, rotation, shunned)
            return {index: places[index] for index in wanted}, None
        except (ConfigError, TooFewProvidersError) as error:
            obstacle = error
        found: dict[int, str] = {}
        for index in wanted if len(wanted) > 1 else ():
            try:
                places = self._refill([*holders[:index], None, *holders[index + 1 :]], rotation, shunned)
            except (ConfigError, TooFewProvidersError):
                continue
            holders[index] = found[index] = places[index]
        return found, obstacle

    def _refill(self, holders: Sequence[str | None], rotation: int, shunned: Collection[str]) -> tuple[str, ...]:
        with self._naming_refusals():
            return placement.refill(
                holders,
                self.k,
                tuple(self.facts.values()),
                safe=self.safe,
                rotation=rotation,
                away=self.away().union(shunned),
                policy=self.policy,
                weights=self.weights,
                measures=self._measures(),
            )

    @contextmanager
    def _naming_refusals(self) -> Iterator[None]:
        """Where too few can take shares, those that could and refuse are named with the reason."""
        try:
            yield
        except TooFewProvidersError as error:
            refusals = "".join(f"; provider {name} refuses: {why}" for name, why in sorted(self.refusing().items()))
            raise TooFewProvidersError(f"{error}{refusals}") from None

    def held_back(self, share_len: int, providers: Iterable[str], fetched: int = 0) -> float:
        """Seconds for which the TOML's rates may hold back one share for each of `providers`, and `fetched` shares.

        As much may be on its way for each of SEGMENTS_AT_ONCE.
        """
        to = [self.facts[name] for name in providers if name in self.facts]
        seconds = max((share_len / one.upload for one in to if one.upload), default=0.0)
        if self.upload:
            seconds += len(to) * share_len / self.upload
        if fetched:
            seconds += max((share_len / one.download for one in self.facts.values() if one.download), default=0.0)
            seconds += fetched * share_len / self.download if self.download else 0.0
        return SEGMENTS_AT_ONCE * seconds

    def _measures(self) -> dict[str, Measure]:
        return {
            name: Measure(state.latency_s, state.free_bytes)
            for name, state in self.transfer.states().items()
            if name in self.facts
        }

    @property
    def unsure(self) -> frozenset[str]:
        """Providers of which it is not known that they still hold what they were given, for a reason."""
        return frozenset(self.doubts())

    def doubts(self) -> dict[str, str]:
        """These providers, and what each may have done."""
        emptied = self.doubted.keys() | self.foreign.keys() | self.vacant | self.moved | self.gone_back
        return dict.fromkeys(emptied, "may have lost what it held")

    @property
    def doubtful(self) -> frozenset[str]:
        """Providers whose place is to be looked at again, and that answer."""
        return frozenset(self.doubted.keys() - self._down())

    def doubt(self, provider: str) -> trio.Event:
        """Have a place looked at again; the event is set when that was tried, or it is not one of ours any more."""
        return self.doubted.setdefault(provider, trio.Event())

    def acknowledge(self, provider: str, head: str) -> None:
        """`provider` says that it stored a head.  In doubt it is one from before the doubt that is looked for."""
        if provider not in self.doubted and provider not in self.gone_back:
            self.acknowledged[provider] = max(self.acknowledged.get(provider, ""), head)

    def forgo(self, provider: str, name: str) -> None:
        """An object is about to be deleted there: if it is a head, it is missed no more."""
        if self.acknowledged.get(provider) == name:
            del self.acknowledged[provider]

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
                if provider in states and states[provider].is_down:
                    nursery.start_soon(ask, provider)

    # --- what providers see -------------------------------------------------------------------------------------------

    def token(self, provider: str) -> bytes:
        """What stands for `provider` in its marker and binds its heads to it."""
        return self.names.place_token(provider)

    def share_names(self, segment: bytes, providers: Sequence[str]) -> tuple[str, ...]:
        """The objects that hold a segment's shares, by index."""
        return tuple(self.share_name(segment, index, provider) for index, provider in enumerate(providers))

    def names_of(self, segment: SegmentInfo) -> tuple[str, ...]:
        """The objects that hold the shares of a segment, by index."""
        return self.share_names(segment.id, [share.provider for share in segment.shares])

    def share_name(self, segment: bytes, index: int, provider: str) -> str:
        """The object that holds share `index` of a segment at `provider`."""
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


def start_transfer(specs: Sequence[ProviderSpec], limits: Limits) -> AbstractAsyncContextManager[Transfer]:
    """The transfer process."""
    from icnfs.transfer.client import TransferClient

    return TransferClient.start(specs, limits=limits)
