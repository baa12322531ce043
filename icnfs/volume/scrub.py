"""Scrubbing: every share of the volume looked at, now: by its root, or byte for byte.

By its *root*: the list of leaf hashes, which must give the root that the records have, and one leaf drawn at random.
In *full*: every byte.  What is found wrong is confirmed, noted and restored as the audit's findings are (`findings`).

It gives way: few checks at a time at each provider, behind all that anybody waits for, and no more bytes a second than
it is allowed.  How far it is is kept, so that it goes on after an interrupt, a crash or a remount.  A provider that is
down is not asked, and its shares are counted apart, for nothing of them is verified.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import msgspec
import trio

from icnfs.erasure.hashtree import leaf_count
from icnfs.errors import IcnfsError, UsageError
from icnfs.format import share as share_format
from icnfs.format.segment import SegmentInfo
from icnfs.limits import LEAF_SIZE
from icnfs.providers.line import Line, take
from icnfs.state.store import Store
from icnfs.transfer.checks import ALTERED, DOWN, MISSING, PRESENT, UNKNOWN
from icnfs.volume.fence import keep
from icnfs.volume.findings import Findings
from icnfs.volume.network import Network
from icnfs.volume.orphans import OrphanReport
from icnfs.volume.repair import Holders, Repair

log = logging.getLogger(__name__)

SETTINGS: Final = {False: "scrub", True: "scrub-full"}
"""The setting that holds how far the one by roots is, and the full one."""

LACKING: Final = "lacking"
"""Known before not to be stored, and waiting to be restored."""

AT_ONCE: Final = 2
"""Checks at one provider at a time: a third of what a reader of bulk may have under way there."""

SEGMENTS_AT_ONCE: Final = 64
"""Segments begun: of those that wait to be looked at a second time nobody is asked anything."""

SAVE_SECONDS: Final = 10.0
"""What a crash may make it forget."""

BAD_MAX: Final = 10_000
"""Bad shares of which it is remembered which they are, to tell in the end what became of them."""

TURNS_MAX: Final = 3
"""Looks at a share that is moved or restored while it is looked at."""


class Kept(msgspec.Struct, array_like=True):
    """How far it is: all segments up to `at` are done; `counts` by provider and outcome."""

    begun: float
    at: bytes = b""
    counts: dict[str, dict[str, int]] = {}
    read: int = 0
    bad: list[tuple[bytes, int]] = []


@dataclass(frozen=True)
class ScrubProgress:
    """Bytes to be looked at, as planned, and those of them that are done; shares left."""

    done: int
    total: int
    shares_left: int


@dataclass(frozen=True)
class ScrubReport:
    """What came of it.  `counts` of shares are by provider and outcome (`checks`, and "lacking").

    Of the bad ones so many are `restored` by now, `queued` to be, and `beyond` it, for too few others are left; `down`
    are the providers that were not asked, or did not answer.
    """

    full: bool
    resumed: bool
    begun: float
    shares: int
    read_bytes: int
    counts: dict[str, dict[str, int]]
    restored: int
    queued: int
    beyond: int
    down: tuple[str, ...]
    strays: OrphanReport | None = None
    """What else lies at the providers; None where that could not be found out."""
    bad_slots: int = 0
    """Key slots that were missing or altered, and are stored anew."""

    def count(self, *outcomes: str) -> int:
        """Shares with one of these outcomes."""
        return sum(there.get(outcome, 0) for there in self.counts.values() for outcome in outcomes)

    @property
    def is_good(self) -> bool:
        """Whether every share was looked at, and they and the key slots are what was stored."""
        return self.count(PRESENT) == self.shares and not self.bad_slots


@dataclass
class _Result:
    """What came of one segment."""

    counts: list[tuple[str, str]] = field(default_factory=list)
    read: int = 0
    bad: list[tuple[bytes, int]] = field(default_factory=list)


class Scrub:
    """The scrubs of one volume, one at a time; `now` is Unix time in seconds."""

    def __init__(
        self,
        store: Store,
        network: Network,
        repair: Repair,
        findings: Findings,
        find: Callable[[bytes], SegmentInfo | None],
        *,
        rng: random.Random | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        """`find` gives the present description of a segment, None where nothing names it any more."""
        self._store = store
        self._network = network
        self._repair = repair
        self._findings = findings
        self._find = find
        self._rng = rng or random.Random(secrets.token_bytes(16))
        self._now = now or time.time
        self._busy = False

    async def run(
        self,
        *,
        full: bool = False,
        restart: bool = False,
        rate: int = 0,
        progress: Callable[[ScrubProgress], None] = lambda _: None,
    ) -> ScrubReport:
        """Look at all shares, from where the last one broke off unless to `restart`; at most `rate` bytes a second.

        0 for no bound.  Raises `UsageError` where one is under way or the mount may note nothing; `LocalDiskError` and
        `FencedError`, and then it goes on another time, as after being cancelled.
        """
        if self._store.fenced is not None:
            raise self._store.fenced
        if self._store.read_only:
            raise UsageError("the volume is mounted read-only, and what a scrub finds could not be noted")
        if self._busy:
            raise UsageError("the volume is being scrubbed already; wait for it, or interrupt it")
        self._busy = True
        try:
            found = None if restart else _load(self._store, SETTINGS[full])
            kept = found or Kept(self._now())
            await self._network.wake()
            log.info("scrubbing full=%s resumed=%s", full, found is not None)
            await _Walk(self, kept, full, rate, progress).run()
            await keep(self._store, SETTINGS[full], b"")
            return self._report(kept, full, found is not None)
        finally:
            self._busy = False

    def _report(self, kept: Kept, full: bool, resumed: bool) -> ScrubReport:
        known_bad = self._findings.bad()
        restored = queued = beyond = 0
        for id, index in kept.bad:
            segment = self._find(id)
            if segment is None:
                continue
            if not segment.shares[index].stored:
                queued += 1
            elif index in known_bad.get(id, {}):
                beyond += 1
            else:
                restored += 1
        down = sorted(name for name, counts in kept.counts.items() if counts.get(DOWN))
        shares = sum(sum(counts.values()) for counts in kept.counts.values())
        return ScrubReport(
            full, resumed, kept.begun, shares, kept.read, kept.counts, restored, queued, beyond, tuple(down)
        )


class _Walk:
    """One run over all segments, in the order of their ids."""

    def __init__(
        self, scrub: Scrub, kept: Kept, full: bool, rate: int, progress: Callable[[ScrubProgress], None]
    ) -> None:
        self._scrub = scrub
        self._kept = kept
        self._full = full
        self._line = Line(rate)
        self._progress = progress
        self._places: dict[str, trio.Semaphore] = {}
        self._ids: list[bytes] = []
        self._results: dict[int, _Result] = {}
        self._next = 0
        self._done = self._total = self._left = 0
        self._failure: IcnfsError | None = None

    async def run(self) -> None:
        await trio.to_thread.run_sync(self._plan, self._scrub._repair.held())
        self._tell()
        limit = trio.CapacityLimiter(SEGMENTS_AT_ONCE)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._save_now_and_then)
                async with trio.open_nursery() as segments:
                    for position, id in enumerate(self._ids):
                        token = object()
                        await limit.acquire_on_behalf_of(token)
                        segments.start_soon(self._visit, position, id, limit, token, nursery.cancel_scope)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._save()
        if self._failure is not None:
            raise self._failure

    def _plan(self, held: Sequence[tuple[bytes, tuple[Holders, int]]]) -> None:
        """In a thread: what is to be looked at, and how much that is."""
        ids = sorted(id for id, _ in held)
        first = bisect_right(ids, self._kept.at)
        self._ids = ids[first:]
        rest = set(self._ids)
        for id, (group, length) in held:
            shares = len(group.providers)
            self._total += shares * self._cost(length)
            if id in rest:
                self._left += shares
            else:
                self._done += shares * self._cost(length)

    def _cost(self, length: int) -> int:
        """Bytes that looking at a share of this length takes."""
        if self._full:
            return share_format.file_size(length)
        return share_format.header_size(length) + min(length, LEAF_SIZE)

    # --- one segment --------------------------------------------------------------------------------------------------

    async def _visit(
        self, position: int, id: bytes, limit: trio.CapacityLimiter, token: object, everything: trio.CancelScope
    ) -> None:
        result = _Result()
        try:
            segment = self._scrub._find(id)
            if segment is not None:
                async with trio.open_nursery() as nursery:
                    for index in range(segment.n):
                        nursery.start_soon(self._look, segment.id, index, result, everything)
            self._results[position] = result
            self._advance()
        finally:
            limit.release_on_behalf_of(token)

    async def _look(self, id: bytes, index: int, result: _Result, everything: trio.CancelScope) -> None:
        try:
            await self._look_at(id, index, result)
        except IcnfsError as error:
            self._failure = self._failure or error
            everything.cancel()
            await trio.lowlevel.checkpoint()

    async def _look_at(self, id: bytes, index: int, result: _Result) -> None:
        """Look at a share where it lies; once more where it has moved or was restored meanwhile."""
        for turn in range(TURNS_MAX):
            segment = self._scrub._find(id)
            if segment is None:
                return  # nothing names it any more
            share = segment.shares[index]
            if not share.stored:
                result.counts.append((share.provider, LACKING))
                return
            outcome, contradicted = DOWN, False
            if share.provider not in self._scrub._network.lost():
                looked = await self._scrub._findings.examine(segment, index, self._leaves(segment), self._gate)
                outcome, contradicted = looked.outcome, looked.outcome == UNKNOWN and looked.bytes > 0
                result.read += looked.bytes
            if turn == 0:
                self._done += self._cost(segment.share_len)
                self._left -= 1
                self._tell()
            if contradicted and turn + 1 < TURNS_MAX:
                continue
            now = self._scrub._find(id)
            if outcome in (MISSING, ALTERED) and (now is None or now.shares[index].provider != share.provider):
                continue
            result.counts.append((share.provider, outcome))
            if outcome in (MISSING, ALTERED):
                result.bad.append((id, index))
            return

    def _leaves(self, segment: SegmentInfo) -> Sequence[int]:
        return () if self._full else (self._scrub._rng.randrange(leaf_count(segment.share_len)),)

    @asynccontextmanager
    async def _gate(self, provider: str, length: int) -> AsyncIterator[None]:
        """For the time of one check of a share of this length."""
        async with self._places.setdefault(provider, trio.Semaphore(AT_ONCE)):
            await take([self._line], self._cost(length))
            yield

    # --- how far it is ------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Count the segments that are done, up to the first that is not."""
        kept = self._kept
        while (result := self._results.pop(self._next, None)) is not None:
            for provider, outcome in result.counts:
                there = kept.counts.setdefault(provider, {})
                there[outcome] = there.get(outcome, 0) + 1
            kept.read += result.read
            kept.bad += result.bad[: BAD_MAX - len(kept.bad)]
            kept.at = self._ids[self._next]
            self._next += 1

    def _tell(self) -> None:
        self._progress(ScrubProgress(min(self._done, self._total), self._total, max(self._left, 0)))

    async def _save_now_and_then(self) -> None:
        while True:
            await trio.sleep(SAVE_SECONDS)
            await self._save()

    async def _save(self) -> None:
        """Keep how far it is; where that cannot be, more of it is done again, and nothing else."""
        try:
            await keep(self._scrub._store, SETTINGS[self._full], msgspec.msgpack.encode(self._kept))
        except IcnfsError as error:
            log.warning("how far the scrub is could not be kept: %s", error)


def _load(store: Store, name: str) -> Kept | None:
    """How far one was that broke off; None where there is none, or what was kept cannot be read."""
    raw = store.get_setting(name)
    if not raw:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("how far the scrub was cannot be read, and it begins anew: %s", error)
        return None
