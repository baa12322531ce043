"""Where control sockets live: a directory of mode 0700 that only its owner enters, one socket of mode 0600 a volume.

Sockets are reached by way of an open directory (/proc/self/fd), which frees them from the 108 bytes of sun_path and
from anyone who could exchange a parent directory in between.
"""

from __future__ import annotations

import os
import socket
import struct
from errno import EIO
from pathlib import Path
from typing import Final, Protocol

from icnfs.config.paths import private_directory
from icnfs.errors import LocalDiskError

SUFFIX: Final = ".sock"
_PEER: Final = struct.Struct("3i")


def listen(directory: Path, volume: str) -> socket.socket:
    """A listening socket for `volume`, in place of what a dead mount left there.

    The caller holds the volume's lock: no living mount of it can own the old socket.  Raises ConfigError where
    `directory` is not this user's alone, LocalDiskError where nothing can be made in it.
    """
    try:
        return _listen(private_directory(directory), volume)
    except OSError as error:
        where = directory / (volume + SUFFIX)
        remedy = "name a folder by ICNFS_RUNTIME_DIR that this user may write to and that has room"
        raise LocalDiskError(
            f"{where}: the control socket cannot be made: {error}; {remedy}", error.errno or EIO
        ) from None


def _listen(directory: Path, volume: str) -> socket.socket:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    name = volume + SUFFIX
    try:
        remove(directory, volume)
        listener.bind(f"/proc/self/fd/{fd}/{name}")
        os.chmod(name, 0o600, dir_fd=fd)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(fd)
    return listener


def connect(directory: Path, volume: str, timeout: float) -> socket.socket:
    """A connection to the mount of `volume`; OSError when there is none."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(timeout)
        connection.connect(f"/proc/self/fd/{fd}/{volume}{SUFFIX}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(fd)
    return connection


def remove(directory: Path, volume: str) -> None:
    """Remove the volume's socket."""
    (directory / (volume + SUFFIX)).unlink(missing_ok=True)


def volumes(directory: Path) -> list[str]:
    """Names of the volumes that have a socket in `directory`, sorted; a dead mount may have left some."""
    try:
        return sorted(entry.name.removesuffix(SUFFIX) for entry in directory.iterdir() if entry.name.endswith(SUFFIX))
    except OSError:
        return []


class HasOptions(Protocol):
    """A connected socket, of the standard library or of trio."""

    def getsockopt(self, level: int, optname: int, buflen: int) -> bytes:
        """getsockopt(2)."""


def peer(connection: HasOptions) -> tuple[int, int]:
    """Process and user id of the other end, as the kernel vouches for them (SO_PEERCRED, unix(7))."""
    pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def trusted(uid: int) -> bool:
    """Whether `uid` may command this process: its own user, or root."""
    return uid in (0, os.geteuid())
