"""The program that a crash interrupts: carries out a workload on a mount and keeps a journal outside it.

    python -m tests.acceptance.writer ROOT JOURNAL TREE SEED

One line before each request, one after it, each with the monotonic time; a process of one thread, so the requests are
in a total order.  It ends when a request fails (the mount has died under it) or, between two requests, on SIGTERM.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.acceptance.harness import ICNFS
from tests.acceptance.model import Request, Tree, as_received
from tests.acceptance.on_files import Files
from tests.acceptance.workload import WEIGHTS, Workload

SYNC_WEIGHT: Final = 0.4
"""Of `icnfs sync` among requests whose weights sum to about a hundred."""

FAILED_SYNC: Final = "sync failed"


class Journal:
    """Lines of JSON, each in one write: a SIGKILL of others does not touch them."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def say(self, *words: object) -> None:
        os.write(self._fd, json.dumps([*words, time.monotonic()]).encode() + b"\n")


@dataclass
class Told:
    """A journal, read: `requests` in order, all but perhaps the last of them `returned` (by the time they did)."""

    requests: list[Request] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)
    failure: str = ""
    """Name of the errno that ended the run; empty when it was told to end."""


def read_journal(path: Path) -> Told:
    told = Told()
    raw = path.read_bytes() if path.exists() else b""
    for line in raw.split(b"\n")[:-1]:
        word, *rest, when = json.loads(line)
        if word == "ask":
            told.requests += as_received(tuple(rest[0]))
        elif word == "done":
            told.returned += [when] * (len(told.requests) - len(told.returned))
        else:
            told.failure = rest[0]
    return told


def requests_told(path: Path) -> int:
    """How many requests have been asked so far, cheaply."""
    return path.read_bytes().count(b'["ask"') if path.exists() else 0


def _carry_out(files: Files, request: Request) -> None:
    if request[0] != "sync":
        files.apply(request)
        return
    done = subprocess.run([str(ICNFS), "sync", files.root], capture_output=True, check=False, timeout=120)
    if done.returncode:
        raise OSError(0, FAILED_SYNC)


def main(root: str, journal_path: Path, tree_path: Path, seed: int) -> None:
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    os.umask(0)
    tree: Tree = pickle.loads(tree_path.read_bytes())
    files, journal = Files(root), Journal(journal_path)
    for request in Workload(tree, seed, WEIGHTS | {"sync": SYNC_WEIGHT}):
        if stopping:
            return
        journal.say("ask", request)
        try:
            _carry_out(files, request)
        except OSError as error:
            journal.say("failed", error.strerror if not error.errno else os.strerror(error.errno))
            return
        journal.say("done")
        tree.apply(request)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
