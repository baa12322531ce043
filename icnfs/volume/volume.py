"""An open volume: local state, providers, and the tasks between them, as one thing to hold.

    vfs  -->  Store  <--  Publisher  -->  transfer  -->  providers
                ^---- ProviderSource <-------'

`open_volume` unlocks, opens the local state, starts transfer and the tasks, and yields a `Volume`; nothing waits for
the network, so a mount comes up with every provider away.  Leaving ends the tasks and closes the local state: what was
accepted is committed, what is not published waits for the next time.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from pathlib import Path
from typing import Final

import trio

from icnfs.config import VolumeConfig
from icnfs.errors import ConfigError, DegradedError, FencedError, IcnfsError, LocalDiskError, TooFewProvidersError
from icnfs.format.segment import SegmentInfo
from icnfs.state import cut as cuts
from icnfs.state.store import Store
from icnfs.state.upkeep import Budget, Upkeep
from icnfs.transfer.engine import bare_errors
from icnfs.transfer.messages import Limits, ShareEvent
from icnfs.volume import fence as fences
from icnfs.volume import keys, openable, shortfall
from icnfs.volume.audit import Audit
from icnfs.volume.collect import Collector
from icnfs.volume.fence import Fence
from icnfs.volume.findings import Findings
from icnfs.volume.gone_back import GoneBack
from icnfs.volume.heads import Heads
from icnfs.volume.health import Health
from icnfs.volume.keyring import Entry, Keyring, Secrets, unlock_local
from icnfs.volume.leaving import LeaveProgress, LeaveResult, Leaving
from icnfs.volume.locks import Locks
from icnfs.volume.network import Network, Starter, start_transfer
from icnfs.volume.orphans import Orphans
from icnfs.volume.places import Places
from icnfs.volume.publish import Publisher
from icnfs.volume.repair import Gain, Repair
from icnfs.volume.report import look_at_file, status_of, usage_of
from icnfs.volume.scheduler import Scheduler
from icnfs.volume.scrub import Scrub, ScrubProgress, ScrubReport
from icnfs.volume.snapshots import Snapshots
from icnfs.volume.source import ProviderSource
from icnfs.volume.standing import Holding, PolicyReport, holdings_of, policy_report
from icnfs.volume.status import ChunkPlace, Status, Usage
from icnfs.volume.supervise import supervised

log = logging.getLogger(__name__)

CARE_SECONDS: Final = 2.0
"""Between looks for shares that can be completed."""

LOAD_STEP: Final = 1024
"""Segments looked at in one go when a mount begins."""

ADOPT_SECONDS: Final = 30.0
"""What looking at the places of new providers may take; later ones are looked at before the next publish."""

SYNC_RETRY: Final = 0.5
"""Between the tries of a `sync` that cannot publish yet."""


@dataclass(frozen=True)
class SyncProgress:
    """How far a `sync` is: bytes of the publish under way, and shares that are missing to be safe."""

    done_bytes: int
    total_bytes: int
    missing_shares: int


class Volume:
    """An open volume; made by `open_volume`."""

    def __init__(
        self, config: VolumeConfig, store: Store, network: Network, keyring: Keyring, spare: trio.Nursery
    ) -> None:
        self.config = config
        self.store = store
        self.network = network
        self.keyring = keyring
        self.heads = Heads(network)
        self.fence = Fence(store, network, self.heads, fences.load_base(store))
        self.places = Places(network, keyring, keyring.save)
        self.repair = Repair(network, self._segment)
        self._caring = trio.Lock()
        self.publisher = Publisher(
            store,
            network,
            self.heads,
            self.fence,
            self.places,
            keyring,
            self.repair,
            spare,
            seconds=config.publish_seconds,
            dirty_limit=config.publish_bytes,
            busy_limit=config.cache_dirty // 4,
        )
        self.loaded = trio.Event()
        """Set once it is known who holds what."""
        self.collector = Collector(
            store,
            network,
            self.heads,
            self.fence,
            self.publisher,
            self.repair,
            self._caring,
            self._segment,
            config.grace,
        )
        self.snapshots = Snapshots(store, self.publisher, self.sync, Locks(network, self.repair, self.loaded).judge)
        self.looked = trio.Event()
        """Set once this mount has looked at its providers' places, or will not."""
        self.audit = Audit(store, network, self.repair, self._segment, lambda: self.config.audit)
        self.findings = Findings(network, self._amend, self.audit.answered)
        self.orphans = Orphans(store, network, self.heads, self.fence, self.publisher, self._caring, config.grace)
        self.scrubbing = Scrub(store, network, self.repair, self.findings, self._segment)
        network.suspended, network.liars = self.audit.trust.suspended, self.audit.trust.liars
        store.source = ProviderSource(network, store.segment, spare)
        store.is_safe = network.is_safe_now
        network.transfer.heard = self._heard

    def _heard(self, event: ShareEvent) -> None:
        if event.what in ("bad", "missing"):
            self.findings.suspect(event.segment, event.index)
        else:
            self.repair.heard(event)

    def _segment(self, id: bytes) -> SegmentInfo | None:
        """A segment of contents or of a run, as it is now."""
        return self.store.segment(id) or self.publisher.part(id)

    # --- what runs beside requests ------------------------------------------------------------------------------------

    async def first_look(self) -> None:
        """See early, and daily, whether somebody else went on with the volume, and whether what nobody reads is there;
        without providers that waits for a publish."""
        try:
            await (self.places.visit_all() if self.store.read_only else self.publisher.settle())
            await self.look_at_slots()
        except FencedError:
            return
        except IcnfsError as error:
            log.warning("the providers' heads could not be looked at yet: %s", error)
        finally:
            self.looked.set()

    async def look_at_slots(self) -> int:
        """See to the key slots, which nothing else reads before the day that they are needed; how many were bad."""
        bad = await self.places.verify_all()
        if self.places.owes and not self.store.read_only:
            await self.publisher.settle()
        return bad

    async def load_segments(self) -> None:
        """Learn who holds what, and which segments lack shares, from records and head; it is not kept apart."""
        base = self.fence.base
        if base is not None:
            self.repair.load(base.segments())
        cut = await cuts.begin_cut(self.store)
        try:
            segments = cuts.segments_at(cut)
            while some := await trio.to_thread.run_sync(lambda: list(islice(segments, LOAD_STEP))):
                self.repair.load(some)
        finally:
            cut.close()

    async def care(self) -> None:
        """Put shares where they belong, whenever some are missing or astray and providers are there."""
        loaded = False
        while not loaded:
            try:
                await self.load_segments()
                loaded = True
                self.network.unused = self.repair.unused
                self.loaded.set()
            except IcnfsError as error:
                log.warning("who holds what is not known yet: %s", error)
                await trio.sleep(CARE_SECONDS)
        while True:
            await trio.sleep(CARE_SECONDS)
            busy = True
            while busy and not self.repair.idle and not self.store.read_only:
                try:
                    busy = await self.care_once()
                except IcnfsError as error:
                    log.warning("restored segments could not be noted: %s", error)
                    busy = False

    async def watch_over(self) -> None:
        """Audit, and look at what reads have found wrong and at who went back, once it is known what there is."""
        await self.loaded.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.findings.watch, self._segment)
            back = GoneBack(self.store, self.network, self.repair, self.publisher, self.findings, self.places)
            nursery.start_soon(back.run)
            nursery.start_soon(self.places.watch, self.first_look)
            await self.audit.run(self.findings)

    async def _amend(self, id: bytes, change: Callable[[SegmentInfo], SegmentInfo | None]) -> None:
        """Note what `change` makes of a segment, if anything, while nothing is being restored."""
        async with self._caring:
            await self.publisher.mend({id: change})

    async def care_once(self) -> bool:
        """One round of repair; whether it changed anything."""
        async with self._caring:
            emptied = self.publisher.emptied.times.copy()
            arrived = await self._noted(self.repair.arrivals(), emptied)
            gains = await self.repair.round()
            stored = [gain.after for gain in gains]  # told before it is noted: who waits for that may give up
            self.findings.restored(stored)
            self.orphans.restored(stored)
            return bool(await self._noted(gains, emptied) or arrived)

    async def _noted(self, gains: list[Gain], emptied: Counter[str]) -> list[SegmentInfo]:
        """Note what segments gained, whatever became of their other shares meanwhile; those."""
        return await self.publisher.mend({gain.after.id: gain.carried for gain in gains}, emptied)

    # --- publishing on demand -----------------------------------------------------------------------------------------

    async def drain(
        self, deadline: float | None = None, progress: Callable[[SyncProgress], None] = lambda _: None
    ) -> int:
        """Everything accepted is published on return, safe or not: the batch that is (for `umount --drain`).

        Deadline and errors are those of `sync`.
        """
        return await self._bounded(self._until_published, deadline, progress)

    async def sync(
        self, deadline: float | None = None, progress: Callable[[SyncProgress], None] = lambda _: None
    ) -> int:
        """Everything accepted is published and safe on return: the batch that is.

        `deadline` is in seconds (default: the TOML's).  Past it, `DegradedError` says what is published and who lacks
        what; before it, failures are tried again.  Raises `FencedError` and `LocalDiskError` at once.
        """
        return await self._bounded(self._until_safe, deadline, progress)

    async def _bounded(
        self,
        reach: Callable[[int], Awaitable[None]],
        deadline: float | None,
        progress: Callable[[SyncProgress], None],
    ) -> int:
        seconds = self.config.sync_deadline if deadline is None else deadline
        batch = await self.store.flush()
        failure: IcnfsError | None = None
        with trio.move_on_after(seconds) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report, progress)
                try:
                    await reach(batch)
                except IcnfsError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if scope.cancelled_caught:
            if self.publisher.batch < batch:
                raise self.store.fenced or shortfall.unpublished(self.publisher, self.network, seconds)
            raise self.store.fenced or shortfall.unsafe(self.network, self.repair, self.keyring)
        self._report_once(progress)
        return self.publisher.batch

    async def _until_published(self, batch: int) -> None:
        told = ""
        while self.publisher.sure < batch or self.publisher.owes_head:
            try:
                if self.publisher.batch < batch or self.publisher.owes_head:
                    await self.publisher.publish()
                await self.publisher.confirm()
            except (FencedError, LocalDiskError):
                raise
            except IcnfsError as error:
                if told != (told := str(error)):
                    log.info("publishing is tried again: %s", error)
                await trio.sleep(SYNC_RETRY)

    async def _until_safe(self, batch: int) -> None:
        asked = self.publisher.sure < batch or self.publisher.owes_head
        await self._until_published(batch)
        await self.loaded.wait()
        if not asked:
            await self.publisher.ask_for_base()
        if self.repair.unsure:  # the publish raised doubts, or the look
            await self.places.visit_doubtful()
        told = ""
        while self._unsafe or self.publisher.owes_head:
            if self.unopenable == openable.LOCAL_ONLY:  # nothing that could be waited for changes it
                raise shortfall.unsafe(self.network, self.repair, self.keyring)
            try:
                await self.publisher.settle()
                await self.care_once()
            except TooFewProvidersError as error:
                if told != (told := str(error)):
                    log.info("sync waits for providers: %s", error)
            if self._unsafe:
                await trio.sleep(SYNC_RETRY)
            else:
                await self._until_published(batch)
                if self.repair.unsure:
                    await self.places.visit_doubtful()

    @property
    def _unsafe(self) -> bool:
        return bool(self.repair.unsafe or self.repair.unsure or self.network.unnoted or self.unopenable)

    @property
    def unopenable(self) -> str:
        """What keeps the volume's keys from being safe, "" for nothing: see `openable`."""
        return openable.obstacle(self.network, self.keyring)

    def unsafe_at(self) -> list[str]:
        """Providers that lack shares or key slots, where fewer owners than must hold all of these; else none."""
        shares = self.repair.lacking_at() if self.repair.unsafe else ()
        slots = filter(self.keyring.undelivered, self.network.keepers) if self.unopenable else ()
        return sorted({*shares, *slots})

    async def _report(self, progress: Callable[[SyncProgress], None]) -> None:
        while True:
            self._report_once(progress)
            await trio.sleep(SYNC_RETRY)

    def _report_once(self, progress: Callable[[SyncProgress], None]) -> None:
        now = self.publisher.progress
        progress(SyncProgress(now.done, now.total, sum(self.repair.lacking_at().values())))

    # --- providers ----------------------------------------------------------------------------------------------------

    async def adopt(self, config: VolumeConfig) -> None:
        """Take over the providers, policy, weights and limits of a TOML that was read again.

        Raises `ConfigError` where anything else of it has changed, for that takes another mount, and where a provider
        that holds shares is no longer in it.
        """
        if fixed := self.config.fixed_in(config):
            what = f"{', '.join(fixed)} cannot change while the volume is mounted"
            raise ConfigError(f"{config.path}: {what}; unmount and mount it again, or change that back")
        if not self.loaded.is_set():
            raise ConfigError("who holds what is not known yet; try again in a moment")
        for name, held in self.holdings().items():
            if name in self.network.facts and name not in config.providers:
                raise ConfigError(f"provider {name} holds {held.segments} shares; drain it before it is removed")
        self.network.check_clearing(config.providers)
        self.network.let_go(config.providers)
        await self.network.transfer.set_providers(config.specs(), Limits(config.upload, config.download))
        self.repair.lose(self.network.adopt(config))
        self.config = config
        self.repair.judge_anew()
        with trio.move_on_after(ADOPT_SECONDS):
            try:
                await (self.places.visit_all() if self.store.read_only else self.publisher.settle())
            except IcnfsError as error:
                log.warning("the providers' places could not all be looked at yet: %s", error)

    def holdings(self) -> dict[str, Holding]:
        """What each provider holds, by name."""
        return holdings_of(self.repair.groups())

    def health(self) -> Health:
        """The health of every segment, now."""
        return Health(self.network, self.repair, self._segment, self.findings.bad(), self.network.suspended())

    def policy_report(self) -> PolicyReport:
        """What the policy says of every provider and every segment."""
        return policy_report(self.network, self.repair)

    async def leave(
        self,
        provider: str,
        deadline: float | None = None,
        progress: Callable[[LeaveProgress], None] = lambda _: None,
    ) -> LeaveResult:
        """Leave a provider that is being drained: see `leaving`.

        Raises what that does, and `DegradedError` past `deadline` (seconds; None for no bound): its shares go on
        moving, and another call goes on from there.
        """
        leaving = Leaving(self.network, self.repair, self.keyring, self.care_once, self._publish_all, self.publisher)
        await self.loaded.wait()
        with trio.move_on_after(inf if deadline is None else deadline):
            return await leaving.run(provider, progress)
        left = self.holdings().get(provider)
        raise DegradedError(
            f"provider {provider} still holds {left.segments if left else 0} shares after {deadline:.0f} s: "
            f"{self.repair.obstacle or 'they go on moving'}; call it again"
        )

    async def scrub(
        self,
        *,
        full: bool = False,
        restart: bool = False,
        rate: int = 0,
        progress: Callable[[ScrubProgress], None] = lambda _: None,
    ) -> ScrubReport:
        """Look at every share, once it is known what there is, then at key slots and for strays: see `scrub.Scrub`."""
        await self.loaded.wait()
        report = await self.scrubbing.run(full=full, restart=restart, rate=rate, progress=progress)
        try:
            report = replace(report, bad_slots=await self.look_at_slots())
            return replace(report, strays=await self.orphans.run())
        except IcnfsError as error:
            log.warning("what else lies at the providers could not be looked at: %s", error)
            return report

    async def _publish_all(self) -> None:
        await self._until_published(await self.store.flush())

    # --- facts --------------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """The state of everything, now."""
        return status_of(self, time.time_ns())

    async def info(self, ino: int, see: Callable[[ChunkPlace], None]) -> int:
        """Show `see` where each of a file's chunks lies; its size in bytes: see `report.look_at_file`."""
        return await look_at_file(self, ino, see)

    def usage(self) -> Usage:
        """Room at the providers, for statfs."""
        return usage_of(self)

    def free_bytes(self) -> int:
        """Bytes of contents that the providers have room for."""
        return self.usage().free_bytes

    # --- keys ---------------------------------------------------------------------------------------------------------

    def remove_key(self, key_id: str) -> Entry:
        """Remove a key; providers delete their copies with the next publish, or when they return: see `keys.remove`."""
        return keys.remove(self.keyring, self.store, key_id)


