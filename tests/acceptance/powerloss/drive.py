"""The recorded program: a mixed load on a state, saying in the recorder's log what was asked and what was promised.

    python -m tests.acceptance.powerloss.drive STATE REQUESTS SEED      (under LD_PRELOAD of the recorder)

Marks: `ask N REQUEST` before request N changes anything; `kept N` once an fsync has returned that was asked for after
request N had been carried out.  Fsyncs run beside later requests, as several programs on one mount would have it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import trio

from tests.acceptance.model import Request, Tree
from tests.acceptance.powerloss.subject import Subject, opened
from tests.acceptance.workload import Workload

FSYNCS_AT_ONCE: Final = 3


def mark(text: str) -> None:
    """Into the recorder's log, in order with the writes around it."""
    raw = text.encode()
    ctypes.CDLL(None).recorder_mark(raw, ctypes.c_size_t(len(raw)))


async def _keep(subject: Subject, fh: int, number: int, room: trio.CapacityLimiter) -> None:
    """Fsync of an open file, which later requests may have renamed or unlinked."""
    async with room:
        await subject.vfs.fsync(fh, datasync=False)
        mark(f"kept {number}")
        subject.vfs.release(fh)


def _open(subject: Subject, request: Request) -> int:
    ino = subject.ino(str(request[1]))
    return subject.vfs.open(ino, os.O_RDONLY).fh if request[0] == "fsync" else subject.vfs.opendir(ino)


async def drive(root: Path, requests: int, seed: int) -> None:
    tree = Tree()
    room = trio.CapacityLimiter(FSYNCS_AT_ONCE)
    async with opened(root) as subject, trio.open_nursery() as fsyncs:
        for number, request in enumerate(islice(Workload(tree, seed), requests)):
            if request[0] in ("fsync", "fsyncdir"):
                fsyncs.start_soon(_keep, subject, _open(subject, request), number, room)
                await trio.lowlevel.checkpoint()
                while room.borrowed_tokens >= FSYNCS_AT_ONCE:
                    await trio.lowlevel.checkpoint()
            else:
                mark(f"ask {number} {json.dumps(request)}")
                await subject.apply(request)
            tree.apply(request)
            if number % 5 == 0:
                await trio.lowlevel.checkpoint()


if __name__ == "__main__":
    trio.run(partial(drive, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
