"""Where a volume's files of this machine are, for root and for a user.

                     root                    a user                               instead of both
    configuration    /etc/icnfs/NAME.toml    $XDG_CONFIG_HOME/icnfs/NAME.toml     $ICNFS_CONFIG_DIR/NAME.toml
    state            /var/lib/icnfs/NAME     $XDG_STATE_HOME/icnfs/NAME           $ICNFS_STATE_DIR/NAME
    sockets          /run/icnfs/NAME.sock    $XDG_RUNTIME_DIR/icnfs/NAME.sock     $ICNFS_RUNTIME_DIR/NAME.sock

Nothing here is made or opened, except by `private_directory`.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import platformdirs

from icnfs.errors import ConfigError, UsageError

NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
"""Names of volumes and providers: they become file names, and parts of the command line."""

SOCKET_PATH_MAX: Final = 107
"""Bytes of a socket's path: `sun_path` has 108 with its NUL (unix(7))."""


def check_volume_name(name: str) -> str:
    """`name` itself; UsageError unless it is 1 to 32 of `a-z`, `0-9` and `-`, and begins with no dash."""
    if NAME_PATTERN.fullmatch(name) is None:
        raise UsageError(f"{name[:40]!r} is no volume's name; use 1 to 32 of a-z, 0-9 and -, with no dash in front")
    return name


def config_dir() -> Path:
    """The folder of the TOML files."""
    return _choose("ICNFS_CONFIG_DIR", "/etc/icnfs", platformdirs.user_config_path)


def config_file(name: str) -> Path:
    """The TOML of volume `name`."""
    return config_dir() / f"{check_volume_name(name)}.toml"


def state_dir(name: str) -> Path:
    """The folder of the local state of volume `name`, 0700 once it is made."""
    return _choose("ICNFS_STATE_DIR", "/var/lib/icnfs", platformdirs.user_state_path) / check_volume_name(name)


def runtime_dir() -> Path:
    """The folder of the sockets; make it with `private_directory`, for its parent may be everybody's."""
    return _choose("ICNFS_RUNTIME_DIR", "/run/icnfs", platformdirs.user_runtime_path)


def socket_path(name: str) -> Path:
    """The control socket of the mount of volume `name`; ConfigError where no socket can have so long a path."""
    path = runtime_dir() / f"{check_volume_name(name)}.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise ConfigError(
            f"{path}: too long for a socket ({SOCKET_PATH_MAX} bytes); set ICNFS_RUNTIME_DIR to a short one"
        )
    return path


def private_directory(path: Path) -> Path:
    """Make `path` (0700, its parents as the umask says) unless it is there; ConfigError where others can reach it.

    A directory of another user, a symbolic link, or one that group or others may enter is not taken: in a folder
    that everybody may write to, somebody else could have made it first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ConfigError(f"{path}: not a directory of this user's own; move it away") from None
        if status.st_mode & 0o077:
            raise ConfigError(f"{path}: others may enter it; run chmod 700 {path}") from None
    return path


def _choose(variable: str, roots: str, users: Callable[[str], Path]) -> Path:
    """The folder named by the environment, or root's, or the user's own by the XDG rules."""
    value = os.environ.get(variable)
    if value:
        if not value.startswith("/"):
            raise ConfigError(f"{variable}: {value[:80]!r} is no absolute path; set one, or unset it")
        return Path(value)
    if os.geteuid() == 0:
        return Path(roots)
    with warnings.catch_warnings():  # without XDG_RUNTIME_DIR it is a folder in /tmp, which `private_directory` checks
        warnings.simplefilter("ignore")
        return users("icnfs")
