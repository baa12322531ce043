"""One provider of seven is drained under a mixed load, to the end; the policy is kept at every moment.

    python -m tests.acceptance.drain [--mib 512] [--seed N] [--server weed|plain] [--work FOLDER]

4-of-6 over seven servers, so that six remain: at most one share for each owner, two for each country and each parent's
country.  From before the drain until after it a checker asks, over and over, what the mount says of all segments
(`icnfs policy check`), and judges for itself where single files lie (`icnfs info`).  One share of a segment may be on
its way to a slow provider; after `icnfs sync` none is.  Afterwards boto3 lists nothing in
the drained bucket; everything reads back; and once more on a machine without local state that does not know the
provider, whose server has ended.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.acceptance.chaos import Verdict
from tests.acceptance.fleet import Node, fleet
from tests.acceptance.harness import ICNFS, PROVIDERS, Settings
from tests.acceptance.load import MIB, Load
from tests.acceptance.remote import FACTS, SEVENTH, RemoteVolume, Say, say

DRAINED: Final = "lyon"
N: Final = 6
MAX_PER_OWNER, MAX_PER_COUNTRY = 1, 2

OUT_OF_POLICY: Final = 19
"""The exit code of icnfs(1) for it."""

LEAVING: Final = "drain"
"""The rule that segments may break: they hold a share at a provider that is being drained."""

ON_ITS_WAY: Final = ("safe", f"{N - 1} distinct owners hold its shares and safe = {N}")
"""The other, and how: `safe` is what `icnfs sync` waits for; a publish leaves one slow share to come later."""

READ_DEADLINE: Final = 20.0
SLACK: Final = 5.0
LONGEST_DRAIN: Final = 1800.0
BEFORE_AND_AFTER: Final = 3.0
"""Seconds of load that the checker looks at beside the drain's own."""

SETTINGS: Final[Settings] = {
    "volume": {"code": f"4-of-{N}", "publish_seconds": 2, "publish_mib": 32, "read_deadline": READ_DEADLINE},
    "cache": {"clean": "16MiB"},
    "policy": {
        "max_per_owner": MAX_PER_OWNER,
        "max_per_country": MAX_PER_COUNTRY,
        "max_per_parent_country": MAX_PER_COUNTRY,
    },
}


@dataclass
class Checker:
    """Looks at the placement of everything until it is stopped."""

    volume: RemoteVolume
    load: Load
    looks: int = 0
    segments_most: int = 0
    leaving_most: int = 0
    """Segments that had a share at the drained provider."""
    segments_judged: int = 0
    late_most: int = 0
    """Segments of which one share was on its way."""
    wrong: list[str] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        assert self._thread is not None
        self._thread.join(120)

    def look(self, chance: random.Random) -> None:
        """Once over: all segments by the mount's judgement, some of them by ours."""
        self._ask_policy()
        for path in chance.sample(sorted(self.load.expected), min(3, len(self.load.expected))):
            self._ask_file(path)
        self.looks += 1

    def _run(self) -> None:
        chance = random.Random(3)
        while not self._stopping.is_set():
            try:
                self.look(chance)
            except Exception as error:  # noqa: BLE001  # told in the verdict
                self.wrong.append(f"the checker: {error!r}")
            self._stopping.wait(0.1)

    def _ask_policy(self) -> None:
        done = self.volume.icnfs("policy", "check", "--json", self.volume.name, code=None)
        if done.returncode not in (0, OUT_OF_POLICY):
            self.wrong.append(f"policy check ended with {done.returncode}: {done.stderr.strip()}")
            return
        report = json.loads(done.stdout)
        self.segments_most = max(self.segments_most, report["segments"])
        for breach in report["breaches"]:
            if breach["rule"] == LEAVING and DRAINED in breach["text"]:
                self.leaving_most = max(self.leaving_most, breach["segments"])
            elif (breach["rule"], breach["text"]) == ON_ITS_WAY:
                self.late_most = max(self.late_most, breach["segments"])
            else:
                self.wrong.append(f"out of policy: {breach}")
        if report["obstacle"]:
            self.wrong.append(f"no new segment can be placed: {report['obstacle']}")

    def _ask_file(self, path: str) -> None:
        done = self.volume.icnfs("info", "--json", self.volume.mountpoint / path, code=None)
        if done.returncode:
            if path in self.load.expected and (self.volume.mountpoint / path).exists():
                self.wrong.append(f"info of {path}: {done.stderr.strip()}")
            return
        for segment, shares in json.loads(done.stdout)["segments"].items():
            self.segments_judged += 1
            self.wrong += [f"segment {segment}: {line}" for line in breaches(shares)]


def breaches(shares: list[dict[str, Any]]) -> list[str]:
    """What the placement of one published segment has against it, by the policy that SETTINGS writes."""
    holders = [share["provider"] for share in shares if share["stored"]]
    owners = Counter(FACTS[name][0] for name in holders)
    parents = Counter(FACTS[name][1] for name in holders)
    countries = Counter(FACTS[name][2] for name in holders)
    wrong = [f"{count} shares with {owner}" for owner, count in owners.items() if count > MAX_PER_OWNER]
    wrong += [f"{count} shares in {where}" for where, count in countries.items() if count > MAX_PER_COUNTRY]
    wrong += [f"{count} shares under {where}" for where, count in parents.items() if count > MAX_PER_COUNTRY]
    if len(owners) < N - 1:
        wrong.append(f"at {len(owners)} owners, not {N}")
    return wrong


