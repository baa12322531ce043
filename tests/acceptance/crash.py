"""SIGKILL of the front, of transfer, or of both, at seeded moments of a mixed workload; and what must hold afterwards.

    python -m tests.acceptance.crash [--kills N] [--seed S] [--work FOLDER]

After each kill: the next mount needs nothing before it; the tree is the result of a prefix of the requests that lacks
none that returned a second or more before the kill, nor any before the last fsync that returned.  Every few kills, what
the providers hold is recovered on an empty machine: it is the tree as of one request, not before the last `icnfs sync`.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.acceptance.harness import REPO, Settings, Volume, in_mount_table, wait_for
from tests.acceptance.model import Entry, Request, Tree, tree_digest
from tests.acceptance.on_files import read_tree
from tests.acceptance.writer import FAILED_SYNC, Told, read_journal, requests_told

SHORT_SECONDS: Final = 1.0
"""The tree after a crash may lack what was asked in the last second before it (promise 2)."""

RECOVER_EVERY: Final = 4
TRANSFER_ENDS_SECONDS: Final = 10
REQUESTS_MAX: Final = 400
"""A kill comes after so many requests at most, so that some come early in a mount's life and some late."""

DEAD_MOUNT: Final = frozenset(
    (os.strerror(code) for code in (107, 103, 5)),
)
"""What a request under a front that dies may answer: ENOTCONN, ECONNABORTED, EIO."""

VICTIMS: Final = ("front", "transfer", "both", "front", "both")

SETTINGS: Final[Settings] = {"volume": {"code": "4-of-6", "publish_seconds": 1}}


class Broken(AssertionError):
    """A promise that did not hold."""


@dataclass
class History:
    """Every request whose result is in the volume, in order, and the tree's digest after each."""

    tree: Tree = field(default_factory=Tree)
    requests: list[Request] = field(default_factory=list)
    digests: list[int] = field(default_factory=lambda: [0])
    synced: int = 0
    """Requests that the last `icnfs sync` covers."""

    def extended(self, told: Told) -> tuple[list[int], Tree]:
        """Digests after each of the told requests, were all of them carried out, and the tree then."""
        tree: Tree = pickle.loads(pickle.dumps(self.tree))
        digests = []
        for request in told.requests:
            tree.apply(request)
            digests.append(tree.digest)
        return digests, tree

    def accept(self, told: Told, count: int) -> None:
        """The first `count` of the told requests are in the volume, the others are not and will never be."""
        for number, request in enumerate(told.requests[:count]):
            self.tree.apply(request)
            self.requests.append(request)
            self.digests.append(self.tree.digest)
            if request[0] == "sync" and number < len(told.returned):
                self.synced = len(self.requests)


def fsynced(told: Told) -> int:
    """Requests that the last fsync that returned (or `icnfs sync`) promises."""
    calls = [
        n
        for n, request in enumerate(told.requests[: len(told.returned)])
        if request[0] in ("fsync", "fsyncdir", "sync")
    ]
    return calls[-1] + 1 if calls else 0


def held(told: Told, digests: list[int], before: int, found: int) -> int:
    """The most told requests of which `found` is the result; -1 when it is none."""
    return max((n for n, digest in enumerate([before, *digests]) if digest == found), default=-1)