@asynccontextmanager
async def open_volume(
    config: VolumeConfig,
    state_dir: Path,
    offered: Secrets,
    *,
    read_only: bool = False,
    start: Starter = start_transfer,
) -> AsyncIterator[Volume]:
    """The volume, open; its tasks run until the block is left.

    Raises `NoVolumeError`, `SecretError`, `MountedError`, `NewerFormatError`, `FormatError`, `LocalDiskError`.  A
    volume that was fenced opens read-only; so does one opened with `read_only`, and it publishes nothing.  What the
    block raises leaves it as itself, not in a group.
    """
    keyring, master = await unlock_local(state_dir, offered)
    store = Store.open(state_dir, master)
    try:
        fenced = fences.load_fenced(store)
        if fenced is not None:
            store.fence(fenced)
        with bare_errors():
            limits = Limits(config.upload, config.download)
            async with start(config.specs(), limits) as transfer, trio.open_nursery() as nursery:
                volume = Volume(config, store, Network.of(config, master, transfer), keyring, nursery)
                keys.mend(keyring, volume.fence)
                await nursery.start(store.run)
                store.read_only |= read_only
                upkeep = Upkeep(store, Budget(config.cache_clean, config.cache_dirty, config.reserve))
                nursery.start_soon(supervised, "upkeep", upkeep.run)
                nursery.start_soon(supervised, "repair", volume.care)
                nursery.start_soon(supervised, "places", lambda: volume.places.look_again(volume.first_look))
                if store.read_only:
                    volume.looked.set()
                else:
                    nursery.start_soon(supervised, "first look", volume.first_look)
                    nursery.start_soon(supervised, "publisher", volume.publisher.run)
                    nursery.start_soon(supervised, "collection", volume.collector.run)
                    schedule = Scheduler(store, volume.snapshots, lambda: volume.config.snapshots, config.sync_deadline)
                    nursery.start_soon(supervised, "snapshots", schedule.run)
                    nursery.start_soon(supervised, "audit", volume.watch_over)
                try:
                    yield volume
                finally:
                    nursery.cancel_scope.cancel()
    finally:
        await store.close()
