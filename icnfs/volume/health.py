"""The health of segments, as one table: what the shares that are left, and where they are, mean for the contents.

    a share is    when                                                          gives its bytes    counts as held
    present       stored, where it may be, at a provider that answers           now                yes
    astray        stored at a provider that answers, out of policy              now                no
    away          stored at a provider that is down, suspended, not known yet,  perhaps later      no
                  found empty or foreign, or no longer named by the TOML
    missing       not stored, or found missing                                  never              no
    altered       found altered, and not stored anew yet                        never              no

    a segment is  when, and no line above it holds
    lost          fewer than k of its shares ever give their bytes
    safe          `safe` distinct owners have one that counts as held: any `safe` - k of them may vanish
    degraded      whichever owner vanishes next, k shares are left that give their bytes now
    at risk       else: k are left and no more, or what is away keeps it above that

Owners count, not shares: two at one owner vanish together.  Pure, but for `Health`, which asks network and repair.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import trio

from icnfs import placement
from icnfs.format.segment import SegmentInfo
from icnfs.volume.network import Network
from icnfs.volume.repair import Holders, Repair

LOOK_STEP: Final = 4096
"""Segments looked at between two turns of requests, about 1 us each."""

SHARES_SHOWN: Final = 12_000
"""Shares in one answer: some 150 bytes each, a fifth of what an answer may have."""


class ShareState(StrEnum):
    """What a share is; see the module."""

    PRESENT = "present"
    ASTRAY = "astray"
    AWAY = "away"
    MISSING = "missing"
    ALTERED = "altered"


class Verdict(StrEnum):
    """What a segment is; see the module."""

    SAFE = "safe"
    DEGRADED = "degraded"
    AT_RISK = "at risk"
    LOST = "lost"


@dataclass(frozen=True)
class Meaning:
    """What a share that is so is worth."""

    now: bool
    """Whether it gives its bytes now."""
    ever: bool
    """Whether it may give them, now or later."""
    held: bool
    """Whether its owner counts as holding one."""


TABLE: Final[Mapping[ShareState, Meaning]] = {
    ShareState.PRESENT: Meaning(now=True, ever=True, held=True),
    ShareState.ASTRAY: Meaning(now=True, ever=True, held=False),
    ShareState.AWAY: Meaning(now=False, ever=True, held=False),
    ShareState.MISSING: Meaning(now=False, ever=False, held=False),
    ShareState.ALTERED: Meaning(now=False, ever=False, held=False),
}

RANK: Final = {Verdict.LOST: 0, Verdict.AT_RISK: 1, Verdict.DEGRADED: 2, Verdict.SAFE: 3}
"""The worst first."""


def judge(shares: Iterable[tuple[str, ShareState]], k: int, safe: int) -> Verdict:
    """The verdict on a segment, from (owner, state) of each share; shares that are missing may be left out."""
    means = [(owner, TABLE[state]) for owner, state in shares]
    if sum(meaning.ever for _, meaning in means) < k:
        return Verdict.LOST
    if len({owner for owner, meaning in means if meaning.held}) >= safe:
        return Verdict.SAFE
    now = Counter(owner for owner, meaning in means if meaning.now)
    spare = now.total() - max(now.values(), default=0) >= k
    return Verdict.DEGRADED if spare else Verdict.AT_RISK


@dataclass(frozen=True)
class HealthCounts:
    """Segments by verdict."""

    safe: int = 0
    degraded: int = 0
    at_risk: int = 0
    lost: int = 0


@dataclass(frozen=True)
class ShareHealth:
    """One share of a segment."""

    index: int
    provider: str
    owner: str
    state: ShareState


@dataclass(frozen=True)
class SegmentHealth:
    """One segment, by its id in hexadecimal, and its shares by index."""

    id: str
    verdict: Verdict
    shares: tuple[ShareHealth, ...]


@dataclass(frozen=True)
class HealthPage:
    """Segments that are not safe, the worst first; `after` is where the next page begins, "" after the last."""

    segments: tuple[SegmentHealth, ...]
    after: str


@dataclass(frozen=True)
class ProviderHealth:
    """One provider: its `state` is as in `icnfs status`; it holds `shares` and should hold `missing` more.

    `standing`, since when (Unix time, ns) and its `reason` are as in `trust`; `right` is the part of its last answers
    that were right, `there` the part of the time of late that it was there; `outcomes` counts those of all checks.
    """

    name: str
    owner: str
    state: str
    shares: int
    missing: int
    standing: str = ""
    since_ns: int = 0
    reason: str = ""
    right: float = 1.0
    there: float = 1.0
    outcomes: Mapping[str, int] = field(default_factory=dict)


Bad = Mapping[bytes, Mapping[int, ShareState]]
"""By segment and index, the shares that were found missing or altered and are not stored anew."""


class Health:
    """The health of all segments that `repair` knows of, now; made anew for each look."""

    def __init__(
        self,
        network: Network,
        repair: Repair,
        find: Callable[[bytes], SegmentInfo | None],
        bad: Bad,
        suspended: Iterable[str] = (),
    ) -> None:
        """`find` gives the present description of a segment; nothing is expected of providers that are `suspended`."""
        self._network = network
        self._repair = repair
        self._find = find
        self._bad = bad
        states = network.transfer.states()
        unknown = {name for name in network.facts if name not in states or states[name].state == "unknown"}
        self._away = network.lost().union(unknown, suspended)
        self._verdicts = {group.providers: self._judge_group(group) for group in repair.groups()}

    def counts(self) -> HealthCounts:
        """How many segments have which verdict: by the few sets of holders, and one by one where a share is bad."""
        counts: Counter[Verdict] = Counter()
        for group in self._repair.groups():
            counts[self._verdicts[group.providers]] += group.segments
        for segment, verdict in self._apart():
            counts[self._of_group(segment)] -= 1
            counts[verdict] += 1
        return HealthCounts(
            counts[Verdict.SAFE], counts[Verdict.DEGRADED], counts[Verdict.AT_RISK], counts[Verdict.LOST]
        )

    async def page(self, after: str, most: int) -> HealthPage:
        """Up to `most` segments that are not safe, from `after` on: "" or what the last page said."""
        apart = dict(self._apart())
        found: list[tuple[int, bytes]] = []
        begin = _place(after)
        for looks, (segment, (group, _)) in enumerate(self._repair.held(), 1):
            if looks % LOOK_STEP == 0:
                await trio.lowlevel.checkpoint()
            verdict = apart.get(segment) or self._verdicts.get(group.providers) or self._judge_group(group)
            if verdict is not Verdict.SAFE and (RANK[verdict], segment) > begin:
                found.append((RANK[verdict], segment))
        most = max(1, min(most, SHARES_SHOWN // self._network.n))
        shown = heapq.nsmallest(most, found)
        segments = []
        for _, segment in shown:
            await trio.lowlevel.checkpoint()
            if (info := self._find(segment)) is not None:
                segments.append(self._segment(info))
        return HealthPage(tuple(segments), f"{shown[-1][0]}-{shown[-1][1].hex()}" if len(found) > most else "")

    # --- one segment --------------------------------------------------------------------------------------------------

    def _segment(self, info: SegmentInfo) -> SegmentHealth:
        shares = self._shares(info)
        verdict = judge([(share.owner, share.state) for share in shares], info.k, self._network.safe)
        return SegmentHealth(info.id.hex(), verdict, shares)

    def _shares(self, info: SegmentInfo) -> tuple[ShareHealth, ...]:
        states = self._states([(share.provider, share.stored) for share in info.shares])
        bad = self._bad.get(info.id, {})
        return tuple(
            ShareHealth(index, share.provider, self._owner(share.provider), bad.get(index, state))
            for index, (share, state) in enumerate(zip(info.shares, states, strict=True))
        )

    def _states(self, held: Sequence[tuple[str, bool]]) -> list[ShareState]:
        network = self._network
        astray = placement.misplaced(held, network.k, network.facts, network.policy)
        return [self._state(name, stored, index in astray) for index, (name, stored) in enumerate(held)]

    def _state(self, provider: str, stored: bool, astray: bool) -> ShareState:
        if not stored:
            return ShareState.MISSING
        if provider in self._away or provider not in self._network.facts:
            return ShareState.AWAY
        return ShareState.ASTRAY if astray else ShareState.PRESENT

    def _judge_group(self, group: Holders) -> Verdict:
        states = self._states([(name, True) for name in group.providers])
        owners = map(self._owner, group.providers)
        return judge(zip(owners, states, strict=True), self._network.k, self._network.safe)

    def _owner(self, provider: str) -> str:
        facts = self._network.facts.get(provider)
        return facts.owner if facts is not None else ""

    def _apart(self) -> list[tuple[bytes, Verdict]]:
        """Segments with a share that is known to be bad, and their verdicts."""
        found = [(segment, self._find(segment)) for segment in self._bad if self._repair.holders(segment) is not None]
        return [(segment, self._segment(info).verdict) for segment, info in found if info is not None]

    def _of_group(self, segment: bytes) -> Verdict:
        group = self._repair.holders(segment)
        assert group is not None
        return self._verdicts[group.providers]


def _place(after: str) -> tuple[int, bytes]:
    """Where a page begins; anything that no page said is the beginning."""
    rank, _, segment = after.partition("-")
    try:
        return int(rank), bytes.fromhex(segment)
    except ValueError:
        return -1, b""
