"""The secrets that a TOML's `[keys]` names: read when they are wanted, and never before.

A file that others can read is no secret and is refused.  Nothing here is logged, and no error holds a byte of it.
"""

from __future__ import annotations

from icnfs.config.volume import VolumeConfig
from icnfs.errors import SecretError
from icnfs.private import CREDENTIALS, SECRET_MAX, read_secret_file, read_systemd_credential

__all__ = ["CREDENTIALS", "SECRET_MAX", "read_credential", "read_keyfile", "read_passphrase", "read_secret_file"]


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
    return read_systemd_credential(config.credential, f"{config.path}: keys.credential")
