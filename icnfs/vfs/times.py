"""When access times move: relatime, as Linux's mount(8) describes it, and its two alternatives."""

from __future__ import annotations

from enum import Enum
from typing import Final

from icnfs.state.inode import Inode

DAY: Final = 86_400_000_000_000
"""Nanoseconds after which relatime moves an access time in any case."""

TIME_MAX: Final = 2**63 - 1
"""The last time that an inode's record holds, in ns."""


class Atime(Enum):
    """The mount options noatime, relatime and strictatime."""

    NEVER = "noatime"
    RELATIVE = "relatime"
    STRICT = "strictatime"


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
