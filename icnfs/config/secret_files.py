"""The secrets that a TOML names: read when they are wanted, and never before.

A file that others can read is no secret and is refused.  Nothing here is logged, and no error holds a byte of it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from icnfs.config.volume import VolumeConfig
from icnfs.errors import SecretError
from icnfs.limits import KIB

SECRET_MAX: Final = 64 * KIB
"""Bytes of a passphrase or key file: more is some other file."""

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
"""Where systemd puts a service's credentials (systemd.exec(5))."""


def read_passphrase(config: VolumeConfig) -> bytes | None:
    """The contents of `keys.passphrase_file` without the newline at their end, or None where no file is named.

    Raises `SecretError` where the file is missing, empty, too long, or open to others.
    """
    if config.passphrase_file is None:
        return None
    where = f"{config.path}: keys.passphrase_file"
    data = read_secret_file(config.passphrase_file, where)
    passphrase = data.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase:
        raise SecretError(f"{where}: {config.passphrase_file} is empty; write the passphrase into it")
    return passphrase


def read_keyfile(config: VolumeConfig) -> bytes | None:
    """The contents of `keys.keyfile`, every byte of them, or None; raises `SecretError` as `read_passphrase`."""
    if config.keyfile is None:
        return None
    return read_secret_file(config.keyfile, f"{config.path}: keys.keyfile")


def read_credential(config: VolumeConfig) -> bytes | None:
    """The systemd credential `keys.credential`, every byte of it, or None where none is named.

    Raises `SecretError` where systemd passed none of that name.
    """
    if config.credential is None:
        return None
    where = f"{config.path}: keys.credential"
    folder = os.environ.get(CREDENTIALS)
    if not folder:
        raise SecretError(f"{where}: systemd passed no credentials; add LoadCredential={config.credential} to the unit")
    return _read(Path(folder) / config.credential, where, private=False)  # systemd sees to who may read it


def read_secret_file(path: Path, where: str) -> bytes:
    """All bytes of `path`, a regular file that nobody but its owner (this user, or root) may read or write.

    `where` begins the message of the `SecretError` that is raised for any other: it says who named the file.
    """
    return _read(path, where, private=True)


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
