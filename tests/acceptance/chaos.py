"""Providers killed, frozen, slowed and corrupted at random under a mixed load; and what must hold all the while.

    python -m tests.acceptance.chaos [--minutes 10] [--seed N] [--server weed|plain] [--work FOLDER]

Six providers, 4-of-6, each a server process of its own behind a proxy.  A monkey, whose choices follow from the seed,
harms up to two of them at a time: SIGKILL and a later start over the same data, SIGSTOP, few bytes/s, seconds of delay,
cut connections, flipped bits.  A provider counts as harmed until it answers again.

Held: no read fails or is wrong; no call on the mount takes longer than the deadline of the TOML; nothing but `icnfs
sync` notices, which may say degraded and must say so in its own time; the memory of front and transfer is bounded; and
at the end, with all providers well, `sync` succeeds, and a machine without local state recovers every acknowledged
write.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tests.acceptance.fleet import Node, fleet
from tests.acceptance.harness import PROVIDERS, Settings, Volume
from tests.acceptance.load import MIB, Load
from tests.acceptance.remote import RemoteVolume, Say, resident, say

HARMED_MAX: Final = 2
"""n - k."""

READ_DEADLINE: Final = 20.0
SYNC_DEADLINE: Final = 60.0
SLACK: Final = 5.0
"""Seconds that a call may take beyond its deadline: two busy processors are shared by six servers and all clients."""

MEMORY_MAX: Final = 512 * MIB
"""Of each process, in bytes that no file backs."""

SETTINGS: Final[Settings] = {
    "volume": {
        "code": "4-of-6",
        "publish_seconds": 5,
        "publish_mib": 32,
        "read_deadline": READ_DEADLINE,
        "sync_deadline": SYNC_DEADLINE,
    },
    "cache": {"clean": "16MiB"},
}
"""With so small a cache, cold files are read from the providers again and again."""


@dataclass
class Size:
    """How much of it."""

    seconds: float
    cold_files: int = 48
    cold_size: int = 4 * MIB
    harm: tuple[float, float] = (3.0, 30.0)
    """Seconds that a harm lasts."""


# --- the monkey -----------------------------------------------------------------------------------------------------


def _kill(node: Node, chance: random.Random, wait: Callable[[], object]) -> None:
    node.kill()
    wait()
    node.start()


def _freeze(node: Node, chance: random.Random, wait: Callable[[], object]) -> None:
    node.freeze()
    wait()
    node.thaw()


def _spoil(**choices: tuple[float | bool, ...]) -> Callable[[Node, random.Random, Callable[[], object]], None]:
    def harm(node: Node, chance: random.Random, wait: Callable[[], object]) -> None:
        node.spoil(**{name: chance.choice(values) for name, values in choices.items()})
        wait()
        node.spoil()

    return harm


HARMS: Final[dict[str, Callable[[Node, random.Random, Callable[[], object]], None]]] = {
    "kill": _kill,
    "freeze": _freeze,
    "slow": _spoil(rate=(2e3, 50e3, 500e3)),
    "delay": _spoil(delay=(0.5, 2.0, 10.0)),
    "corrupt": _spoil(flip=(0.02, 0.3, 1.0)),
    "cut": _spoil(cut=(True,)),
}


class Monkey:
    """Threads that each harm one provider at a time, never the same one."""

    def __init__(self, nodes: dict[str, Node], seed: int, size: Size) -> None:
        self.done: Counter[str] = Counter()
        self.now: dict[str, str] = {}
        """Provider -> harm."""
        self.failures: list[str] = []
        self._nodes, self._size = nodes, size
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 10 + number),))
            for number in range(HARMED_MAX)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """All is well afterwards."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, chance: random.Random) -> None:
        while not self._stopping.is_set():
            kind = chance.choice(list(HARMS))
            seconds = chance.uniform(*self._size.harm)
            with self._lock:
                name = chance.choice(sorted(self._nodes.keys() - self.now.keys()))
                self.now[name] = kind
            try:
                HARMS[kind](self._nodes[name], chance, partial(self._stopping.wait, seconds))
            except Exception as error:  # noqa: BLE001  # told in the verdict: the trial is void
                self.failures.append(f"the monkey could not {kind} {name}: {error!r}")
            with self._lock:
                self.done[kind] += 1
                del self.now[name]
            self._stopping.wait(chance.uniform(0, 3))


# --- the trial ------------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What was seen, and what of it is against the promises."""

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Memory:
    """The most that each process took."""

    front: int = 0
    transfer: int = 0

    def look(self, volume: RemoteVolume) -> None:
        self.front = max(self.front, resident(volume.front.pid if volume.front else None))
        self.transfer = max(self.transfer, resident(volume.transfer_pid()))


