"""What the processes of a mount ask of Python and of the C library, for speed alone.

Measured on 2 cores, requests answered by a file system that does nothing:

- beside a busy thread a FUSE round trip took 5.7 ms with Python's switch interval of 5 ms, 0.75 ms with 0.1 ms;
- a buffer of 1 MiB is one request's data.  The C library asks the kernel for memory of that size each time and gives it
  back, and every page of it faults in anew: sequential writes went from 250-300 to 380-450 MB/s once it kept it.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from icnfs.limits import MIB

SWITCH_INTERVAL: Final = 0.0001
"""Seconds."""

KEPT: Final = 64 * MIB
"""Free memory at the end of the heap that is kept rather than given back."""

_LARGEST: Final = 32 * MIB
"""glibc takes no higher bound for what comes from the heap (mallopt(3))."""

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3


def tune() -> None:
    """To be called once, early.  Another C library than glibc may lack mallopt: then memory is as it gives it."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_TOP_PAD, 4 * MIB)
