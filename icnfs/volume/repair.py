"""Putting shares where they belong: those that are missing, and those that lie where the policy allows none.

A share is *missing* while no provider holds it.  It is rebuilt from k others and stored where it was meant to be, or,
while that provider is away or loses it again and again (see `mended`), at another that the policy allows.  It is
*astray* at a provider that the present policy or the TOML gives no share, or too many: it is stored elsewhere before
its old place is forgotten.  What is only down for now is left alone: its shares come back with it.

It knows, of every segment, who holds it (some 150 bytes each, 9 MB for each TB of contents): what is at risk when
providers go down, what lies astray under another policy and who holds how much is counted at once, by the few sets of
holders that there are.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import trio

from icnfs import placement
from icnfs.errors import IcnfsError, TooFewProvidersError
from icnfs.format.segment import SegmentInfo
from icnfs.transfer.messages import ShareEvent
from icnfs.volume.emptied import Emptied
from icnfs.volume.mended import Mended
from icnfs.volume.network import Network
from icnfs.volume.together import together

log = logging.getLogger(__name__)

COMPLETE_SECONDS: Final = 300.0
"""Bound of restoring the shares of one segment; more where the TOML sets a rate."""

ROUND: Final = 32
"""Segments restored between two notes to the local state."""

AT_ONCE: Final = 3
"""Segments restored at the same time: each takes its k shares in the transfer process's memory."""

LOOKS: Final = 256
"""Segments looked at in one round, 50 to 200 us each, where nothing can be done for most."""

FAILURES: Final = 8
"""Segments that may fail in one round: what stands in their way stands in that of others."""


LATE_MAX: Final = 10_000
"""Shares on their way of which it is remembered what became of them."""


@dataclass(eq=False)
class Holders:
    """Segments that exactly these providers hold, one of whom may hold several shares."""

    providers: tuple[str, ...]
    astray: bool = False
    """Whether a share of each is to move."""
    segments: int = 0
    share_bytes: int = 0
    """The sum of their shares' lengths, of each provider."""


class Risk(NamedTuple):
    """Shares at providers that are lost, and segments that fewer than `safe` distinct owners are left to hold."""

    shares: int
    segments: int


class Gain(NamedTuple):
    """A segment as it was known, and as it is after shares of it were stored."""

    before: SegmentInfo
    after: SegmentInfo

    def carried(self, now: SegmentInfo) -> SegmentInfo:
        """`now`, with the shares that were stored, but for those of which something else became meanwhile."""
        shares = tuple(
            new if present == old else present
            for old, new, present in zip(self.before.shares, self.after.shares, now.shares, strict=True)
        )
        return msgspec.structs.replace(now, shares=shares)


