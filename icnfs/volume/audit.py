"""The audit: looking at what providers hold, always and a little at a time (see `sweep`), and how each stands for it.

It runs while the volume is mounted and may be written.  What it has come to, and how providers stand (`trust`), is kept
with the local state every few minutes and with each change of a standing.  A share whose provider is down when its turn
comes is looked at with the next sweep.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import msgspec
import trio

from icnfs.config import AuditRules
from icnfs.errors import IcnfsError
from icnfs.format.segment import SegmentInfo
from icnfs.state.store import Store
from icnfs.transfer.checks import DOWN
from icnfs.volume.fence import keep
from icnfs.volume.findings import Findings
from icnfs.volume.network import Network
from icnfs.volume.repair import Repair
from icnfs.volume.sweep import State, Sweep, Visit
from icnfs.volume.together import together
from icnfs.volume.trust import Change, Record, Standing, Trust

log = logging.getLogger(__name__)

SETTING: Final = "audit"
"""The name of the setting that holds how far it is, and how providers stand."""

STEP_SECONDS: Final = 1.0
"""Between looks for what is due."""

LOOK_SECONDS: Final = 60.0
"""Between looks at which providers are there."""

SAVE_SECONDS: Final = 300.0
"""What a crash may make it forget."""

AHEAD: Final = 512
"""Segments of which the order is known ahead; to find that out, every id is looked at."""

AT_ONCE: Final = 4
"""Segments looked at at the same time, when it is behind."""

VISITS: Final = 16
"""Segments begun in one step."""


class Kept(msgspec.Struct, array_like=True):
    """What is kept over remounts."""

    sweep: State
    providers: dict[str, Record]


class Audit:
    """The audit of one volume; `run` does it.  `now` is Unix time in seconds."""

    def __init__(
        self,
        store: Store,
        network: Network,
        repair: Repair,
        find: Callable[[bytes], SegmentInfo | None],
        rules: Callable[[], AuditRules],
        *,
        rng: random.Random | None = None,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._store = store
        self._network = network
        self._repair = repair
        self._find = find
        self._rules = rules
        self._now = now or _unix
        kept = _load(store)
        self.sweep = Sweep(kept.sweep, rng or random.Random(secrets.token_bytes(16)))
        self.trust = Trust(kept.providers)
        self.trust.adopt(network.facts, self._now())
        self._queue: list[bytes] = []
        self._looked = self._saved = float("-inf")
        self._changed = False

    # --- what providers answered --------------------------------------------------------------------------------------

    def answered(self, provider: str, outcome: str) -> None:
        """The outcome of a check, whoever asked."""
        self._tell([self.trust.answered(provider, outcome, self._now())])

    def look(self) -> None:
        """See which providers are there."""
        states = self._network.transfer.states()
        known = {name: not one.is_down for name, one in states.items() if one.state != "unknown"}
        self.trust.adopt(self._network.facts, self._now())
        self._tell(self.trust.look(known, self._now()))

    def _tell(self, changes: Iterable[Change | None]) -> None:
        for change in changes:
            if change is not None:
                level = logging.WARNING if change.after is Standing.SUSPENDED else logging.INFO
                log.log(
                    level, "provider %s: %s, was %s: %s", change.provider, change.after, change.before, change.reason
                )
                self._changed = True

    # --- looking at shares --------------------------------------------------------------------------------------------

    async def run(self, findings: Findings) -> None:
        """Audit until cancelled."""
        while True:
            await trio.sleep(STEP_SECONDS)
            if trio.current_time() >= self._looked + LOOK_SECONDS:
                self._looked = trio.current_time()
                self.look()
            try:
                if self._rules().enabled and not self._store.read_only:
                    await self.step(findings)
                await self._save()
            except IcnfsError as error:
                log.warning("the audit stands still for now: %s", error)

    async def step(self, findings: Findings) -> int:
        """Look at what is due; how many segments that were."""
        rules, stored = self._rules(), self._stored()
        if not self.sweep.state.begun:
            self.sweep.begin(self._now())
        if not self._queue:
            ids = self._repair.ids()
            self._queue = await trio.to_thread.run_sync(self.sweep.upcoming, ids, AHEAD)
            if not self._queue and self.sweep.is_over(self._now(), rules):
                self.sweep.begin(self._now())
                self._changed = True
        jobs: list[Callable[[], Awaitable[None]]] = []
        while self._queue and len(jobs) < VISITS and self.sweep.is_due(self._queue[0], self._now(), rules):
            segment = self._find(self._queue[0])
            visits = self._visits(segment, stored, rules) if segment is not None else []
            if visits is None:
                break
            self.sweep.spend(sum(visit.cost for visit in visits), self._now())
            self.sweep.visited(self._queue.pop(0))
            if segment is not None:
                jobs.append(partial(self._visit, findings, segment, visits))
            await trio.lowlevel.checkpoint()
        await together(jobs, AT_ONCE)
        return len(jobs)

    def _stored(self) -> int:
        return sum(group.share_bytes * len(group.providers) for group in self._repair.groups())

    def _visits(self, segment: SegmentInfo, stored: int, rules: AuditRules) -> list[Visit] | None:
        """What to look at of the shares that are to be there; None where that is too much for today."""
        gone = self._network.lost()
        indexes = [i for i, share in enumerate(segment.shares) if share.stored and share.provider not in gone]
        return self.sweep.plan(segment.share_len, indexes, stored, self._now(), rules)

    async def _visit(self, findings: Findings, segment: SegmentInfo, visits: list[Visit]) -> None:
        async def one(visit: Visit) -> None:
            looked = await findings.examine(segment, visit.index, visit.leaves or None)
            self.sweep.spend(max(looked.bytes - visit.cost, 0), self._now())

        asked = {visit.index for visit in visits}
        for index, share in enumerate(segment.shares):
            if share.stored and index not in asked:
                self.answered(share.provider, DOWN)
        async with trio.open_nursery() as nursery:
            for visit in visits:
                nursery.start_soon(one, visit)

    # --- what is kept -------------------------------------------------------------------------------------------------

    async def _save(self) -> None:
        if self._store.read_only or not (self._changed or trio.current_time() >= self._saved + SAVE_SECONDS):
            return
        self._changed, self._saved = False, trio.current_time()
        document = msgspec.msgpack.encode(Kept(self.sweep.state, self.trust.records))
        await keep(self._store, SETTING, document)


def _unix() -> float:
    return time.time()


def _load(store: Store) -> Kept:
    """What was kept; anything that cannot be read is begun anew, for nothing depends on it."""
    raw = store.get_setting(SETTING)
    if raw is not None:
        try:
            return msgspec.msgpack.decode(raw, type=Kept)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("how far the audit was cannot be read, and it begins anew: %s", error)
    return Kept(State(), {})
