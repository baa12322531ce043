"""The place that a process asks of the scheduler, and that its threads have it too."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from icnfs import process

CHILD = """
import ctypes, os, sys, threading
from icnfs import process

def slice_now():
    buffer = ctypes.create_string_buffer(process._SCHED_ATTR.size)
    number = process._SCHED_SETATTR[os.uname().machine] + 1  # sched_getattr
    assert ctypes.CDLL(None).syscall(number, 0, buffer, len(buffer), 0) == 0
    return process._SCHED_ATTR.unpack(buffer.raw)[5]

os.setsid()
shipped = slice_now()
ended = threading.Event()
other = threading.Thread(target=ended.wait)
other.start()
process.take_place(process.Place(5, 5))
place = process.place()
assert place.process == os.getpriority(os.PRIO_PROCESS, other.native_id) == 5, place
assert place.session == (5 if os.path.exists("/proc/self/autogroup") else None), place
ended.set()
other.join()
process.take_slice(process.SHORT)
found = [slice_now()]
thread = threading.Thread(target=lambda: found.append(slice_now()))
thread.start()
thread.join()
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
process.take_place(process.Place(10, 10))
process.take_slice(0)
print(*found, slice_now() == shipped, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))
"""


@pytest.mark.skipif(
    os.uname().machine not in process._SCHED_SETATTR
    or tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) < (6, 12),
    reason="slices are Linux 6.12's, and the call's number is known for some machines",
)
def test_a_process_and_its_threads_get_the_slice_and_give_it_back() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    short = str(process.SHORT)
    assert done.stdout.split() == [short, short, "True", "10", str(os.SCHED_BATCH)]


def test_a_machine_whose_call_is_not_known_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_SCHED_SETATTR", {})
    process.take_slice(process.SHORT)