class Run:
    """One volume, killed again and again."""

    def __init__(self, work: Path, seed: int, say: Callable[[str], None] = lambda line: None) -> None:
        self.volume = Volume(work / "machine", settings=SETTINGS)
        self.history = History()
        self.work = work
        self.recoveries = 0
        self._random = random.Random(seed)
        self._say = say
        self._kills = 0

    def start(self) -> None:
        self.volume.init()
        self.volume.mount()

    def close(self) -> None:
        self.volume.close()

    def step(self) -> None:
        """One kill and all that must hold after it; raises `Broken`."""
        self._kills += 1
        victim = self._random.choice(VICTIMS)
        journal = self.work / f"journal-{self._kills}"
        writer = self._write(journal)
        try:
            self._await_requests(writer, journal, self._random.randint(1, REQUESTS_MAX))
            killed = time.monotonic()
            self._kill(victim)
            if victim == "transfer":
                self._await_requests(writer, journal, requests_told(journal) + self._random.randint(1, 50))
                writer.terminate()
            writer.wait(150)
        finally:
            writer.kill()
            writer.wait()
        told = read_journal(journal)
        copies = self._copy_providers() if self._kills % RECOVER_EVERY == 0 else None
        if victim == "transfer":
            self._check_alive(told)
        else:
            self._check_crashed(told, killed)
        self._say(
            f"kill {self._kills} of {victim} after {len(told.requests)} requests: {len(self.history.requests)} held"
        )
        if copies is not None:
            self._check_recovery(copies)

    # --- the workload ----------------------------------------------------------------------------------------------

    def _write(self, journal: Path) -> subprocess.Popen[bytes]:
        tree = self.work / "tree"
        tree.write_bytes(pickle.dumps(self.history.tree))
        seed = str(self._random.getrandbits(32))
        argv = [
            sys.executable,
            "-m",
            "tests.acceptance.writer",
            str(self.volume.mountpoint),
            str(journal),
            str(tree),
            seed,
        ]
        return subprocess.Popen(argv, env=self.volume.env, cwd=REPO)

    @staticmethod
    def _await_requests(writer: subprocess.Popen[bytes], journal: Path, count: int) -> None:
        wait_for(lambda: requests_told(journal) >= count or writer.poll() is not None, 120, f"{count} requests")

    def _kill(self, victim: str) -> None:
        if victim == "both" and self._random.random() < 0.5:
            self.volume.kill_transfer()
        if victim != "transfer":
            transfer = self.volume.transfer_pid()
            self.volume.kill_front()
            if transfer is not None:
                if victim == "both":
                    _kill_if_alive(transfer)
                wait_for(lambda: not _alive(transfer), TRANSFER_ENDS_SECONDS, "transfer to end with its front")
        else:
            self.volume.kill_transfer()

    # --- what must hold --------------------------------------------------------------------------------------------

    def _observe(self) -> dict[str, Entry]:
        return read_tree(str(self.volume.mountpoint))

    def _check_alive(self, told: Told) -> None:
        """The death of transfer alone is not noticed by those who use the mount."""
        if told.failure and told.failure != FAILED_SYNC:
            raise Broken(f"with transfer killed, {told.requests[-1]} answered {told.failure}")
        if told.failure:
            told.requests.pop()
        self.history.accept(told, len(told.requests))
        self._compare(self._observe(), self.history.tree.digest, "with transfer killed the tree changed by itself")

    def _check_crashed(self, told: Told, killed: float) -> None:
        if told.failure and told.failure not in DEAD_MOUNT and told.failure != FAILED_SYNC:
            raise Broken(f"under a dying mount, {told.requests[-1]} answered {told.failure}")
        self.volume.mount()
        found = self._observe()
        digests, _ = self.history.extended(told)
        count = held(told, digests, self.history.tree.digest, tree_digest(found))
        if count < 0:
            self._describe(found, told)
        least = max(fsynced(told), bisect_right(told.returned, killed - SHORT_SECONDS))
        if count < least:
            late = f"the last returned fsync is request {fsynced(told)}; {least} are due"
            raise Broken(f"{count} of {len(told.requests)} requests are held: {late}")
        self.history.accept(told, count)

    def check_recovery(self) -> None:
        """What the providers hold now recovers."""
        self._check_recovery(self._copy_providers())

    def _copy_providers(self) -> dict[str, Path]:
        """As they are at one moment: nothing of ours runs meanwhile."""
        self.recoveries += 1
        copies = {name: self.work / f"recovery-{self.recoveries}" / name for name in self.volume.providers}
        with self.volume.frozen():
            for name, place in self.volume.providers.items():
                shutil.copytree(place, copies[name])
        return copies

    def _check_recovery(self, copies: dict[str, Path]) -> None:
        """Copied providers give one published cut to a machine that has only TOML and secret."""
        root = self.work / f"machine-{self.recoveries}"
        with self.volume.elsewhere(root, copies) as other:
            other.recover()
            other.mount()
            found = tree_digest(read_tree(str(other.mountpoint)))
            other.umount()
        at = [n for n, digest in enumerate(self.history.digests) if digest == found]
        if not at:
            raise Broken("what the providers hold recovers to a tree that never was")
        if at[-1] < self.history.synced:
            raise Broken(f"recovered as of request {at[-1]}, and `icnfs sync` had returned at {self.history.synced}")
        for folder in (root, self.work / f"recovery-{self.recoveries}"):
            shutil.rmtree(folder)
        self._say(f"recovered as of request {at[-1]} of {len(self.history.requests)}")

    def check_remount(self) -> None:
        """After an orderly umount nothing is short."""
        self.volume.umount()
        if in_mount_table(self.volume.mountpoint):
            raise Broken("umount left the mount point occupied")
        self.volume.mount()
        self._compare(self._observe(), self.history.tree.digest, "umount and mount changed the tree")

    def _compare(self, found: dict[str, Entry], digest: int, fault: str) -> None:
        if tree_digest(found) != digest:
            raise Broken(f"{fault}: {_differences(found, self.history.tree.entries())}")

    def _describe(self, found: dict[str, Entry], told: Told) -> None:
        """Raises `Broken` with the prefix that comes nearest."""
        tree: Tree = pickle.loads(pickle.dumps(self.history.tree))
        nearest = (len(_differences(found, tree.entries())), 0, _differences(found, tree.entries()))
        for number, request in enumerate(told.requests, 1):
            tree.apply(request)
            differences = _differences(found, tree.entries())
            nearest = min(nearest, (len(differences), number, differences))
        _, number, differences = nearest
        around = told.requests[max(0, number - 2) : number + 2]
        raise Broken(f"no prefix of {len(told.requests)}; nearest is {number} ({around}), but {differences[:5]}")


def _differences(found: dict[str, Entry], expected: dict[str, Entry]) -> list[str]:
    names = sorted(found.keys() | expected.keys())
    return [f"{n}: {found.get(n)} not {expected.get(n)}" for n in names if found.get(n) != expected.get(n)]


def _alive(pid: int) -> bool:
    """Whether a process runs, and is not merely unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _kill_if_alive(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main() -> int:
    parser = argparse.ArgumentParser(description="SIGKILL at seeded moments of a mixed workload")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where the volume lies (default: a fresh temporary folder)")
    given = parser.parse_args()
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="icnfs-crash-", dir=given.work))
    run = Run(work, given.seed, lambda line: print(line, flush=True))
    try:
        run.start()
        for _ in range(given.kills):
            run.step()
        run.check_remount()
        run.check_recovery()
    except BaseException:
        print(f"the volume is kept in {work}")
        raise
    finally:
        run.close()
    shutil.rmtree(work)
    seconds = time.monotonic() - began
    print(f"{given.kills} kills, {len(run.history.requests)} requests, {run.recoveries} recoveries, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
