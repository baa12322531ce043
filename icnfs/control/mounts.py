"""What of icnfs is mounted on this machine, as the kernel tells it (/proc/self/mountinfo, proc_pid_mountinfo(5)).

A mount names its volume in its source and its user in its options, so a verb that is given a directory finds the
control socket without asking the file system, which may be dead.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from icnfs.errors import NotMountedError

TYPE: Final = "fuse.icnfs"
MOUNTINFO: Final = Path("/proc/self/mountinfo")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mounted:
    """One mount of a volume: where, which, by whom (uid), and its st_dev."""

    point: Path
    volume: str
    uid: int
    device: int


def mounted(mountinfo: Path = MOUNTINFO) -> list[Mounted]:
    """All mounts of icnfs, oldest first."""
    found = (_parse(line) for line in mountinfo.read_bytes().splitlines())
    return [mount for mount in found if mount is not None]


def _parse(line: bytes) -> Mounted | None:
    """One line of mountinfo: id parent major:minor root point options [tags] - type source super-options."""
    before, separator, after = line.partition(b" - ")
    fields, tail = before.split(b" "), after.split(b" ")
    if not separator or len(fields) < 6 or len(tail) < 3 or tail[0] != TYPE.encode():
        return None
    major, _, minor = fields[2].partition(b":")
    user = re.search(rb"(?:^|,)user_id=(\d+)", tail[2])
    return Mounted(
        point=Path(os.fsdecode(_plain(fields[4]))),
        volume=os.fsdecode(_plain(tail[1])),
        uid=int(user[1]) if user else 0,
        device=os.makedev(int(major), int(minor)),
    )


def _plain(field: bytes) -> bytes:
    """Undo the kernel's octal escapes of space, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


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
    """The mount that holds `path`, and its inode number there; NotMountedError where that is no icnfs."""
    try:
        facts = os.lstat(path)
    except OSError as error:
        raise NotMountedError(f"{path}: {os.strerror(error.errno or 0)}") from None
    for mount in reversed(mounted(mountinfo)):
        if mount.device == facts.st_dev:
            return mount, facts.st_ino
    raise NotMountedError(f"{path}: does not lie on a mount of icnfs; `icnfs status` lists what is mounted")
