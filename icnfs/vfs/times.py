"""What files' times are, and when access times move: relatime, as Linux's mount(8) describes it, and its two
alternatives."""

from __future__ import annotations

from enum import Enum
from time import clock_gettime_ns, time_ns
from typing import Final

from icnfs.state.inode import Inode

DAY: Final = 86_400_000_000_000
"""Nanoseconds after which relatime moves an access time in any case."""

TIME_MAX: Final = 2**63 - 1
"""The last time that an inode's record holds, in ns."""


TICK: Final = 10_000_000
"""Nanoseconds between two of the kernel's ticks, at most (100 Hz)."""

_CLOCK_REALTIME_COARSE: Final = 5
"""clock_gettime(2): the time of the kernel's last tick."""


class Atime(Enum):
    """The mount options noatime, relatime and strictatime."""

    NEVER = "noatime"
    RELATIVE = "relatime"
    STRICT = "strictatime"


class Clock:
    """The clock by which the kernel dates a touch(1): its last tick's, so that nothing looks older than what it was
    made after.  Linux 6.13 lets touches run ahead of it, up to the finest time that any file system gave a file."""

    def __init__(self) -> None:
        self._ahead = 0

    def now(self) -> int:
        """For what changes now, ns since 1970."""
        ticked = clock_gettime_ns(_CLOCK_REALTIME_COARSE)
        return self._ahead if 0 < self._ahead - ticked <= TICK else ticked  # the clock may have been set back

    def heard(self, moment: int) -> None:
        """The kernel gave a file this time: where that is now, what changes afterwards is no older."""
        if self._ahead < moment <= time_ns():
            self._ahead = moment


def is_due(policy: Atime, node: Inode, now: int) -> bool:
    """Whether an access at `now` (ns) must be recorded."""
    if policy is Atime.NEVER:
        return False
    if policy is Atime.STRICT:
        return True
    return node.atime <= node.mtime or node.atime <= node.ctime or now - node.atime >= DAY


def clamped(time: int) -> int:
    """The time (ns) that an inode can hold nearest to `time`: the years 1678 to 2261.

    POSIX.1-2024 utimensat leaves it open; Linux takes the nearest time that the file system has.
    """
    return max(-TIME_MAX - 1, min(time, TIME_MAX))
