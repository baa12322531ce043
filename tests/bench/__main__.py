"""python -m tests.bench [--quick] [--reps N] [--work FOLDER] [--json]

Makes a volume over six directories in FOLDER (default: a fresh temporary folder), mounts it, and measures it beside a
directory of the same file system: sequential and random reads and writes, fsyncs, small files, metadata walks; then
how fast a publish brings all that to the providers, and how fast it is read back cold, with no local copy.  Prints one
table of medians, ratios included: of a publish to a plain write of the same bytes, of cold reads to the same step read
from the local file system.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.acceptance.harness import Volume
from tests.bench.figures import FULL, MB, QUICK, STEPS, Place, Scale, drop_caches, removal


@dataclass
class Table:
    """Figures by name: unit, and the rates of all repetitions on the mount and on the local file system."""

    units: dict[str, str] = field(default_factory=dict)
    mounted: dict[str, list[float]] = field(default_factory=dict)
    local: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, unit: str, mounted: float, local: float) -> None:
        self.units[name] = unit
        self.mounted.setdefault(name, []).append(mounted)
        self.local.setdefault(name, []).append(local)

    def rows(self) -> list[tuple[str, str, float, float, float]]:
        """(figure, unit, on the mount, local, ratio); the ratio is the median of those of each repetition."""
        found = []
        for name, unit in self.units.items():
            ratios = [one / two for one, two in zip(self.mounted[name], self.local[name], strict=True)]
            medians = statistics.median(self.mounted[name]), statistics.median(self.local[name])
            found.append((name, unit, *medians, statistics.median(ratios)))
        return found


def measure(work: Path, scale: Scale, table: Table, say: Callable[[str], None]) -> None:
    """One repetition below `work`, an empty folder."""
    plain = work / "local"
    plain.mkdir()
    with Volume(work / "volume", settings={"volume": {"publish_seconds": 3600, "publish_mib": 65536}}) as volume:
        volume.init()
        volume.mount()
        folder = volume.mountpoint / "bench"
        folder.mkdir()
        places = Place(folder, scale), Place(plain, scale)
        for name, (unit, step) in STEPS.items():
            mounted, local = (step(place) for place in places)
            table.add(name, unit, mounted, local)
            say(f"{name}: {mounted:.1f} {unit}, local {local:.1f}")
        _measure_publish(volume, places, table, say)
        _measure_cold(volume, places, table, work, say)
        mounted, local = (removal(place) for place in places)
        table.add("remove", "1/s", mounted, local)


def _measure_publish(volume: Volume, places: tuple[Place, Place], table: Table, say: Callable[[str], None]) -> None:
    """All of it to six providers; beside it, the same bytes written to one plain file."""
    size = sum(path.stat().st_size for path in places[0].root.rglob("*") if path.is_file())
    began = time.perf_counter()
    volume.sync(seconds=900)
    seconds = time.perf_counter() - began
    copy = places[1].root / "copy"
    began = time.perf_counter()
    subprocess.run(["cp", places[1].big, copy], check=True)
    subprocess.run(["sync", copy], check=True)
    local = copy.stat().st_size / MB / (time.perf_counter() - began)
    copy.unlink()
    table.add("publish (icnfs sync)", "MB/s", size / MB / seconds, local)
    say(f"publish: {size / MB / seconds:.1f} MB/s")


def _measure_cold(
    volume: Volume, places: tuple[Place, Place], table: Table, work: Path, say: Callable[[str], None]
) -> None:
    """From the providers alone: on a machine that has recovered the volume and read nothing yet."""
    volume.umount("--drain")
    with volume.elsewhere(work / "elsewhere") as other:
        other.recover()
        other.mount()
        cold = Place(other.mountpoint / "bench", places[0].scale)
        for name in ("walk and stat", "sequential read", "read 4 KiB files"):
            unit, step = STEPS[name]
            mounted, local = step(cold), step(places[1])
            table.add(f"cold: {name}", unit, mounted, local)
            say(f"cold: {name}: {mounted:.1f} {unit}, local {local:.1f}")
        other.umount("--drain")
    volume.drop_state()
    volume.recover()
    volume.mount()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="icnfs beside the local file system")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--reps", type=int, default=1, help="repetitions; medians are printed")
    parser.add_argument("--work", type=Path, help="where to work")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    table = Table()
    for _ in range(given.reps):
        work = Path(tempfile.mkdtemp(prefix="icnfs-bench-", dir=given.work))
        try:
            measure(work, QUICK if given.quick else FULL, table, lambda line: print(line, file=sys.stderr, flush=True))
        finally:
            shutil.rmtree(work, ignore_errors=True)
    if given.json:
        names = ("figure", "unit", "icnfs", "local", "ratio")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in table.rows()], indent=1))
        return 0
    print("| figure | unit | icnfs | local file system | ratio |\n|---|---|---:|---:|---:|")
    for name, unit, mounted, local, ratio in table.rows():
        print(f"| {name} | {unit} | {mounted:,.1f} | {local:,.1f} | {ratio:.3f} |")
    if not drop_caches():
        print("(not root: the kernel's caches could not be dropped before reads)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
