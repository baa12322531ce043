"""The mount process: an open volume, its POSIX face, the FUSE loop and the control socket, from first to last.

    open_volume  -->  Vfs  -->  fuse.serve        in one trio loop, beside  server.serve(Front)

Promises: whatever ends it (umount, a signal, the control socket, a fault) the mount point is detached, the control
socket removed and the volume closed, in this order; what was accepted is committed.  Nothing is written before the
mount point was found fit.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from icnfs import process
from icnfs.config import VolumeConfig, load
from icnfs.control import cycles, endpoint, server
from icnfs.control.facts import (
    CloneFacts,
    FileFacts,
    FileFold,
    HealthFacts,
    KeyFacts,
    MountStatus,
    PolicyFacts,
    Published,
    SnapshotFacts,
    key_facts,
    printable_path,
    snapshot_facts,
)
from icnfs.control.failures import single
from icnfs.control.mounts import mount_name
from icnfs.control.precedence import Precedence
from icnfs.control.protocol import Progress
from icnfs.control.server import ProgressSink
from icnfs.control.stalls import Load, StallMeter
from icnfs.crypto.hardening import drop_secrets_from_environment, forbid_core_dumps
from icnfs.errors import ConfigError, IcnfsError, LocalDiskError, MountPointError
from icnfs.fuse import mountpoint
from icnfs.fuse.caches import look_anew
from icnfs.fuse.options import MountOptions
from icnfs.fuse.serve import SIGNALS, End
from icnfs.fuse.serve import serve as serve_fuse
from icnfs.vfs.vfs import Vfs
from icnfs.volume.keyring import Entry, Secrets
from icnfs.volume.leaving import LeaveProgress, LeaveResult
from icnfs.volume.orphans import OrphanReport
from icnfs.volume.report import provider_healths
from icnfs.volume.restoring import find_in, tree_of
from icnfs.volume.scrub import ScrubProgress, ScrubReport
from icnfs.volume.standing import Holding
from icnfs.volume.volume import SyncProgress, Volume, open_volume

LOOK_SECONDS: Final = 2.0
"""What `icnfs mount` waits to hear what is wrong at the providers: most answer in a fraction of it."""

SYNC_GRACE: Final = 5.0
"""Seconds of an fsync that publishes, beyond the volume's own deadline: what that says of the missing is logged."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What to mount where; `directory` is absolute."""

    config: VolumeConfig
    state_dir: Path
    runtime_dir: Path
    directory: str
    options: MountOptions
    offered: Secrets
    snapshot: str = ""
    """Which snapshot of the volume; "" for the volume itself."""

    @property
    def label(self) -> str:
        """What the mount is named by: in mount(8), by its control socket, and in its log."""
        return mount_name(self.config.name, self.snapshot)


def run(job: Job, live: Callable[[], None], front: Callable[[Job, Callable[[], None]], Front]) -> End:
    """Mount, call `live` when the mount answers, and return when it is gone; raises IcnfsError."""
    process.tune()
    process.take_slice(process.SHORT)
    forbid_core_dumps()
    drop_secrets_from_environment()
    try:
        return trio.run(front(job, live).run)
    except BaseExceptionGroup as group:
        raise single(group) from group


