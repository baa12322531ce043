"""Files that hold secrets: read when they are wanted, refused where others could read or change them.

No error here holds a byte of a secret.  It knows neither the TOML nor what the secret is for.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from icnfs.errors import SecretError
from icnfs.limits import KIB

SECRET_MAX: Final = 64 * KIB
"""Bytes of a file with a secret: more is some other file."""

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
"""Where systemd puts a service's credentials (systemd.exec(5))."""


def read_secret_file(path: Path, where: str) -> bytes:
    """All bytes of `path`, a regular file that nobody but its owner (this user, or root) may read or write.

    `where` begins the message of the `SecretError` that is raised for any other: it says who named the file.
    """
    return _read(path, where, private=True)


def read_systemd_credential(name: str, where: str) -> bytes:
    """All bytes of the credential that systemd passed under `name`; `SecretError` where it passed none."""
    folder = os.environ.get(CREDENTIALS)
    if not folder:
        raise SecretError(f"{where}: systemd passed no credentials; add LoadCredential={name} to the unit")
    return _read(Path(folder) / name, where, private=False)  # systemd sees to who may read it


def _read(path: Path, where: str, *, private: bool) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo must not hold us
    except OSError as error:
        raise SecretError(f"{where}: {path}: {error.strerror}; put the secret there or correct the key") from None
    try:
        _check(os.fstat(fd), path, where, private=private)
        data = os.read(fd, SECRET_MAX + 1)
    except OSError as error:
        raise SecretError(f"{where}: {path}: {error.strerror}; put the secret there or correct the key") from None
    finally:
        os.close(fd)
    if not 0 < len(data) <= SECRET_MAX:
        raise SecretError(f"{where}: {path} is empty or longer than {SECRET_MAX // KIB} KiB; is it the right file?")
    return data


def _check(status: os.stat_result, path: Path, where: str, *, private: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SecretError(f"{where}: {path} is not a file; put the secret there or correct the key")
    if not private:
        return
    if status.st_mode & 0o077:
        raise SecretError(f"{where}: {path} is open to others; run chmod 600 {path}")
    if status.st_uid not in (os.geteuid(), 0):
        raise SecretError(f"{where}: {path} belongs to another user; run chown {os.geteuid()} {path}")
