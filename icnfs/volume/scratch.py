"""A scratch folder beside the local state: for a published state that is loaded only to be looked at.

It is locked while it is used, so what an unlocked one holds is left from a crash, and removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from icnfs.errors import LocalDiskError, MountedError

DISK_FACTOR: Final = 2
"""Bytes of local disk for a byte of records, at most: LMDB's pages may be half full."""


@contextmanager
def scratch(folder: Path, taken: str) -> Iterator[Path]:
    """A folder of our own; the name of what to make in it.  It is gone afterwards.

    Raises `MountedError`, saying that it is `taken`, while another process uses it, and `LocalDiskError`.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise LocalDiskError(f"{folder}: this folder is needed: {error.strerror}", error.errno or 0) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(folder)  # whoever had it locked may have removed it since
        except OSError:
            raise MountedError(f"{folder}: {taken}") from None
        os.fchmod(lock, 0o700)
        try:
            yield folder / "state"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders whose names begin so that nobody uses: what crashes left."""
    for folder in parent.glob(prefix + "*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(lock)


def check_room(folder: Path, record_bytes: int, reserve: int) -> None:
    """`LocalDiskError` unless so many bytes of records may be loaded there and a mount keeps the room it needs."""
    free, needed = shutil.disk_usage(folder).free, DISK_FACTOR * record_bytes + reserve
    if free < needed:
        raise LocalDiskError(
            f"{folder.parent}: {needed >> 20} MiB may be needed there and {free >> 20} MiB are free; free some space"
        )
