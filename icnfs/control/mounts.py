"""What of icnfs is mounted on this machine, as the kernel tells it (/proc/self/mountinfo, proc_pid_mountinfo(5)).

A mount names its volume in its source and its user in its options, so a verb that is given a directory finds the
control socket without asking the file system, which may be dead.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from icnfs.config.paths import NAME_PATTERN, check_volume_name
from icnfs.errors import NotMountedError, UsageError
from icnfs.format.snapshot import NAME_RULE, is_name
from icnfs.mountinfo import FS_TYPE, MOUNTINFO, parse_mountinfo

PROC: Final = Path("/proc")


@dataclass(frozen=True)
class Mounted:
    """One mount of a volume: where, which, by whom (uid), and its device as 'major:minor' ("": not known)."""

    point: Path
    volume: str
    uid: int
    device: str


def split_mount(text: str) -> tuple[str, str]:
    """(volume, snapshot) of what a mount is named by: NAME, or NAME@SNAP; the snapshot is "" where there is none.

    UsageError where either cannot be a name.
    """
    name, at, snapshot = text.partition("@")
    if at and not is_name(snapshot):
        raise UsageError(f"{snapshot[:80]!r} is no snapshot's name; use {NAME_RULE}")
    return check_volume_name(name), snapshot


def mount_name(name: str, snapshot: str) -> str:
    """What `split_mount` takes apart."""
    return f"{name}@{snapshot}" if snapshot else name


def is_mount_name(text: str) -> bool:
    """Whether a mount may be named so."""
    name, at, snapshot = text.partition("@")
    return NAME_PATTERN.fullmatch(name) is not None and (not at or is_name(snapshot))


def mounted(mountinfo: Path = MOUNTINFO) -> list[Mounted]:
    """All mounts of icnfs, oldest first."""
    return [
        Mounted(Path(os.fsdecode(each.path)), os.fsdecode(each.source), each.uid, each.device)
        for each in parse_mountinfo(mountinfo.read_bytes())
        if each.fs_type == FS_TYPE
    ]


def resolve(path: Path) -> Path:
    """`path` without symlinks; its last component is not asked, as a dead mount answers nothing."""
    absolute = Path(os.path.abspath(path))
    return Path(os.path.realpath(absolute.parent)) / absolute.name if absolute.name else absolute


def mount_at(directory: Path, mountinfo: Path = MOUNTINFO) -> Mounted:
    """The newest mount of icnfs on `directory` itself; NotMountedError without one."""
    wanted = {resolve(directory), Path(os.path.realpath(directory))}
    for mount in reversed(mounted(mountinfo)):
        if mount.point in wanted:
            return mount
    raise NotMountedError(f"{directory}: nothing of icnfs is mounted there; `icnfs status` lists what is mounted")


def mount_of(path: Path, mountinfo: Path = MOUNTINFO) -> tuple[Mounted, int]:
    """The mount that holds `path`, and its inode number there.

    NotMountedError where that is no icnfs, or a dead one; UsageError where there is no such path.
    """
    try:
        facts = os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise NotMountedError(f"{path}: the process of its mount died; mount it again") from None
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}") from None
    for mount in reversed(mounted(mountinfo)):
        if mount.device == f"{os.major(facts.st_dev)}:{os.minor(facts.st_dev)}":
            return mount, facts.st_ino
    raise NotMountedError(f"{path}: does not lie on a mount of icnfs; `icnfs status` lists what is mounted")


def holders(found: Mounted, proc: Path = PROC) -> list[str]:
    """Processes, as `PID (NAME)`, in whose own mount namespaces `found` is mounted: one of each, of those that this
    user may look at.  Unmounting it here leaves it there (mount_namespaces(7))."""
    seen = {os.readlink(proc / "self/ns/mnt")}
    held = []
    for process in sorted((entry.name for entry in proc.iterdir() if entry.name.isdecimal()), key=int):
        try:
            namespace = os.readlink(proc / process / "ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            copies = mounted(proc / process / "mountinfo")
            name = (proc / process / "comm").read_text("utf-8", "replace").strip()
        except OSError:
            continue
        if any(each.volume == found.volume and found.device in ("", each.device) for each in copies):
            held.append(f"{process} ({name})")
    return held
