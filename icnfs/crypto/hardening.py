"""What a process does before it handles secrets, or the bytes of strangers: no core dumps, no ptrace by peers, no
secrets in its environment, no privileges that it does not need.

Linux only.  It does not lock memory: swap belongs to the threat model's "encrypt your swap".
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # prctl(2)
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITIES_3: Final = 0x20080522  # capget(2)

CAP_DAC_OVERRIDE: Final = 1
CAP_DAC_READ_SEARCH: Final = 2
CAP_FOWNER: Final = 3
OVER_FILES: Final = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH | 1 << CAP_FOWNER
"""What root needs for folders and files of others (capabilities(7))."""

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


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def give_up_privileges(kept: int = OVER_FILES) -> None:
    """Keep no other capability than those of the mask `kept`, for good and for whatever is executed.

    So a process of root's can no longer trace another that dumps no core, load modules or mount.  To be called while
    the process has one thread: the kernel keeps capabilities by thread.  Raises OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_NO_NEW_PRIVS): {os.strerror(code)}")
    for capability in range(64):  # in vain for who is not root, and where the kernel knows no such one
        if not kept >> capability & 1:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, sets = _Header(_CAPABILITIES_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets) == 0:
        for word, held in enumerate(sets):
            held.permitted &= kept >> 32 * word & 0xFFFFFFFF
            held.effective &= held.permitted
            held.inheritable = 0
        if libc.capset(ctypes.byref(header), sets) == 0:
            return
    code = ctypes.get_errno()
    raise OSError(code, f"capset: {os.strerror(code)}")


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
