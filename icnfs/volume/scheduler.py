"""Automatic snapshots of an open volume: made when the schedule says so, and deleted when it keeps them no longer.

None is made while nothing was changed, by what this mount knows: since the last one, or since the mount began.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import trio

from icnfs.config.volume import Schedule
from icnfs.errors import FencedError, IcnfsError
from icnfs.format.snapshot import Snapshot
from icnfs.state.store import Store
from icnfs.volume.schedule import due, spent
from icnfs.volume.snapshots import Snapshots

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 20.0
"""Between looks at the clock."""

RETRY_SECONDS: Final = 600.0
"""After a failure; each try waits for providers as long as `sync` does."""


class Scheduler:
    """One open volume's; `rules` are the schedule in force, `seconds` bounds each snapshot."""

    def __init__(self, store: Store, snapshots: Snapshots, rules: Callable[[], Schedule], seconds: float) -> None:
        self._store = store
        self._snapshots = snapshots
        self._rules = rules
        self._seconds = seconds

    async def run(self) -> None:
        """Look now and then, until the volume is fenced."""
        while self._store.fenced is None:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except FencedError:
                return
            except IcnfsError as error:
                log.warning("the schedule of snapshots will try again: %s", error)
                await trio.sleep(RETRY_SECONDS)

    async def look(self) -> None:
        """Make the snapshot that is due, if any, and delete those that had their time."""
        rules = self._rules()
        if self._store.read_only or rules == Schedule():
            return
        present = self._snapshots.list()
        kind = due(present, rules, time.time_ns())
        if kind is not None and self._has_changed(present):
            await self._snapshots.create(_name(kind), self._seconds, kind=kind)
        for snapshot in spent(self._snapshots.list(), rules, time.time_ns()):
            await self._snapshots.delete(snapshot.name)

    def _has_changed(self, present: list[Snapshot]) -> bool:
        """Whether any batch changed the tree after the cut of the last snapshot."""
        last = max((snapshot.cut for snapshot in present), default=-1)
        return self._store.changed > last or self._store.batch.has_changes


def _name(kind: str) -> str:
    return f"{kind}-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}"
