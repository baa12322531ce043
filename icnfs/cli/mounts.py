"""From what a user types, a volume's name or a directory, to the mount process that is meant."""

from __future__ import annotations

import os
from pathlib import Path

from icnfs.config.paths import runtime_dir
from icnfs.control import endpoint
from icnfs.control.client import Mount
from icnfs.control.mounts import Mounted, is_mount_name, mount_of, mounted
from icnfs.errors import NotMountedError, UsageError


def mount_process(found: Mounted) -> Mount:
    """The process behind a mount; root finds those of other users in their runtime directories."""
    own = Mount(runtime_dir(), found.volume)
    if found.uid == os.geteuid() or os.geteuid() != 0 or own.alive():
        return own
    return Mount(Path(f"/run/user/{found.uid}/icnfs"), found.volume)


def named(target: str | None) -> Mount:
    """The mount that `target` means: a path within it, its name, or, when None, the only volume that is mounted."""
    if target is None:
        return _only()
    if is_mount_name(target) and not os.path.ismount(target):
        return Mount(runtime_dir(), target)
    found, _ = mount_of(Path(target))
    return mount_process(found)


def _only() -> Mount:
    volumes = (name for name in endpoint.volumes(runtime_dir()) if "@" not in name)
    alive = [mount for name in volumes if (mount := Mount(runtime_dir(), name)).alive()]
    if not alive:
        raise NotMountedError("no volume is mounted; `icnfs mount NAME DIR` mounts one")
    if len(alive) > 1:
        raise UsageError(f"more than one volume is mounted: {', '.join(m.volume for m in alive)}; name one")
    return alive[0]


def is_mount(target: Path) -> bool:
    """Whether `target` is a mount point of icnfs, dead or alive."""
    return any(found.point == target for found in mounted())
