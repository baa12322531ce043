"""What the processes of a mount ask of Python, the C library and the scheduler, for speed alone.

Measured on 2 cores, requests answered by a file system that does nothing:

- beside a busy thread a FUSE round trip took 5.7 ms with Python's switch interval of 5 ms, 0.75 ms with 0.1 ms;
- a buffer of 1 MiB is one request's data.  The C library asks the kernel for memory of that size each time and gives it
  back, and every page of it faults in anew: sequential writes went from 250-300 to 380-450 MB/s once it kept it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from icnfs.limits import MIB

SWITCH_INTERVAL: Final = 0.0001
"""Seconds."""

KEPT: Final = 64 * MIB
"""Free memory at the end of the heap that is kept rather than given back."""

AHEAD: Final = -10
"""The niceness of a mount process where others keep it waiting for a processor (`control.precedence`): programs wait
for it, and get nothing done meanwhile."""

SHORT: Final = 100_000
"""Nanoseconds of a mount process's time slice, the shortest there is: Linux, from 6.12 on, lets who asks for little at
a time come before who runs with a longer slice.  Beside a git-gc(1) that computed on both processors SQLite did 100 to
200 transactions a second without it and 210 to 450 with it."""

BEHIND: Final = 10
"""The niceness of a transfer process: what it uploads is safe on this machine already.  A tenth of a processor that
others want as well, all of one that nobody wants.  With SCHED_IDLE, and so idle disk priority, requests became slower:
whoever holds a lock of the file system then waits for its turn."""

ARENAS: Final = 2
"""Heaps that threads share, each of which keeps so much: glibc makes up to eight for each processor."""

_AUTOGROUP: Final = Path("/proc/self/autogroup")

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""Number of the system call, which glibc 2.36 has no function for."""

_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQII")
"""struct sched_attr of sched_setattr(2): size, policy, flags, nice, priority, runtime, deadline, period, clamps."""

_LARGEST: Final = 32 * MIB
"""glibc takes no higher bound for what comes from the heap (mallopt(3))."""

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def tune() -> None:
    """To be called once, early.  Another C library than glibc may lack mallopt: then memory is as it gives it."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_TOP_PAD, 4 * MIB)
        mallopt(_M_ARENA_MAX, ARENAS)


class Place(NamedTuple):
    """The niceness of a process, and of its session (None: it has none of its own, or the kernel knows no such thing).

    Where the kernel shares processors out by session (sched(7), "The autogroup feature"), a niceness counts within the
    session only.
    """

    process: int
    session: int | None


def place() -> Place:
    """What this process has now; the thread that asks stands for all."""
    session = None
    if _leads_session():
        with suppress(OSError, ValueError, IndexError):
            session = int(_AUTOGROUP.read_text(encoding="ascii").split()[-1])
    return Place(os.getpriority(os.PRIO_PROCESS, 0), session)


def take_place(wanted: Place) -> None:
    """Give all threads of this process, and its own session, that niceness, as far as this user may.

    Threads and processes that are started later inherit it.
    """
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread), wanted.process)
    if wanted.session is not None and _leads_session():
        with suppress(OSError):
            _AUTOGROUP.write_text(f"{wanted.session}\n", encoding="ascii")


def _leads_session() -> bool:
    """Whether the session is this process's own: it began it, or whoever did has ended."""
    session = os.getsid(0)
    return session == os.getpid() or not Path(f"/proc/{session}").exists()


def take_slice(slice_ns: int) -> None:
    """Run this thread with time slices of `slice_ns`, 0 for the kernel's own; threads started later inherit it.

    Kernels that know no such thing take no notice.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return
    niceness, policy = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    if policy in (os.SCHED_OTHER, os.SCHED_BATCH):  # else somebody knew better
        attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, 0, niceness, 0, slice_ns, 0, 0, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)
