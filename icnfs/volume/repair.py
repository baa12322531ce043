"""Completing segments: shares that a provider missed are rebuilt from k others and stored when it returns.

It keeps the list of segments that lack shares; `sync` waits until `safe` distinct owners hold each, `status` shows it.
A share is put where it was meant to be; moving shares of a provider that is gone for good is not done here.

It also knows, of every segment, who holds it (some 120 bytes each, 8 MB for each TB of contents): what is at risk when
providers go down is counted at once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import trio

from icnfs.errors import IcnfsError
from icnfs.format.segment import SegmentInfo
from icnfs.volume.network import Network

log = logging.getLogger(__name__)

COMPLETE_SECONDS: Final = 300.0
"""Bound of completing one segment."""

ROUND: Final = 32
"""Segments completed between two notes to the local state."""


@dataclass
class _Group:
    """How many segments exactly these providers hold."""

    holders: tuple[str, ...]
    segments: int = 0


class Risk(NamedTuple):
    """Shares at providers that are lost, and segments that fewer than `safe` distinct owners are left to hold."""

    shares: int
    segments: int


class Repair:
    """The segments that lack shares, by id."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.lacking: dict[bytes, SegmentInfo] = {}
        self._holders: dict[bytes, tuple[str, ...]] = {}
        self._groups: dict[tuple[str, ...], _Group] = {}
        self.changed = trio.Event()
        """Set, and replaced, whenever `lacking` shrinks."""

    def note(self, segments: Iterable[SegmentInfo]) -> None:
        """Look at segments that were just stored, loaded or completed."""
        for segment in segments:
            self._count(segment)
            if segment.missing():
                self.lacking[segment.id] = segment
            elif self.lacking.pop(segment.id, None) is not None:
                self.changed.set()
                self.changed = trio.Event()

    def load(self, segments: Iterable[SegmentInfo]) -> None:
        """`note` what an earlier moment knew: of segments that were noted since, that is known better."""
        self.note(segment for segment in segments if segment.id not in self._holders)

    def drop(self, ids: Iterable[bytes]) -> None:
        """These segments are named by nothing any more."""
        for id in ids:
            self.lacking.pop(id, None)
            held = self._holders.pop(id, None)
            if held is not None:
                self._groups[held].segments -= 1

    def _count(self, segment: SegmentInfo) -> None:
        held = tuple(sorted(share.provider for share in segment.shares if share.stored))
        group = self._groups.setdefault(held, _Group(held))
        before = self._holders.get(segment.id)
        if before is not None:
            self._groups[before].segments -= 1
        group.segments += 1
        self._holders[segment.id] = group.holders

    def at_risk(self, lost: Collection[str]) -> Risk:
        """What would be gone if the providers `lost` never came back, and what is not stored anyhow."""
        shares = segments = 0
        for held, group in self._groups.items():
            shares += group.segments * sum(provider in lost for provider in held)
            if self._network.owners(provider for provider in held if provider not in lost) < self._network.safe:
                segments += group.segments
        return Risk(shares, segments)

    @property
    def unsafe(self) -> list[SegmentInfo]:
        """Segments that fewer than `safe` distinct owners hold."""
        return [segment for segment in self.lacking.values() if not self._network.is_safe(segment)]

    def lacking_at(self) -> dict[str, int]:
        """By provider, how many shares it should hold and does not."""
        counts: dict[str, int] = {}
        for segment in self.lacking.values():
            for index in segment.missing():
                provider = segment.shares[index].provider
                counts[provider] = counts.get(provider, 0) + 1
        return counts

    async def round(self) -> list[SegmentInfo]:
        """Complete up to ROUND segments as far as providers are there now; those that gained shares."""
        away = self._network.away()
        gained: list[SegmentInfo] = []
        for segment in list(self.lacking.values()):
            missing = [index for index in segment.missing() if segment.shares[index].provider not in away]
            missing = [index for index in missing if segment.shares[index].provider in self._network.facts]
            if not missing:
                continue
            completed = await self._complete(segment, missing)
            if completed != segment:
                gained.append(completed)
            if len(gained) >= ROUND:
                break
        return gained

    async def _complete(self, segment: SegmentInfo, missing: list[int]) -> SegmentInfo:
        """The segment as it is after trying; errors are logged, for the next round tries again."""
        providers = [segment.shares[index].provider for index in missing]
        names = self._network.names_of(segment)
        try:
            result = await self._network.transfer.complete_segment(
                segment, names, missing, providers, [names[index] for index in missing], deadline=COMPLETE_SECONDS
            )
        except IcnfsError as error:
            log.warning("segment %s cannot be completed yet: %s", segment.id.hex(), error)
            return segment
        shares = list(segment.shares)
        for index in missing:
            if index not in result.errors and result.roots[index] == shares[index].root:
                shares[index] = msgspec.structs.replace(shares[index], stored=True)
        return msgspec.structs.replace(segment, shares=tuple(shares))
