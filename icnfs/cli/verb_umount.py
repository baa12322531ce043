"""`icnfs umount`: immediate and safe; --drain publishes first.

The mount process is asked by its control socket, and waited for; where it does not answer, the kernel is asked, and
a mount point whose process died is cleared.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from icnfs.cli.mounts import mount_process
from icnfs.cli.output import json_option, say, watching
from icnfs.cli.taking import PATH
from icnfs.cli.verb_sync import deadline_option, report
from icnfs.config import runtime_dir
from icnfs.control import endpoint
from icnfs.control.client import Mount, wait_ended
from icnfs.control.facts import MountStatus, Published, printable_path
from icnfs.control.mounts import Mounted, holders, mount_at, mounted, resolve
from icnfs.control.protocol import StatusRequest, StopRequest, UnmountRequest, take_facts
from icnfs.errors import IcnfsError, MountPointError, NotMountedError
from icnfs.fuse import mountpoint

ENDING: Final = 90.0
"""Seconds for the mount process to commit what it accepted and end: the kernel's write-back alone may take 30."""

HELD: Final = 2.0
"""Seconds after which it is looked whether the mount is held where this verb cannot unmount it."""


@click.command("umount")
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--drain", is_flag=True, help="Publish all that is written first.")
@click.option("--lazy", is_flag=True, help="Detach it though files are in use; their users get errors.")
@deadline_option
@json_option
def verb(directory: Path, drain: bool, lazy: bool, deadline: float | None, as_json: bool) -> None:
    """Unmount DIR and return when its process has ended.

    What is not yet published waits, durably, on this machine for the next mount.
    """
    found = _found(directory)
    mount = mount_process(found)
    request = UnmountRequest(drain=drain, deadline=deadline or 0.0, lazy=lazy)
    if not found.device and not lazy:
        raise _held(found)
    process = mount.process()
    if process is None:
        _without_process(found.point, drain)
        published = None
    else:
        try:
            published = _by_process(mount, request, process, found)
        finally:
            os.close(process)
    if found in mounted():
        raise MountPointError(f"{directory}: still mounted though its process has ended; try `umount -l {directory}`")
    if published is not None:
        report(published, as_json)
        if published.unsafe:
            say(
                "icnfs: published, but not yet safe: shares or key slots are missing at "
                f"{', '.join(published.unsafe)}; once they can be stored there, mount {mount.volume} and run "
                "`icnfs sync`"
            )


def _found(directory: Path) -> Mounted:
    """What is mounted on `directory`, or was by a process that still serves it elsewhere; NotMountedError."""
    try:
        return mount_at(directory)
    except NotMountedError:
        for name in endpoint.volumes(runtime_dir()):
            mount, point = Mount(runtime_dir(), name), resolve(directory)
            with suppress(NotMountedError):
                if take_facts(mount.ask(StatusRequest()), MountStatus).mount_point == printable_path(point):
                    return Mounted(point, name, os.geteuid(), "")
        raise


def _held(found: Mounted) -> MountPointError:
    """It is unmounted here, and its process goes on serving others."""
    held = ", ".join(holders(found)) or "unknown to this user"
    return MountPointError(
        f"{found.point} is unmounted here and still mounted in the mount namespace of another process: {held}; let "
        f"that unmount it or end; `icnfs umount --lazy {found.point}` ends the volume's process all the same",
        errno.EBUSY,
    )


def _wait(mount: Mount, lazy: bool, process: int, found: Mounted) -> None:
    """Until the process has ended, which it does not while its mount is held in another namespace, unless `lazy`."""
    if wait_ended(process, HELD):
        return
    if holders(found):
        if not lazy:
            raise _held(found)
        with suppress(NotMountedError):
            mount.ask(StopRequest())
    if not wait_ended(process, ENDING):
        remedy = f"see its log; `icnfs umount --lazy {found.point}` ends it where another namespace has it mounted"
        raise IcnfsError(f"{found.point} is unmounted, but its process still runs after {ENDING:.0f} s; {remedy}")


def _by_process(mount: Mount, request: UnmountRequest, process: int, found: Mounted) -> Published | None:
    """Have the mount's process unmount, and wait until it has ended; a silent one is left without its mount point."""
    try:
        with watching(f"Publishing {mount.volume}") as show:
            answer = mount.ask(request, show)
    except NotMountedError as error:
        if found in mounted():
            mountpoint.detach(os.fspath(found.point))
        if wait_ended(process, 0.0):
            return None
        raise NotMountedError(f"{error}; {found.point} is detached, and the process is to be killed") from None
    except IcnfsError as error:
        if request.drain and error.exit_code != MountPointError.exit_code:
            error.args = (f"{found.point} stays mounted: {error}; without --drain what is written waits here",)
        raise
    _wait(mount, request.lazy, process, found)
    return take_facts(answer, Published) if request.drain else None


def _without_process(point: Path, drain: bool) -> None:
    """Nobody listens: unmount by the kernel, or clear what a dead mount left."""
    path = os.fspath(point)
    if mountpoint.is_dead(path):
        mountpoint.detach(path)
        if drain:
            raise NotMountedError(f"{point}: its process had died, so nothing was published; mount it again")
        return
    if drain:
        raise NotMountedError(f"{point}: its process does not answer, so nothing can be published; leave out --drain")
    mountpoint.unmount(path)