class Repair:
    """The segments that lack shares, by id, and who holds what."""

    def __init__(self, network: Network, find: Callable[[bytes], SegmentInfo | None] = lambda _: None) -> None:
        """`find` gives the present description of a segment, None where nothing names it any more."""
        self._network = network
        self._find = find
        self.lacking: dict[bytes, SegmentInfo] = {}
        self._held: dict[bytes, tuple[Holders, int]] = {}
        self._groups: dict[tuple[str, ...], Holders] = {}
        self.emptied = Emptied()
        self._late: dict[tuple[bytes, int], Counter[str]] = {}
        self._early: dict[tuple[bytes, int], None] = {}
        self._come: dict[tuple[bytes, int], str] = {}
        self._turn = secrets.randbelow(1 << 16)
        self._stuck: set[bytes] = set()
        self._mended = Mended()
        self.hopeless: set[bytes] = set()
        """Segments that lacked shares and of which no k could be had, though nobody who should hold one is down."""
        self.obstacle: IcnfsError | None = None
        """What stood in the way of the last round."""

    # --- what is known ------------------------------------------------------------------------------------------------

    def note(self, segments: Iterable[SegmentInfo]) -> None:
        """Look at segments that were just stored, loaded or restored."""
        for segment in segments:
            self._count(segment)
            if segment.missing():
                self.lacking[segment.id] = segment
            else:
                self._settled(segment.id)

    def load(self, segments: Iterable[SegmentInfo]) -> None:
        """`note` what an earlier moment knew: of segments that were noted since, that is known better."""
        self.note(segment for segment in segments if segment.id not in self._held)

    def drop(self, ids: Iterable[bytes]) -> None:
        """These segments are named by nothing any more."""
        for id in ids:
            self._settled(id)
            self._uncount(id)

    def _settled(self, id: bytes) -> None:
        """Nothing is missing: what has come says nothing of what goes missing later."""
        self.hopeless.discard(id)
        if self.lacking.pop(id, None) is not None:
            for key in [key for key in self._come if key[0] == id]:
                del self._come[key]

    def _count(self, segment: SegmentInfo) -> None:
        held = tuple(sorted(_holders(segment)))
        self._uncount(segment.id)
        group = self._groups.get(held)
        if group is None:
            group = self._groups[held] = Holders(held, self._misplaced(held))
        group.segments += 1
        group.share_bytes += segment.share_len
        self._held[segment.id] = (group, segment.share_len)

    def _uncount(self, id: bytes) -> None:
        before = self._held.pop(id, None)
        if before is not None:
            group, length = before
            group.segments -= 1
            group.share_bytes -= length
            if not group.segments:
                self._groups.pop(group.providers, None)

    def _misplaced(self, held: tuple[str, ...]) -> bool:
        network = self._network
        stored = [(name, True) for name in held]
        return bool(placement.misplaced(stored, network.k, network.facts, network.policy))

    def judge_anew(self) -> None:
        """Providers or the policy have changed."""
        self._stuck.clear()
        for group in self._groups.values():
            group.astray = self._misplaced(group.providers)

    def groups(self) -> list[Holders]:
        """All segments, by who holds them."""
        return list(self._groups.values())

    def held(self) -> list[tuple[bytes, tuple[Holders, int]]]:
        """All segments by id, each with who holds it and the length of its shares."""
        return list(self._held.items())

    def ids(self) -> list[bytes]:
        """All segments."""
        return list(self._held)

    def holders(self, id: bytes) -> Holders | None:
        """Who holds a segment, None where it is not known."""
        return self._held[id][0] if id in self._held else None

    def at_risk(self, lost: Collection[str]) -> Risk:
        """What would be gone if the providers `lost` never came back, and what is not stored anyhow."""
        shares = segments = 0
        for held, group in self._groups.items():
            shares += group.segments * sum(provider in lost for provider in held)
            if self._network.owners(provider for provider in held if provider not in lost) < self._network.safe:
                segments += group.segments
        return Risk(shares, segments)

    @property
    def unsafe(self) -> bool:
        """Whether fewer than `safe` distinct owners hold a segment that is to be mended: it lacks a share, or one lies
        with a provider that the TOML no longer names."""
        return self.unsafe_but(())

    def unsafe_but(self, given_up: Collection[bytes]) -> bool:
        """Whether it is unsafe for another reason than that these segments lack shares."""
        left = (segment for id, segment in self.lacking.items() if id not in given_up)
        return self._is_gone or any(map(self._is_short, map(_holders, left)))

    @property
    def _is_gone(self) -> bool:
        """Whether too few others hold a segment that lies with a provider that the TOML no longer names."""
        return any(not self._network.facts.keys() >= set(held) and self._is_short(held) for held in self._groups)

    def _is_short(self, held: Iterable[str]) -> bool:
        return self._network.owners(held) < self._network.safe

    @property
    def unsure(self) -> bool:
        """Whether of any segment fewer than `safe` distinct owners hold shares at places beyond doubt."""
        network, unsure = self._network, self._network.unsure
        return bool(unsure) and any(
            network.owners(name for name in held if name not in unsure) < network.safe for held in self._groups
        )

    @property
    def moving(self) -> int:
        """Segments of which a share is to move."""
        return sum(group.segments for group in self._groups.values() if group.astray)

    def lacking_at(self) -> dict[str, int]:
        """By provider, how many shares it should hold and does not."""
        counts: dict[str, int] = {}
        for segment in self.lacking.values():
            for index in segment.missing():
                provider = segment.shares[index].provider
                counts[provider] = counts.get(provider, 0) + 1
        return counts

    def unused(self) -> frozenset[str]:
        """Providers that hold no share, nor is one missing there."""
        used = {name for held in self._groups for name in held} | self.lacking_at().keys()
        return frozenset(self._network.facts.keys() - used)

    # --- shares on their way ------------------------------------------------------------------------------------------

    def expect(self, segment: bytes, late: Iterable[int], emptied: Counter[str]) -> None:
        """These shares are on their way to slow providers: nothing is to be done for them yet.

        `emptied` is `emptied.times` as it was before they were sent: what may have been stored before a place was found
        empty has not come.
        """
        for key in ((segment, index) for index in late):
            if key in self._early:
                del self._early[key]
                if self._come.get(key) in self.emptied.since(emptied):
                    del self._come[key]
            else:
                self._late[key] = emptied

    def heard(self, event: ShareEvent) -> None:
        """What became of a share that was on its way, which may be told before it was said to be late."""
        key, gone = (event.segment, event.index), Counter[str]()
        if key in self._late:
            gone = self.emptied.since(self._late.pop(key))
        else:
            self._early[key] = None
            _bound(self._early)
        if event.what == "stored" and event.provider in self._network.taken and event.provider not in gone:
            self._come[key] = event.provider
            _bound(self._come)

    def lose(self, providers: Collection[str]) -> None:
        """What these were given until now is gone, or may be: none of it counts as stored that was not noted yet."""
        self.emptied.times.update(providers)
        self._come = {key: name for key, name in self._come.items() if name not in providers}

    def arrived(self, segment: SegmentInfo) -> SegmentInfo:
        """A segment that is not noted yet, with those of its late shares that have come by now."""
        come = {index: self._come.pop((segment.id, index), "") for index in segment.missing()}
        there = {index: name for index, name in come.items() if name == segment.shares[index].provider}
        return _with(segment, there) if there else segment

    def arrivals(self) -> list[Gain]:
        """Segments of which shares that were on their way have come."""
        gains: dict[bytes, Gain] = {}
        for (id, index), provider in list(self._come.items()):
            segment = self.lacking.get(id)
            if segment is not None:
                del self._come[id, index]
                if segment.shares[index].provider == provider:
                    after = gains[id].after if id in gains else segment
                    gains[id] = Gain(segment, _with(after, {index: provider}))
        return list(gains.values())

    # --- restoring ----------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is missing or astray."""
        return not self.lacking and not self.moving

    async def round(self) -> list[Gain]:
        """Restore up to ROUND segments as far as providers are there now; those whose shares changed."""
        gained: list[Gain] = []
        failed: list[bytes] = []
        self.obstacle = None

        async def restore(segment: SegmentInfo, to: dict[int, str]) -> None:
            if len(failed) >= FAILURES or not self._network.taken.issuperset(to.values()):
                return
            restored = await self._restore(segment, to)
            if restored != segment:
                gained.append(Gain(segment, restored))
            if any(restored.shares[index].provider != to[index] or not restored.shares[index].stored for index in to):
                failed.append(segment.id)

        tasks = []
        for looks, segment in enumerate(self._waiting(), 1):
            await trio.lowlevel.checkpoint()
            if to := self._destinations(segment):
                tasks.append(partial(restore, segment, to))
            else:
                self._stuck.add(segment.id)
            if len(tasks) >= ROUND or looks >= LOOKS:
                break
        else:
            self._stuck.clear()
        await together(tasks, AT_ONCE)
        self._stuck.update(failed)
        return gained

    def _waiting(self) -> Iterator[SegmentInfo]:
        """Segments with something to do, those in most danger first: that fewest owners who are there hold.

        But for those that rounds since the last full one could do nothing for.
        """
        waiting = [segment for segment in self.lacking.values() if segment.id not in self._stuck]
        yield from sorted(waiting, key=self._left)
        if self.moving:
            astray = [id for id, (group, _) in self._held.items() if group.astray and id not in self.lacking]
            for id in astray:
                found = None if id in self._stuck else self._find(id)
                if found is not None:
                    yield found

    def _left(self, segment: SegmentInfo) -> int:
        """Owners who are there and hold a share."""
        lost = self._network.lost()
        return self._network.owners(s.provider for s in segment.shares if s.stored and s.provider not in lost)

    def _destinations(self, segment: SegmentInfo) -> dict[int, str]:
        """By index, who is to get which of its shares now; empty where nothing can be done, or need be."""
        network, away = self._network, self._network.away()
        astray = placement.misplaced(
            [(share.provider, share.stored) for share in segment.shares], network.k, network.facts, network.policy
        )
        kept = [(share.provider, share.stored and index not in astray) for index, share in enumerate(segment.shares)]
        home: dict[int, str] = {}
        homeless: list[int] = []
        shunned: set[str] = set()
        now = trio.current_time()
        for index, share in enumerate(segment.shares):
            key = segment.id, index
            if key in self._late or key in self._come or kept[index][1]:
                continue
            with_it = [*kept[:index], (share.provider, True), *kept[index + 1 :]]
            fits = not placement.misplaced(with_it, network.k, network.facts, network.policy)
            if self._mended.waits(segment.id, index, share.provider, now):
                shunned.add(share.provider)
                homeless.append(index)
            elif not share.stored and share.provider not in away and fits:
                home[index] = share.provider
                kept = with_it
            else:
                homeless.append(index)
        self._turn += 1
        if not homeless:
            return home
        found, obstacle = network.spare(segment, homeless, self._turn, shunned)
        self.obstacle = obstacle or self.obstacle
        return home | found

    async def _restore(self, segment: SegmentInfo, to: dict[int, str]) -> SegmentInfo:
        """The segment as it is after trying; errors are logged, for a later round tries again."""
        network, indexes = self._network, sorted(to)
        names = network.names_of(segment)
        targets = [network.share_name(segment.id, index, to[index]) for index in indexes]
        deadline = COMPLETE_SECONDS + network.held_back(segment.share_len, to.values(), segment.k)
        try:
            result = await network.transfer.complete_segment(
                segment, names, indexes, [to[index] for index in indexes], targets, deadline=deadline
            )
        except IcnfsError as error:
            self.obstacle = error
            log.warning("segment %s cannot be restored yet: %s", segment.id.hex(), error)
            if isinstance(error, TooFewProvidersError) and network.lost().isdisjoint(_holders(segment)):
                self.hopeless.add(segment.id)
            return segment
        self.hopeless.discard(segment.id)
        for refusal in result.errors.values():
            self.obstacle = refusal
        roots = [share.root for share in segment.shares]
        done = {i: to[i] for i in indexes if i not in result.errors and result.roots[i] == roots[i]}
        for index, provider in done.items():
            self._mended.note(segment.id, index, provider, trio.current_time())
        return _with(segment, done)


def _bound(kept: dict[tuple[bytes, int], Any]) -> None:
    """Forget the oldest: shares of publishes that failed are never asked for again."""
    while len(kept) > LATE_MAX:
        del kept[next(iter(kept))]


def _with(segment: SegmentInfo, stored: dict[int, str]) -> SegmentInfo:
    """The segment, with these shares stored at these providers."""
    shares = list(segment.shares)
    for index, provider in stored.items():
        shares[index] = msgspec.structs.replace(shares[index], provider=provider, stored=True)
    return msgspec.structs.replace(segment, shares=tuple(shares))


def _holders(segment: SegmentInfo) -> tuple[str, ...]:
    return tuple(share.provider for share in segment.shares if share.stored)