def run(work: Path, *, seed: int, size: Size, kind: str, say: Say) -> Verdict:
    """The whole trial; `work` is left without processes and mounts."""
    with fleet(list(PROVIDERS), work / "servers", kind=kind, seed=seed) as nodes:
        urls = {name: node.place.url for name, node in nodes.items()}
        with RemoteVolume(work / "machine", urls, settings=SETTINGS) as volume:
            volume.init()
            volume.mount()
            load = Load(volume.mountpoint, volume.env, seed)
            load.fill(size.cold_files, size.cold_size)
            volume.sync(seconds=600)
            verdict, monkey, memory = Verdict(), Monkey(nodes, seed, size), Memory()
            load.start()
            monkey.start()
            try:
                _watch(volume, load, monkey, memory, size, say)
            finally:
                monkey.stop()
                load.stop(max(READ_DEADLINE, SYNC_DEADLINE) + 2 * SLACK)
            _judge(load, monkey, memory, volume, verdict)
            _recover(volume, load, verdict)
            return verdict


def _watch(volume: RemoteVolume, load: Load, monkey: Monkey, memory: Memory, size: Size, say: Say) -> None:
    """A line each minute."""
    began = told = time.monotonic()
    while (now := time.monotonic()) < began + size.seconds:
        memory.look(volume)
        if now >= told + 60:
            told = now
            say(f"minute {(now - began) / 60:.0f}: {_line(load, memory)}; harmed now: {monkey.now or 'none'}")
        time.sleep(1.0)


def _line(load: Load, memory: Memory) -> str:
    seen = load.seen
    longest = max((seconds, call) for call, seconds in seen.longest.items() if call != "icnfs sync")
    moved = f"{seen.bytes['written'] // MIB} MiB written, {seen.bytes['read'] // MIB} MiB read"
    taken = f"front {memory.front // MIB} MiB, transfer {memory.transfer // MIB} MiB"
    calls, failures = sum(seen.calls.values()), len(seen.failures)
    return f"{calls} calls, {moved}, longest {longest[1]} {longest[0]:.2f} s, {failures} failures; {taken}"


def _judge(load: Load, monkey: Monkey, memory: Memory, volume: RemoteVolume, verdict: Verdict) -> None:
    seen = load.seen
    verdict.lines.append(_line(load, memory))
    verdict.lines.append("harms: " + ", ".join(f"{kind} {count}" for kind, count in sorted(monkey.done.items())))
    longest = ", ".join(f"{call} {seconds:.2f}" for call, seconds in sorted(seen.longest.items()))
    verdict.lines.append(f"longest of each call, s: {longest}")
    status = volume.status()
    verdict.lines.append(
        f"syncs: {seen.calls['icnfs sync']}, of which degraded {seen.syncs_degraded}; "
        f"restarts of transfer: {status['transfer_restarts']}"
    )
    verdict.wrong += monkey.failures + seen.failures
    for call, seconds in seen.longest.items():
        most = (SYNC_DEADLINE if call == "icnfs sync" else READ_DEADLINE) + SLACK
        if seconds > most:
            verdict.wrong.append(f"a call waited longer than its deadline: {call} {seconds:.1f} s, not {most:.0f}")
    for name, taken in (("front", memory.front), ("transfer", memory.transfer)):
        if taken > MEMORY_MAX:
            verdict.wrong.append(f"{name} took {taken // MIB} MiB, more than {MEMORY_MAX // MIB}")
    if status["transfer_restarts"]:
        verdict.wrong.append(f"transfer ended {status['transfer_restarts']} times by itself")


def _recover(volume: RemoteVolume, load: Load, verdict: Verdict) -> None:
    """All providers are well: everything is published, lost here, and back again."""
    began = time.monotonic()
    volume.sync(seconds=600)
    verdict.lines.append(f"sync with all providers well: {time.monotonic() - began:.1f} s")
    verdict.wrong += [f"before the loss: {line}" for line in load.check()[:10]]
    volume.umount(seconds=600)
    recovered(volume, load, verdict, "local state")


def recovered(volume: Volume, load: Load, verdict: Verdict, without: str) -> None:
    """Local state is lost, and comes back with every file as it was."""
    volume.drop_state()
    volume.recover(seconds=600)
    volume.mount()
    wrong = load.check()
    verdict.wrong += [f"recovered without {without}: {line}" for line in wrong[:10]]
    verdict.lines.append(
        f"recovered without {without}: {len(load.expected) - len(wrong)} of {len(load.expected)} files"
    )
    volume.umount(seconds=600)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", choices=("weed", "plain"), default="weed")
    parser.add_argument("--work", type=Path, default=None, help="an empty folder; default: one below /tmp")
    chosen = parser.parse_args()
    work = chosen.work or Path(tempfile.mkdtemp(prefix="icnfs-chaos-"))
    say(f"{chosen.minutes:g} minutes, seed {chosen.seed}, servers: {chosen.server}; in {work}")
    verdict = run(work, seed=chosen.seed, size=Size(chosen.minutes * 60), kind=chosen.server, say=say)
    for line in verdict.lines:
        say(line)
    for line in verdict.wrong[:40]:
        say(f"WRONG: {line}")
    say(f"{len(verdict.wrong)} promises broken; the front's log is in {work}" if verdict.wrong else "all promises held")
    if not verdict.wrong:
        shutil.rmtree(work)
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