def run(work: Path, *, seed: int, cold_files: int, rate: float, kind: str, say: Say) -> Verdict:
    """The whole trial, each provider at `rate` bytes/s each way; `work` is left without processes and mounts."""
    with fleet([*PROVIDERS, SEVENTH], work / "servers", kind=kind, seed=seed) as nodes:
        urls = {name: node.place.url for name, node in nodes.items()}
        with RemoteVolume(work / "machine", urls, settings=SETTINGS) as volume:
            volume.init()
            volume.mount()
            load = Load(volume.mountpoint, volume.env, seed)
            load.sync_every = 5.0
            load.fill(cold_files, 4 * MIB)
            volume.sync(seconds=600)
            held = len(nodes[DRAINED].server.listed())
            assert held > 2, f"{DRAINED} holds {held} objects: nothing to move"
            for node in nodes.values():
                node.spoil(rate=rate)
            verdict, checker = Verdict(), Checker(volume, load)
            load.start()
            checker.start()
            try:
                time.sleep(BEFORE_AND_AFTER)
                _drain(volume, verdict, say)
                time.sleep(BEFORE_AND_AFTER)
            finally:
                checker.stop()
                load.stop(READ_DEADLINE + 300)
            _judge(load, checker, verdict)
            _afterwards(volume, load, nodes[DRAINED], verdict)
            return verdict


def _drain(volume: RemoteVolume, verdict: Verdict, say: Say) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [str(ICNFS), "provider", "drain", volume.name, DRAINED],
        env=volume.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST_DRAIN,
        check=False,
    )
    said = " / ".join(done.stdout.strip().splitlines())
    say(f"drain ended with {done.returncode} after {time.monotonic() - began:.1f} s: {said}")
    if done.returncode:
        verdict.wrong.append(f"drain ended with {done.returncode}: {done.stderr.strip()[-500:]}")


def _judge(load: Load, checker: Checker, verdict: Verdict) -> None:
    seen = load.seen
    verdict.wrong += seen.failures + checker.wrong
    for call, seconds in seen.longest.items():
        if call != "icnfs sync" and seconds > READ_DEADLINE + SLACK:
            verdict.wrong.append(f"a call waited longer than its deadline: {call} {seconds:.1f} s")
    if seen.syncs_degraded:
        verdict.wrong.append(f"{seen.syncs_degraded} syncs were degraded")
    if not checker.leaving_most:
        verdict.wrong.append("the checker saw no segment under way: the drain was not watched")
    longest = max((seconds, call) for call, seconds in seen.longest.items())
    verdict.lines += [
        f"{sum(seen.calls.values())} calls, {seen.bytes['written'] // MIB} MiB written, longest {longest[1]} "
        f"{longest[0]:.2f} s, {seen.calls['icnfs sync']} syncs, {len(seen.failures)} failures",
        f"the checker looked {checker.looks} times at up to {checker.segments_most} segments, up to "
        f"{checker.leaving_most} of them leaving and {checker.late_most} with a share on its way, and judged "
        f"{checker.segments_judged} itself",
    ]


def _afterwards(volume: RemoteVolume, load: Load, node: Node, verdict: Verdict) -> None:
    left = [key for key in node.server.listed() if key.startswith(f"{DRAINED}/")]
    verdict.lines.append(f"boto3 lists {len(left)} objects in the drained bucket")
    verdict.wrong += [f"left at {DRAINED}: {key}" for key in left[:10]]
    verdict.wrong += [f"after the drain: {line}" for line in load.check()[:10]]
    volume.sync(seconds=600)
    for breach in json.loads(volume.icnfs("policy", "check", "--json", volume.name, code=None).stdout)["breaches"]:
        verdict.wrong.append(f"out of policy after the drain: {breach}")
    volume.icnfs("provider", "remove", volume.name, DRAINED)
    node.kill()
    volume.umount(seconds=600)
    volume.drop_state()
    volume.recover(seconds=600)
    volume.mount()
    wrong = load.check()
    verdict.wrong += [f"after recovery without it: {line}" for line in wrong[:10]]
    verdict.lines.append(f"recovered without it: {len(load.expected) - len(wrong)} of {len(load.expected)} files")
    volume.umount(seconds=600)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="of files that are there before")
    parser.add_argument(
        "--rate", type=float, default=3e6, help="bytes/s of each provider, so that a drain takes a while"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", choices=("weed", "plain"), default="weed")
    parser.add_argument("--work", type=Path, default=None, help="an empty folder; default: one below /tmp")
    chosen = parser.parse_args()
    work = chosen.work or Path(tempfile.mkdtemp(prefix="icnfs-drain-"))
    say(f"drain of {DRAINED}, 1 of {N + 1}, with {chosen.mib} MiB; servers: {chosen.server}; in {work}")
    files = max(1, chosen.mib // 4)
    verdict = run(work, seed=chosen.seed, cold_files=files, rate=chosen.rate, kind=chosen.server, say=say)
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
