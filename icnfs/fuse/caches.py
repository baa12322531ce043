"""What the kernel remembers of a mount, where something other than a request changes it."""

from __future__ import annotations

import contextlib

import pyfuse3


def look_anew(parent: int, name: bytes) -> None:
    """Have the kernel ask for `name` in `parent` again, which it may know not to be there; and for `parent` itself.

    Blocks while a request about either is under way: call it in a thread.
    """
    with contextlib.suppress(FileNotFoundError):  # the kernel knows nothing of it
        pyfuse3.invalidate_entry(parent, name)
    with contextlib.suppress(FileNotFoundError):
        pyfuse3.invalidate_inode(parent)
