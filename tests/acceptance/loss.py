"""Two of six providers lose everything while the volume is in use; it is repaired as fast as the lines allow.

    python -m tests.acceptance.loss [--mib 2048] [--gone] [--rate 5] [--seed N] [--work FOLDER]

4-of-6 over directories, each behind lines of `--rate` MB/s up and as much down (`upload` and `download` in the TOML),
so that lines and not disk or processor are what bounds.  Under a load of readers of cold files, writers and syncs, the
folders of two providers are emptied; with `--gone` they vanish, there are two spares, and both lost ones are drained.

Held: no call fails or is wrong; every segment is safe again, after no more than FACTOR times what the lines take for
the bytes that repair has to read and to write; the memory of both processes is bounded; and afterwards a machine
without local state and without two *other* providers recovers every file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.acceptance.chaos import MEMORY_MAX, Verdict, recovered
from tests.acceptance.harness import ICNFS, PROVIDERS, Settings, Volume, wait_for
from tests.acceptance.load import MIB, Load
from tests.acceptance.remote import Say, resident, say

LOST: Final = ("lyon", "paris")
OTHERS: Final = ("amsterdam", "munich")
"""Lost afterwards, one after the other's repair."""

SPARES: Final = {
    "vilnius": ("Neris Duomenys UAB", "LT", "LT", "Vilnius"),
    "riga": ("Daugava Dati SIA", "LV", "LV", "Riga"),
}
K: Final = 4
FACTOR: Final = 1.5
NOTICED_SECONDS: Final = 30.0
LONGEST: Final = 1200.0
LOOK_SECONDS: Final = 0.5
READ_DEADLINE: Final = 20.0
SLACK: Final = 5.0
FILE: Final = 4 * MIB

SETTINGS: Final[Settings] = {
    "volume": {"code": "4-of-6", "publish_seconds": 2, "publish_mib": 32, "read_deadline": READ_DEADLINE},
    "cache": {"clean": "16MiB"},
}


class Lined(Volume):
    """A volume whose providers have lines of `rate` bytes/s."""

    rate: float = 5e6

    def provider_facts(self, provider: str) -> dict[str, str | int | float]:
        owner, parent, country, site = (PROVIDERS | SPARES)[provider]
        line = f"{self.rate / 1e6:g}MB"
        return {
            "url": f"file://{self.providers[provider]}",
            "owner": owner,
            "parent_country": parent,
            "country": country,
            "site": site,
            "upload": line,
            "download": line,
        }


@dataclass
class Peaks:
    """The most memory that each process has taken, and how much of the lines was used."""

    front: int = 0
    transfer: int = 0

    def look(self, volume: Volume) -> None:
        self.front = max(self.front, resident(volume.front.pid if volume.front else None))
        self.transfer = max(self.transfer, resident(volume.transfer_pid()))


