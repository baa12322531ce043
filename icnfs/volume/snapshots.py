"""Snapshots of an open volume: making, listing, deleting.

A snapshot is the tree as of the cut of one publish.  How long it takes does not depend on what the volume holds, only
on what is not published yet.

    publish --> head --> its runs, and its number, in a record of `snapshots` --> publish, which makes that safe

Nothing is published in between, so what the head names is all there.  From the record's commit on, collection keeps
what it names (`state.snapshots.Kept`); the record goes to the providers like any other, and comes back in a recovery.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec
import trio

from icnfs.errors import DegradedError, FencedError, IcnfsError, LocalDiskError, SnapshotError
from icnfs.format.head import Head
from icnfs.format.snapshot import LAYOUT, NAME_RULE, Snapshot, SnapshotRun, is_name
from icnfs.state import snapshots as records
from icnfs.state.store import Store
from icnfs.volume.locks import Enforcement
from icnfs.volume.publish import Publisher

log = logging.getLogger(__name__)

SNAPSHOTS_MAX: Final = 4096
"""Snapshots of one volume: each is a record of up to 300 KB, for a volume of 256 GiB of records."""

RETRY_SECONDS: Final = 0.5
"""Between the tries of a publish that fails."""


class Snapshots:
    """Those of one open volume; `sync` makes what is committed safe, within so many seconds."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        sync: Callable[[float], Awaitable[object]],
        judge: Callable[[int], Awaitable[Enforcement]],
    ) -> None:
        """`judge` finds out who would enforce a lock until a Unix second."""
        self._store = store
        self._judge = judge
        self._publisher = publisher
        self._sync = sync

    def list(self) -> list[Snapshot]:
        """All, the oldest first; raises `FormatError`."""
        return sorted(records.snapshots_in(self._store.reader), key=lambda snapshot: snapshot.time_ns)

    def find(self, name: str) -> Snapshot:
        """Raises `SnapshotError` where there is none of that name."""
        return records.find(self._store.reader, name)

    async def create(self, name: str, deadline: float, *, kind: str = "manual", until: int = 0) -> Snapshot:
        """Keep the tree as it is now; on return it is safe at the providers.

        `deadline` is in seconds, of publishing and again of becoming safe.  `until` is the Unix second before which
        nothing may delete it.  Raises `SnapshotError`, `DegradedError`, and what `sync` does.
        """
        self._require_writable()
        self._require_free(name)
        made: list[Snapshot] = []

        async def keep(head: Head, time_ns: int) -> None:
            snapshot = _of(head, name, kind, time_ns, until)
            self._store.touch()
            with trio.CancelScope(shield=True):  # past the deadline too, what is kept has to be known
                await self._store.task(partial(records.add, snapshot, head.segments()))
                made.append(snapshot)

        with trio.move_on_after(deadline):
            await self._publish(keep)
        if not made:
            failure = self._publisher.failure
            why = f": {failure}" if failure is not None else ""
            raise DegradedError(f"no snapshot was made: nothing could be published within {deadline:.0f} s{why}")
        log.info("snapshot %s keeps epoch %d, sequence %d", name, made[0].epoch, made[0].sequence)
        if until:
            made[0] = await self._lock(made[0], until)
        try:
            await self._sync(deadline)
        except DegradedError as error:
            raise DegradedError(
                f"snapshot {name} is made and kept here, and not safe yet: {error}; `icnfs sync` waits for it"
            ) from None
        return made[0]

    async def _publish(self, then: Callable[[Head, int], Awaitable[None]]) -> None:
        told = ""
        while True:
            try:
                await self._publisher.publish_and(then)
            except (FencedError, LocalDiskError, SnapshotError):
                raise
            except IcnfsError as error:
                if told != (told := str(error)):
                    log.info("a snapshot waits: %s", error)
                await trio.sleep(RETRY_SECONDS)
            else:
                return

    async def lock(self, name: str, until: int) -> Snapshot:
        """Have nothing delete it before a Unix second; durable on return, and published with what comes next.

        Raises `SnapshotError` where that would shorten its lock.
        """
        self._require_writable()
        snapshot = self.find(name)
        if until < snapshot.until:
            raise SnapshotError(f"snapshot {name} is locked until {date_of(snapshot.until)}; no lock is shortened")
        return await self._lock(snapshot, until)

    async def _lock(self, snapshot: Snapshot, until: int) -> Snapshot:
        enforced = (await self._judge(until)).enough
        locked = msgspec.structs.replace(snapshot, until=until, enforced=enforced)
        self._store.touch()
        await self._store.task(partial(records.lock, locked))
        return locked

    async def delete(self, name: str) -> None:
        """Keep it no longer; durable on return, and published with what comes next.

        What only it kept is collected.  Raises `SnapshotError` where there is none, or it is locked.
        """
        self._require_writable()
        snapshot = self.find(name)
        if snapshot.until > time.time():
            raise SnapshotError(f"snapshot {name} is locked until {date_of(snapshot.until)}; nothing deletes it before")
        self._store.touch()
        await self._store.task(partial(records.remove, snapshot))
        log.info("snapshot %s is deleted", name)

    def _require_writable(self) -> None:
        if self._store.fenced is not None:
            raise self._store.fenced
        if self._store.read_only:
            raise SnapshotError("the volume is mounted read-only, which changes no snapshot; mount it to write")

    def _require_free(self, name: str) -> None:
        if not is_name(name):
            raise SnapshotError(f"{name!r} cannot name a snapshot: that takes {NAME_RULE}")
        present = self.list()
        if any(snapshot.name == name for snapshot in present):
            raise SnapshotError(f"there is a snapshot {name} already; choose another name, or delete it first")
        if len(present) >= SNAPSHOTS_MAX:
            raise SnapshotError(f"there are {SNAPSHOTS_MAX} snapshots, the most there can be; delete some first")


def _of(head: Head, name: str, kind: str, time_ns: int, until: int) -> Snapshot:
    """What keeps a head's state."""
    runs = tuple(
        SnapshotRun(run.id, run.since, run.upto, run.rows, run.size, tuple(part.id for part in run.segments()))
        for run in head.runs
    )
    numbers = head.epoch, head.sequence, head.cut, head.generation
    return Snapshot(LAYOUT, name, kind, time_ns, until, False, *numbers, head.counters, runs)


def date_of(seconds: int) -> str:
    """A Unix time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
