"""When access times move: relatime, as Linux's mount(8) describes it, and its two alternatives."""

from __future__ import annotations

from enum import Enum
from typing import Final

from icnfs.state.inode import Inode

DAY: Final = 86_400_000_000_000
"""Nanoseconds after which relatime moves an access time in any case."""


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