def run(work: Path, *, mib: int, gone: bool, rate: float, seed: int, factor: float, say: Say) -> Verdict:
    """The whole trial; `work` is left without processes and mounts."""
    names = [*PROVIDERS, *(SPARES if gone else ())]
    Lined.rate = rate
    with Lined(work, settings=SETTINGS, providers={name: work / "providers" / name for name in names}) as volume:
        volume.init()
        volume.mount()
        load = Load(volume.mountpoint, volume.env, seed)
        load.fill(max(1, mib * MIB // FILE), FILE)
        volume.sync(seconds=LONGEST)
        verdict, peaks = Verdict(), Peaks()
        held = {name: _share_bytes(volume.providers[name]) for name in names}
        say(f"{mib} MiB are published; {', '.join(LOST)} hold {sum(held[n] for n in LOST) // MIB} MiB of shares")
        before = _status(volume)
        load.start()
        try:
            took = _vanish(volume, verdict, peaks, say) if gone else _empty(volume, verdict, peaks, say)
        finally:
            load.stop(READ_DEADLINE + 300)
        moved = _moved(before, _status(volume))
        _judge(load, peaks, verdict)
        _explain(verdict, took, held, moved, rate, factor)
        _afterwards(volume, load, gone, verdict)
        return verdict


def _status(volume: Volume) -> dict[str, Any]:
    return {entry["name"]: entry for entry in volume.status()["providers"]}  # type: ignore[attr-defined]


def _moved(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """By provider, bytes up and down meanwhile."""
    return {
        name: (one["bytes_up"] - before[name]["bytes_up"], one["bytes_down"] - before[name]["bytes_down"])
        for name, one in after.items()
    }


def _share_bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in (place / "shares").rglob("*") if path.is_file())


def _empty(volume: Volume, verdict: Verdict, peaks: Peaks, say: Say) -> float:
    """The folders are emptied; seconds from when that was noticed until all is safe."""
    began = time.monotonic()
    for name in LOST:
        for entry in volume.providers[name].iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def noticed() -> bool:
        log = volume.log.read_text(errors="replace")
        return all(f"provider {name}: its place was emptied" in log for name in LOST)

    _until(volume, peaks, noticed, NOTICED_SECONDS, "that two places were emptied is noticed")
    since = time.monotonic()
    say(f"noticed after {since - began:.1f} s")
    verdict.lines.append(f"noticed after {since - began:.1f} s")
    _until(volume, peaks, lambda: _whole(volume), LONGEST, "all segments are safe")
    return time.monotonic() - since


def _vanish(volume: Volume, verdict: Verdict, peaks: Peaks, say: Say) -> float:
    """The folders are gone and both providers are drained at once; seconds from then until all is safe."""
    for name in LOST:
        volume.providers[name].rename(volume.root / f"{name}.gone")
    since = time.monotonic()
    drains = [
        subprocess.Popen(
            [str(ICNFS), "provider", "drain", volume.name, name],
            env=volume.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in LOST
    ]
    try:
        _until(volume, peaks, lambda: _left(volume) == 0 and _whole(volume), LONGEST, "all segments are elsewhere")
        return time.monotonic() - since
    finally:
        for drain in drains:
            drain.terminate()
            drain.wait(30)


def _left(volume: Volume) -> int:
    status = _status(volume)
    return sum(status[name]["shares"] + status[name]["missing"] for name in LOST)


def _whole(volume: Volume) -> bool:
    """Whether every segment is safe: the exit code of `icnfs health` says so."""
    return not volume.icnfs("health", volume.name, code=None).returncode and not volume.status()["missing_shares"]


def _until(volume: Volume, peaks: Peaks, condition: Callable[[], bool], seconds: float, what: str) -> None:
    def looked() -> bool:
        peaks.look(volume)
        holds = condition()
        if not holds:
            time.sleep(LOOK_SECONDS)  # each look takes a command: without a pause they would take a processor
        return holds

    wait_for(looked, seconds, f"{what}\n{volume.log_tail()}")


def _judge(load: Load, peaks: Peaks, verdict: Verdict) -> None:
    seen = load.seen
    verdict.wrong += seen.failures
    for call, seconds in seen.longest.items():
        if call != "icnfs sync" and seconds > READ_DEADLINE + SLACK:
            verdict.wrong.append(f"a call waited longer than its deadline: {call} {seconds:.1f} s")
    for name, taken in (("front", peaks.front), ("transfer", peaks.transfer)):
        if taken > MEMORY_MAX:
            verdict.wrong.append(f"{name} took {taken // MIB} MiB, more than {MEMORY_MAX // MIB}")
    longest = max((seconds, call) for call, seconds in seen.longest.items() if call != "icnfs sync")
    verdict.lines += [
        f"load: {sum(seen.calls.values())} calls, {seen.bytes['read'] // MIB} MiB read, "
        f"{seen.bytes['written'] // MIB} MiB written, longest {longest[1]} {longest[0]:.2f} s, "
        f"{seen.calls['icnfs sync']} syncs, {seen.syncs_degraded} of them degraded, {len(seen.failures)} failures",
        f"memory at most: front {peaks.front // MIB} MiB, transfer {peaks.transfer // MIB} MiB",
    ]


def _explain(
    verdict: Verdict, took: float, held: dict[str, int], moved: dict[str, tuple[int, int]], rate: float, factor: float
) -> None:
    """What the lines take for repair alone: k shares of each segment are read, evenly, and the lost ones written."""
    write = max(held[name] for name in LOST) / rate
    read = K * max(held[name] for name in LOST) / (len(PROVIDERS) - len(LOST)) / rate
    floor = max(write, read)
    up, down = (max(pair[way] for pair in moved.values()) for way in (0, 1))
    verdict.lines += [
        f"repaired after {took:.1f} s; the lines explain {floor:.1f} s ({write:.1f} to write, {read:.1f} to read at "
        f"{rate / 1e6:g} MB/s): {took / floor:.2f} times",
        f"with the load, the busiest lines moved {up // MIB} MiB up, {down // MIB} MiB down",
    ]
    if took > factor * floor:
        verdict.wrong.append(f"repair took {took:.1f} s, and the lines explain {floor:.1f}")


def _afterwards(volume: Volume, load: Load, gone: bool, verdict: Verdict) -> None:
    """Everything is right, also for a machine that has neither local state nor two other providers."""
    volume.sync(seconds=600)
    verdict.wrong += [f"after the repair: {line}" for line in load.check()[:10]]
    volume.umount(seconds=600)
    for name in (*OTHERS, *(LOST if gone else ())):
        if volume.providers[name].exists():
            volume.providers[name].rename(volume.root / f"{name}.away")
        if gone:
            del volume.providers[name]
    if gone:  # with three owners fewer than a code takes there could be no volume: one stays named
        volume.providers |= {name: volume.root / "providers" / name for name in OTHERS}
        volume.write_toml()
    recovered(volume, load, verdict, ", ".join(OTHERS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--gone", action="store_true", help="the providers vanish, and spares take over")
    parser.add_argument("--rate", type=float, default=5.0, help="MB/s of each provider, each way")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="an empty folder; default: one below /tmp")
    chosen = parser.parse_args()
    work = chosen.work or Path(tempfile.mkdtemp(prefix="icnfs-loss-"))
    say(f"loss of {' and '.join(LOST)}, {chosen.mib} MiB, {'gone' if chosen.gone else 'emptied'}; in {work}")
    verdict = run(
        work,
        mib=chosen.mib,
        gone=chosen.gone,
        rate=chosen.rate * 1e6,
        seed=chosen.seed,
        factor=FACTOR,
        say=say,
    )
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
