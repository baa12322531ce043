"""No system call costs more requests than it did: they are the most expensive thing that a call can grow.

The table was recorded with Linux 6.18; a call that comes to need more of a kind than a fifth above it fails, one that
needs fewer should have its line brought down.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.bench.counts import CALLS, Counts, measure

GROWTH = 1.2

RECORDED: dict[str, Counts] = {
    "open, close": {"open": 1, "release": 1},
    "create, write 4 KiB, close": {"create": 1, "getxattr": 1, "lookup": 1, "release": 1, "write": 1},
    "pread 4 KiB, cached": {},
    "pread 4 KiB, cold": {"read": 1},
    "append 4 KiB": {"getxattr": 1, "write": 1},
    "append 4 KiB, fsync": {"fsync": 1, "getxattr": 1, "write": 1},
    "pwrite 4 KiB": {"getxattr": 1, "write": 1},
    "pwrite 4 KiB, the second": {"write": 1},
    "write 1 MiB": {"write": 1},
    "stat": {},
    "stat, cold": {"lookup": 2},
    "stat of what is not there": {"lookup": 1},
    "rename": {"lookup": 1, "rename": 1},
    "link": {"link": 1, "lookup": 1},
    "symlink": {"lookup": 1, "symlink": 1},
    "readlink": {"readlink": 1},
    "unlink": {"unlink": 1},
    "mkdir": {"lookup": 1, "mkdir": 1},
    "rmdir": {"rmdir": 1},
    "list 100 entries": {"opendir": 1, "readdir": 2, "releasedir": 1},
    "list 100 entries, stat each, cold": {"lookup": 1, "opendir": 1, "readdir": 2, "releasedir": 1},
    "chmod": {"setattr": 1},
    "chown": {"getxattr": 1, "setattr": 1},
    "utimensat": {"setattr": 1},
    "truncate": {"getxattr": 1, "setattr": 1},
    "getxattr": {"getxattr": 1},
    "setxattr": {"setxattr": 1},
    "statfs": {"statfs": 1},
    "open, map and read 128 KiB, close, cold": {"lookup": 2, "open": 1, "read": 1, "release": 1},
    "copy 1 MiB": {"create": 1, "getxattr": 1, "lookup": 1, "open": 1, "release": 2, "write": 16},
}


def kernel() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert found
    return int(found[1]), int(found[2])


def asked_without_killpriv() -> set[str]:
    """Kinds that a kernel sends on its own account where it has no FUSE_HANDLE_KILLPRIV_V2."""
    return set() if kernel() >= (5, 11) else {"getxattr", "getattr"}


def test_every_call_is_recorded() -> None:
    assert list(RECORDED) == list(CALLS)


@pytest.mark.mount
def test_no_call_costs_more_requests_than_recorded(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert len(found) >= sum(not call.cold for call in CALLS.values())
    grown = {
        call: counts
        for call, counts in found.items()
        for kind in counts.keys() - asked_without_killpriv()
        if counts[kind] > RECORDED[call].get(kind, 0) * GROWTH
    }
    assert grown == {}, "these calls cost more requests than recorded"
