"""Before a step that reads: what is cached of its files is dropped.

Dropping the kernel's caches keeps the pages that a process has mapped, as a mount's process has those of its database
(LMDB, badger): they are reclaimed first, with process_madvise(MADV_PAGEOUT), so that every file system's cold reads are
as cold.  What processes keep in memory of their own stays, as it would for their users.  Needs root, and Linux 5.10.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROCESS_MADVISE: Final = 440
_MADV_PAGEOUT: Final = 21
_STEP: Final = 1 << 30
"""Bytes asked for at a time: one answer is at most 2 GiB."""

_MAPPING: Final = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* +(/.*)$")
"""Of /proc/PID/maps: addresses and path of a mapped file."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Piece(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def drop_caches() -> bool:
    """Whether the kernel forgot what it had cached; needs root."""
    os.sync()
    with suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")
        return True
    return False


def mapped(pid: int, below: Path) -> list[tuple[int, int]]:
    """(start, end) of what process `pid` has mapped of files below a folder."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        match = _MAPPING.match(line)
        if match and Path(match[3]).is_relative_to(below):
            found.append((int(match[1], 16), int(match[2], 16)))
    return found


def page_out(pids: Iterable[int], below: Path) -> bool:
    """Give back the pages of files below a folder that the processes have mapped; whether the kernel took the wish."""
    done = True
    for pid in pids:
        with suppress(ProcessLookupError, FileNotFoundError):
            descriptor = os.pidfd_open(pid)
            try:
                for start, end in mapped(pid, below):
                    for at in range(start, end, _STEP):
                        done &= _advise(descriptor, at, min(_STEP, end - at))
            finally:
                os.close(descriptor)
    return done


def _advise(descriptor: int, start: int, length: int) -> bool:
    piece = _Piece(start, length)
    found = _libc.syscall(_PROCESS_MADVISE, descriptor, ctypes.byref(piece), 1, _MADV_PAGEOUT, 0)
    return bool(found >= 0)


def resident(pid: int, below: Path) -> int:
    """Bytes in memory of what process `pid` has mapped of files below a folder."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        if re.match(r"^[0-9a-f]+-[0-9a-f]+ ", line):
            match = _MAPPING.match(line)
            inside = bool(match) and Path(match[3]).is_relative_to(below) if match else False
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def forget(pids: Iterable[int], below: Path) -> bool:
    """All of it: mapped pages given back, then the kernel's caches dropped."""
    os.sync()
    paged = page_out(pids, below)
    return drop_caches() and paged
