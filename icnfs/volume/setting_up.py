"""What `init` and `recover` share: a local state is built beside its place and moved there once it is whole.

A half-made state lies in `NAME.partial`; it is never mistaken for a whole one, and the next try replaces it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from icnfs.errors import LocalDiskError, MountedError, VolumeExistsError
from icnfs.volume import keyring


@contextmanager
def partial_state(state_dir: Path, what: str) -> Iterator[Path]:
    """The empty folder to build in, which nobody else builds in meanwhile; `what` is the verb, for messages.

    Raises `VolumeExistsError` where a local state is there already, `MountedError` where another process sets up this
    volume, `LocalDiskError` where something else is in the state's place.  Moving it into place is `complete`'s.
    """
    if (state_dir / keyring.FILE).exists() or (state_dir / "meta").exists():
        raise VolumeExistsError(
            f"{state_dir}: this machine has the volume's local state already and {what} would overwrite it; "
            "mount it, or move that folder away first"
        )
    _refuse_others(state_dir)
    partial = state_dir.with_name(state_dir.name + ".partial")
    try:
        partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(partial.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LocalDiskError(
            f"{partial.parent}: the local state cannot be made there: {error.strerror}", error.errno or 0
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MountedError(
                f"{partial.parent}: another process sets up or recovers a volume here; wait for it"
            ) from None
        yield partial
    finally:
        os.close(lock)


def _refuse_others(state_dir: Path) -> None:
    """What `complete` could not replace is refused before anything is written, here or to a provider."""
    try:
        taken = any(state_dir.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise LocalDiskError(f"{state_dir}: {error.strerror}; move it away", error.errno or 0) from None
    if taken:
        raise LocalDiskError(f"{state_dir}: not empty, and no volume's local state; move it away", errno.ENOTEMPTY)


def start_over(partial: Path) -> None:
    """Remove what an earlier try left and make the folder, readable by its owner only."""
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700)
    except OSError as error:
        raise LocalDiskError(f"{partial}: {error.strerror}", error.errno or 0) from None


def complete(partial: Path, state_dir: Path) -> None:
    """Make the state in `partial` the volume's, durably."""
    try:
        if state_dir.exists():
            state_dir.rmdir()
        partial.rename(state_dir)
        keyring.sync_directory(state_dir.parent)
    except OSError as error:
        raise LocalDiskError(f"{state_dir}: {error.strerror}", error.errno or 0) from None
