"""The mount process of a snapshot: a `Front` whose volume takes no changes and publishes nothing.

What asks for the volume itself, not for a tree, is refused with the remedy: its own mount answers that.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, NoReturn

from icnfs.control.facts import MountStatus, Published
from icnfs.control.front import Front
from icnfs.control.server import ProgressSink
from icnfs.errors import SnapshotError
from icnfs.volume.past import open_past
from icnfs.volume.volume import Volume


class PastFront(Front):
    """One mount of a snapshot."""

    def _open(self) -> AbstractAsyncContextManager[Volume]:
        job = self._job
        return open_past(job.config, job.snapshot, job.state_dir, job.offered)

    async def status(self, looked: bool) -> MountStatus:
        """The figures of its tree; nothing of it waits to be published."""
        found = await super().status(looked)
        batch = found.volume.published_batch
        volume = replace(found.volume, name=self._job.label, pending=False, committed_batch=batch)
        return MountStatus(found.mount_point, found.pid, found.since_ns, volume, found.stalls)

    async def sync(self, deadline: float, progress: ProgressSink) -> Published:
        """Nothing is written here, and what was there is safe."""
        return self._published()

    async def drain(self, deadline: float, progress: ProgressSink) -> Published:
        """As `sync`."""
        return self._published()

    async def _refused(self, *_: Any, **__: Any) -> NoReturn:
        label, name = self._job.label, self._job.config.name
        raise SnapshotError(f"{label} is a snapshot, which only shows its tree; ask the mount of {name} itself")

    keys = add_key = remove_key = adopt = holdings = policy = health = leave = scrub = _refused
    clone = restore = _refused
    snapshots = make_snapshot = lock_snapshot = delete_snapshot = _refused
