"""What a process does before it handles secrets: no core dumps, no ptrace by peers, no secrets in its environment.

Linux only.  It does not lock memory: swap belongs to the threat model's "encrypt your swap".
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # prctl(2)

SECRET_VARIABLES: Final = ("ICNFS_PASSPHRASE", "ICNFS_RECOVERY_KEY")
"""Variables that icnfs does not read and that people set all the same."""


def forbid_core_dumps() -> None:
    """No core file, and /proc/PID readable by root alone: a peer of the same user can neither dump nor trace.

    RLIMIT_CORE alone would not do: a core_pattern that pipes to a program ignores it (core(5)).  Raises OSError.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_DUMPABLE): {os.strerror(code)}")


def drop_secrets_from_environment(names: Iterable[str] = SECRET_VARIABLES) -> None:
    """Unset these variables, and overwrite their values where they lie.

    Unsetting alone leaves them in /proc/PID/environ, which shows the memory that the process was started with.
    """
    for name in names:
        if name in os.environ:
            _overwrite(os.fsencode(name) + b"=")
            del os.environ[name]


def _overwrite(prefix: bytes) -> None:
    """Fill the value of every `NAME=value` of the C library's environment that starts with `prefix` with 'x'."""
    table = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    index = 0
    while address := table[index]:
        entry = ctypes.string_at(address)
        if entry.startswith(prefix):
            ctypes.memset(address + len(prefix), ord("x"), len(entry) - len(prefix))
        index += 1
