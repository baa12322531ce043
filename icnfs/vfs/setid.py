"""When a file's set-id bits go, as Linux's own file systems have it (fs/open.c, fs/inode.c, fs/attr.c).

The kernel leaves this to the file system (FUSE_HANDLE_KILLPRIV_V2, see `fuse.negotiate`).
"""

from __future__ import annotations

import stat
from typing import Final

from icnfs.state.inode import Inode
from icnfs.vfs.callers import Caller, is_member

SET_ID: Final = stat.S_ISUID | stat.S_ISGID


def after_write(node: Inode, who: Caller) -> int:
    """The mode of a regular file that `who` wrote to, or truncated: only root keeps the bits."""
    return node.mode if who.uid == 0 else after_request(node, who)


def after_request(node: Inode, who: Caller) -> int:
    """The mode of what is no directory where the kernel asks for the bits to go, before a write that needs it, and
    where `who` set its owner or group, root as anybody."""
    kept = node.mode & ~stat.S_ISUID & ~(stat.S_ISGID if node.mode & stat.S_IXGRP else 0)
    return after_acl(node, who, kept)


def after_acl(node: Inode, who: Caller, mode: int) -> int:
    """`mode`, which `who` gives it by an access list: set-group-id is for root and the group's members to keep."""
    return mode if not mode & stat.S_ISGID or who.uid == 0 or is_member(who, node.gid) else mode & ~stat.S_ISGID
