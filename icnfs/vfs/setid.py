"""When a file's set-id bits go, as Linux's own file systems have it (fs/open.c, fs/inode.c, fs/attr.c).

The kernel leaves this to the file system (FUSE_HANDLE_KILLPRIV_V2, see `fuse.negotiate`).  It tells who asks, but not
which groups that user is in: of files whose group may not execute them, an owner counts as of the file's group, anybody
else but root as not of it.
"""

from __future__ import annotations

import stat
from typing import Final

from icnfs.state.inode import Inode

SET_ID: Final = stat.S_ISUID | stat.S_ISGID


def after_write(node: Inode, uid: int) -> int:
    """The mode of a regular file that `uid` wrote to, or truncated: only root keeps the bits."""
    return node.mode if uid == 0 else after_request(node, uid)


def after_chown(node: Inode) -> int:
    """The mode of what is no directory, when its owner or group was set, by root as by anybody."""
    return node.mode & ~stat.S_ISUID & ~(stat.S_ISGID if node.mode & stat.S_IXGRP else 0)


def after_request(node: Inode, uid: int) -> int:
    """The mode where the kernel asks for the bits to go: at chown(-1, -1), and before a write that needs it."""
    stranger = uid not in (0, node.uid)
    return node.mode & ~SET_ID if stranger else after_chown(node)
