"""Record a run, rebuild crash states of it, open each, and judge it."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from tests.acceptance.harness import REPO
from tests.acceptance.model import Tree, tree_digest
from tests.acceptance.powerloss import subject
from tests.acceptance.powerloss.recording import Crash, Rebuilder, Recording, draw_crashes, load

REOPEN_EVERY: Final = 10
"""Every so many states are also written to, closed and opened again."""


def build_recorder(folder: Path) -> Path:
    """Compiles the recorder into `folder`."""
    source, library = Path(__file__).with_name("recorder.c"), folder / "recorder.so"
    command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl", "-lpthread"]
    subprocess.run([str(word) for word in command], check=True)
    return library


def record(folder: Path, below: Path, argv: list[str]) -> Recording:
    """Runs `argv` (of this Python) under the recorder, and reads what it recorded of the files below `below`."""
    log = folder / "recording"
    environment = os.environ | {
        "LD_PRELOAD": str(build_recorder(folder)),
        "RECORD_BELOW": str(below),
        "RECORD_TO": str(log),
    }
    subprocess.run([sys.executable, *argv], env=environment, cwd=REPO, check=True, timeout=600)
    return load(log)


@dataclass
class Asked:
    """The digest after every request, and what had been asked and promised at a record of the recording."""

    digests: list[int]
    """digests[n]: the tree after the first n requests that change anything."""
    asked_at: list[int]
    """asked_at[n]: the record before which n requests and no more had been asked; increasing."""
    kept_at: list[tuple[int, int]]
    """(record, requests promised): from that record on, so many are promised."""

    def bounds(self, moment: int) -> tuple[int, int]:
        """(least, most) requests that the state after record `moment` may hold."""
        least = max((promised for record, promised in self.kept_at if record <= moment), default=0)
        most = sum(record <= moment for record in self.asked_at)
        return least, most


def replay(recording: Recording) -> Asked:
    """Works out the tree after each request from the marks."""
    tree = Tree()
    asked = Asked([tree.digest], [], [])
    numbers: list[int] = []
    for mark in recording.marks:
        word, number, *rest = mark.text.split(" ", 2)
        if word == "ask":
            tree.apply(tuple(json.loads(rest[0])))
            numbers.append(int(number))
            asked.asked_at.append(mark.number)
            asked.digests.append(tree.digest)
        else:
            asked.kept_at.append((mark.number, sum(n < int(number) for n in numbers)))
    return asked


@dataclass(frozen=True)
class Verdict:
    """How one crash state was judged; `fault` is empty where all is well."""

    crash: Crash
    pending: int
    held: int
    least: int
    most: int
    fault: str = ""


async def _judge(root: Path, asked: Asked, bounds: tuple[int, int], *, reopen: bool) -> tuple[int, str]:
    """(requests that the state holds, what is wrong with it)."""
    least, most = bounds
    async with subject.opened(root) as opened:
        entries = await opened.read_tree()
        if reopen:
            await opened.apply(("create", "after-the-crash", 0o644))
            await opened.apply(("write", "after-the-crash", 0, 5000, 1))
            await opened.apply(("fsync", "after-the-crash"))
    digest = tree_digest(entries)
    held = max((n for n in range(most + 1) if asked.digests[n] == digest), default=-1)
    if held < 0:
        return held, "is no prefix of the requests"
    if held < least:
        return held, f"holds {held} requests where {least} were promised by fsync"
    if reopen:
        async with subject.opened(root, read_only=True) as opened:
            again = await opened.read_tree()
        again.pop("after-the-crash")
        if tree_digest(again) != digest:
            return held, "changed when it was written to and opened again"
    return held, ""


def _judge_apart(root: Path, asked: Asked, bounds: tuple[int, int], *, reopen: bool) -> tuple[int, str]:
    """`_judge` in a child process: LMDB maps its file, and a damaged one ends whoever reads it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            faulthandler.disable()
            answer = trio.run(partial(_judge, root, asked, bounds, reopen=reopen))
        except BaseException as error:  # noqa: BLE001 - whatever opening or reading raises is the verdict
            answer = -1, f"does not open: {error!r}"
        try:
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answered = pipe.read()
    _, ended = os.waitpid(child, 0)
    if not answered:
        return -1, f"kills its reader (wait status {ended})"
    held, fault = json.loads(answered)
    return int(held), str(fault)


def run(
    work: Path, states: int, seed: int, requests: int, say: Callable[[Verdict], None] = lambda verdict: None
) -> list[Verdict]:
    """The whole trial below `work`, an existing folder on any file system: a verdict for each of `states` states."""
    live, base, state = work / "live", work / "base", work / "state"
    subject.make(live)
    shutil.copytree(live, base)
    recording = record(work, live, ["-m", "tests.acceptance.powerloss.drive", str(live), str(requests), str(seed)])
    asked = replay(recording)
    rebuilder = Rebuilder(recording, base)
    verdicts = []
    for number, crash in enumerate(draw_crashes(recording, states, seed)):
        shutil.rmtree(state, ignore_errors=True)
        pending = rebuilder.rebuild(crash, state, skip=("lock", "lock.mdb", "reserve"))
        bounds = asked.bounds(crash.moment)
        held, fault = _judge_apart(state, asked, bounds, reopen=number % REOPEN_EVERY == 0)
        verdicts.append(Verdict(crash, pending, held, *bounds, fault))
        say(verdicts[-1])
    return verdicts