class Front:
    """One mount; it is the control socket's `Operations`."""

    def __init__(self, job: Job, live: Callable[[], None]) -> None:
        self._job = job
        self._adopting = trio.Lock()
        self._live = live
        self._since_ns = time.time_ns()
        self._serving = trio.CancelScope()
        self._opened: Volume | None = None
        self._vfs: Vfs | None = None
        self._stalls = StallMeter(Precedence().look)

    async def run(self) -> End:
        """See the module."""
        job = self._job
        mountpoint.prepare(job.directory)
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_on, signals)
                async with self._open() as volume:
                    self._opened = volume
                    end = await self._serve(volume)
                nursery.cancel_scope.cancel()
        return end

    def _open(self) -> AbstractAsyncContextManager[Volume]:
        job = self._job
        return open_volume(job.config, job.state_dir, job.offered, read_only=job.options.read_only)

    async def _end_on(self, signals: AsyncIterable[int]) -> None:
        async for number in signals:
            log.info("ending signal=%s", signal.Signals(number).name)
            self._serving.cancel()

    async def _serve(self, volume: Volume) -> End:
        """Control socket and FUSE loop, until the mount is gone."""
        job, name = self._job, self._job.label
        listener = endpoint.listen(job.runtime_dir, name)
        end, failure = End.SIGNAL, None
        publishing = job.options.publishing and not job.options.read_only
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stalls.run)
                nursery.start_soon(cycles.run, Load().busy)
                volume.publisher.busy = Load().busy
                await nursery.start(server.serve, listener, self)
                vfs = self._vfs = Vfs(
                    volume.store,
                    volume.free_bytes,
                    nursery=nursery,
                    atime=job.options.atime,
                    read_only=job.options.read_only,
                    read_deadline=job.config.read_deadline,
                    publish=volume.sync if publishing else None,
                )
                try:
                    with self._serving:
                        end = await serve_fuse(
                            vfs,
                            job.directory,
                            job.options,
                            volume=name,
                            ready=self._ready,
                            signals=(),
                            fsync_deadline=job.config.sync_deadline + SYNC_GRACE if publishing else None,
                        )
                except IcnfsError as error:
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            endpoint.remove(job.runtime_dir, name)
        if failure is not None:
            raise failure
        log.info("unmounted volume=%s end=%s", name, end.value)
        return end

    def _ready(self) -> None:
        log.info("mounted volume=%s pid=%d", self._job.label, os.getpid())
        if self._volume.store.fenced is not None:
            log.error("%s", self._volume.store.fenced)
        self._live()

    # --- what the control socket asks ---------------------------------------------------------------------------------

    @property
    def _volume(self) -> Volume:
        assert self._opened is not None, "the socket is served inside the open volume"
        return self._opened

    async def status(self, looked: bool) -> MountStatus:
        """The volume's figures, and the mount's."""
        if looked:
            with trio.move_on_after(LOOK_SECONDS):
                await self._volume.looked.wait()
        where = printable_path(self._job.directory)
        return MountStatus(where, os.getpid(), self._since_ns, self._volume.status(), self._stalls.figures())

    async def sync(self, deadline: float, progress: ProgressSink) -> Published:
        """Publish and wait until it is safe."""
        await self._volume.sync(deadline or None, partial(_pass_on, progress))
        return self._published()

    async def drain(self, deadline: float, progress: ProgressSink) -> Published:
        """Publish, within the deadline, safe or not."""
        await self._volume.drain(deadline or None, partial(_pass_on, progress))
        return self._published()

    async def unmount(self, lazy: bool) -> None:
        """Unmount, and let everything end after it; `LocalDiskError` where that would lose what was accepted."""
        if not lazy and not self._volume.store.read_only:
            try:
                await self._volume.store.flush()
            except LocalDiskError as error:
                raise LocalDiskError(f"{error}; until then what was written is not safe: --lazy gives it up") from None
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(mountpoint.unmount, self._job.directory, abandon_on_cancel=True)
            except MountPointError as error:
                if not lazy:
                    raise MountPointError(
                        f"{error}; `fuser -vm {self._job.directory}` shows its users; --lazy detaches it all the same",
                        error.errno,
                    ) from None
                self._serving.cancel()

    async def info(self, ino: int) -> FileFacts:
        """Where the contents of `ino` lie."""
        fold = FileFold()
        size = await self._volume.info(ino, fold.add)
        return fold.facts(ino, size)

    async def keys(self) -> list[KeyFacts]:
        """The keys, oldest first."""
        return [self._key(entry) for entry in self._volume.keyring.entries()]

    def _key(self, entry: Entry) -> KeyFacts:
        network = self._volume.network
        return key_facts(entry, network.keepers, network.unsure)

    async def add_key(self, entry: bytes) -> KeyFacts:
        """Take a key that the verb wrapped."""
        ring = self._volume.keyring
        taken = ring.adopt(entry)
        ring.save()
        return self._key(taken)

    async def remove_key(self, key_id: str) -> KeyFacts:
        """Remove a key here at once, and at the providers with the next publish."""
        return self._key(self._volume.remove_key(key_id))

    async def adopt(self, path: bytes) -> None:
        """Take over what the TOML says now; the verb must have changed the one that this mount reads."""
        await trio.to_thread.run_sync(_check_same, self._job.config, path)
        async with self._adopting:
            await self._volume.adopt(await self._toml())
        log.info("adopted providers=%s", ",".join(self._volume.config.providers))

    async def _toml(self) -> VolumeConfig:
        return await trio.to_thread.run_sync(load, self._job.config.name, self._job.config.path)

    async def holdings(self) -> dict[str, Holding]:
        """What each provider holds."""
        return self._volume.holdings()

    async def policy(self) -> PolicyFacts:
        """How providers and segments stand under the policy in force, and whether the TOML has another by now."""
        return PolicyFacts(self._volume.policy_report(), await self._news())

    async def health(self, after: str, most: int) -> HealthFacts:
        """The health of every segment, and a page of those that are not safe."""
        volume = self._volume
        await volume.loaded.wait()
        health = volume.health()
        page = await health.page(after, most)
        return HealthFacts(volume.network.safe, health.counts(), provider_healths(volume), page, volume.unopenable)

    async def _news(self) -> str:
        """What is to be done about a TOML that is not in force; "" where it is."""
        try:
            toml = await self._toml()
        except IcnfsError as error:
            return f"the TOML cannot be used: {error}"
        if toml == self._volume.config:
            return ""
        name = self._job.config.name
        if fixed := self._volume.config.fixed_in(toml):
            what = f"{', '.join(fixed)} cannot change while the volume is mounted"
            return f"the TOML was changed since it was taken over, and {what}; unmount {name} and mount it again"
        return f"the TOML was changed since it was taken over; `icnfs policy adopt {name}` takes it over now"

    async def leave(self, provider: str, deadline: float, progress: ProgressSink) -> LeaveResult:
        """Move every share away from a provider that is being drained, and delete what lies there."""
        return await self._volume.leave(provider, deadline or None, partial(_pass_on_leave, progress))

    async def scrub(self, full: bool, restart: bool, rate: int, progress: ProgressSink) -> ScrubReport:
        """Look at every share."""
        return await self._volume.scrub(
            full=full, restart=restart, rate=rate, progress=partial(_pass_on_scrub, progress)
        )

    async def snapshots(self) -> list[SnapshotFacts]:
        """All snapshots, the oldest first."""
        return [snapshot_facts(snapshot) for snapshot in self._volume.snapshots.list()]

    async def make_snapshot(self, name: str, until: int, deadline: float) -> SnapshotFacts:
        """Keep the tree as it is now; safe on return."""
        seconds = deadline or self._volume.config.sync_deadline
        return snapshot_facts(await self._volume.snapshots.create(name, seconds, until=until))

    async def lock_snapshot(self, name: str, until: int) -> SnapshotFacts:
        """Have nothing delete it before `until`."""
        return snapshot_facts(await self._volume.snapshots.lock(name, until))

    async def delete_snapshot(self, name: str) -> None:
        """Keep a snapshot no longer."""
        await self._volume.snapshots.delete(name)

    async def orphans(self, progress: ProgressSink) -> OrphanReport:
        """List what lies at the providers, and delete old orphans."""
        return await self._volume.orphans.run(delete=True, progress=lambda left: progress(Progress(shares_left=left)))

    async def clone(self, source: int, parent: int, name: bytes, uid: int, progress: ProgressSink) -> CloneFacts:
        """Clone a file or tree, and have the kernel see it."""
        assert self._vfs is not None, "mounted files are what is asked for"
        made = await self._vfs.clone(source, parent, name, uid, partial(_pass_on_files, progress))
        await trio.to_thread.run_sync(look_anew, parent, name)
        return CloneFacts(made)

    async def restore(
        self, snapshot: str, path: bytes, parent: int, name: bytes, uid: int, progress: ProgressSink
    ) -> CloneFacts:
        """Restore a file or tree from a snapshot, and have the kernel see it."""
        assert self._vfs is not None, "the mount answers"
        async with tree_of(self._volume, snapshot, lambda done, all: progress(Progress(done, all))) as tree:
            source = find_in(tree, path)
            files = partial(_pass_on_files, progress)
            made = await self._vfs.copy_from(tree.reader, source, parent, name, uid, files)
        await trio.to_thread.run_sync(look_anew, parent, name)
        return CloneFacts(made)

    def _published(self) -> Published:
        status = self._volume.status()
        suspects = sorted(self._volume.network.liars())
        return Published(status.published_batch, status.epoch, status.sequence, self._volume.unsafe_at(), suspects)


def _check_same(config: VolumeConfig, path: bytes) -> None:
    """ConfigError unless `path` is where the TOML of this mount really is."""
    own = os.path.realpath(config.path)
    if path != os.fsencode(own):
        raise ConfigError(
            f"the mount of {config.name} reads {printable_path(own)}, not {printable_path(path)}; "
            "set ICNFS_CONFIG_DIR as it was set for the mount"
        )


def _pass_on(progress: ProgressSink, now: SyncProgress) -> None:
    progress(Progress(now.done_bytes, now.total_bytes, now.missing_shares))


def _pass_on_leave(progress: ProgressSink, now: LeaveProgress) -> None:
    progress(Progress(now.moved_bytes, now.total_bytes, shares_left=now.shares_left, waiting=now.waiting))


def _pass_on_scrub(progress: ProgressSink, now: ScrubProgress) -> None:
    progress(Progress(now.done, now.total, shares_left=now.shares_left))


def _pass_on_files(progress: ProgressSink, made: int) -> None:
    progress(Progress(files=made))
