"""The directory that is mounted on: whether it may be, what is mounted there, and how the kernel is told to unmount.

A mount whose daemon died answers ENOTCONN to everything; if it was one of ours it is detached and its directory used
again.  Nothing here waits for a file system that answers.  Every refusal is one MountPointError with the errno that
the system call would have given.

It does not know volumes; the control socket tells which volume is mounted where.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import subprocess
from pathlib import Path
from typing import Final

from icnfs.errors import MountPointError
from icnfs.mountinfo import FS_TYPE, MOUNTINFO, Mounted, parse_mountinfo

MAX_BACKGROUND: Final = 512
"""Background requests (read-ahead) in flight; the kernel's 12 are used up by the readers of one dead file."""

READ_AHEAD_KIB: Final = 2048
"""Read ahead of a sequential reader: a few chunks from each of k providers at once."""

_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_FUSERMOUNT: Final = "fusermount3"
_FUSERMOUNT_SECONDS: Final = 30

log = logging.getLogger(__name__)


def mounted_at(path: str) -> Mounted | None:
    """What is mounted on top at `path` (a real, absolute path), if anything."""
    found = None
    for mounted in parse_mountinfo(MOUNTINFO.read_bytes()):
        if mounted.path == os.fsencode(path):
            found = mounted
    return found


def prepare(directory: str) -> str:
    """Make sure that `directory` can be mounted on and return its real path.  Raises MountPointError.

    A dead mount of icnfs there is detached first.
    """
    path = os.path.realpath(directory)
    for _ in range(16):  # dead mounts may lie on one another
        if not _clear_dead(path):
            break
    _check(path)
    return path


def _clear_dead(path: str) -> bool:
    """Detach a dead icnfs mount from the top of `path`; whether there was one.  Refuses a living one."""
    mounted = mounted_at(path)
    if mounted is None:
        return False
    dead = is_dead(path)
    if mounted.fs_type != FS_TYPE:
        if dead:
            raise MountPointError(
                f"{path}: a dead {mounted.fs_type} mount is in the way; detach it with `umount -l`", errno.ENOTCONN
            )
        return False
    if not dead:
        name = os.fsdecode(mounted.source)
        raise MountPointError(f"{path}: {name} is mounted here; `icnfs umount` it first", errno.EBUSY)
    log.info("a mount that died is in the way; detaching it")
    detach(path)
    return True


def is_dead(path: str) -> bool:
    """Whether the daemon is gone.  stat(2) would be answered from the kernel's memory; statfs(2) always asks."""
    try:
        os.statvfs(path)
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _check(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode):
            raise MountPointError(f"{path}: not a directory; name an empty one", errno.ENOTDIR)
        with os.scandir(path) as entries:
            if next(entries, None) is not None:
                raise MountPointError(f"{path}: not empty; what it holds would be hidden", errno.ENOTEMPTY)
    except FileNotFoundError:
        raise MountPointError(f"{path}: does not exist; create it with `mkdir`", errno.ENOENT) from None
    except OSError as exc:
        raise MountPointError(f"{path}: {exc.strerror}; choose another directory", exc.errno or errno.EIO) from None
    if os.geteuid() and not os.access(path, os.W_OK):
        raise MountPointError(f"{path}: not yours to write to, so {_FUSERMOUNT} will not mount on it", errno.EACCES)


# --- unmounting -------------------------------------------------------------------------------------------------------


def unmount(path: str) -> None:
    """Unmount `path`; the kernel first writes back what it holds, so the loop must still be running.

    Blocks: call it in a thread.  Raises MountPointError, EBUSY while somebody uses it.
    """
    _unmount(path, lazily=False)


def detach(path: str) -> None:
    """Take `path` out of the tree at once, whoever uses it (`umount -l`).  Raises MountPointError."""
    _unmount(path, lazily=True)


def _unmount(path: str, *, lazily: bool) -> None:
    if os.geteuid():
        _unmount_as_user(path, "-uz" if lazily else "-u")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazily else 0)) == 0:
        return
    code = ctypes.get_errno()
    raise MountPointError(f"{path}: cannot be unmounted: {os.strerror(code)}", code)


def _unmount_as_user(path: str, how: str) -> None:
    """fusermount3 tells no errno; a refusal is nearly always that the mount is in use."""
    try:
        done = subprocess.run(
            [_FUSERMOUNT, how, "--", path], capture_output=True, check=False, timeout=_FUSERMOUNT_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise MountPointError(f"{path}: {_FUSERMOUNT} cannot be run: {exc}", errno.EIO) from None
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no reason given"]
        raise MountPointError(f"{path}: cannot be unmounted: {reason[0]}", errno.EBUSY)


# --- the kernel's settings --------------------------------------------------------------------------------------------


def request_timeout() -> float | None:
    """Seconds after which the kernel drops a connection whose request is unanswered; None where it never does."""
    limits = [_read_number(f"/proc/sys/fs/fuse/{name}") for name in ("max_request_timeout", "default_request_timeout")]
    set_ones = [float(limit) for limit in limits if limit]
    return min(set_ones) if set_ones else None


def _read_number(path: str) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # a kernel without the setting
        return 0


def tune(device: str, sysfs: Path = Path("/sys")) -> None:
    """Give the mount `device` ('major:minor') more read-ahead and background requests.  Root only, best effort.

    To be called when the session is live: the kernel's answer to INIT sets both.
    """
    connection = sysfs / "fs/fuse/connections" / device.partition(":")[2]
    _set(connection / "max_background", MAX_BACKGROUND)
    _set(connection / "congestion_threshold", MAX_BACKGROUND * 3 // 4)
    _set(sysfs / "class/bdi" / device / "read_ahead_kb", READ_AHEAD_KIB)


def _set(path: Path, value: int) -> None:
    try:
        path.write_text(f"{value}\n")
    except OSError as exc:
        log.debug("left as it is: %s: %s", path, exc.strerror)
