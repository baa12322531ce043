"""python -m tests.bench.scale [--files 10000,...] [--entries 1,1000,...] [--sizes 1KiB,...] [--work FOLDER] [--json]

How figures change with the number of files, of entries in one directory, and with the size of a file.  Real `icnfs`
commands and a real mount over six directory providers, and beside them a directory of the same file system.  Files by
the hundred thousand are made in process (`populate`), not through the mount; what is timed goes through the mount.
Prints one Markdown table for each curve; a point whose number is 0 in an option is left out.

`--lock FILE` takes a lock on FILE for each timed step, so that several runs on one machine take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.acceptance.harness import ICNFS, Volume, wait_for
from tests.bench import populate

KIB: Final = 1 << 10
MIB: Final = 1 << 20
UNITS: Final = {"KiB": KIB, "MiB": MIB, "GiB": 1 << 30}

DENSE_MAX: Final = 256 * MIB
"""Files up to this size are written in full; larger ones are sparse."""

SAMPLE: Final = 4000
"""Names looked up, made and removed at each point."""

AFTERMATH: Final = 5.0
"""Seconds after an unlink in which the latency of other requests is watched."""

WATCH_SECONDS: Final = 0.05

Row = dict[str, object]


class Memory:
    """The most memory of its own that a process held in the block, in MiB: what it maps of LMDB's files is not."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.most = 0.0

    def __enter__(self) -> Memory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._look()
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError, StopIteration):
            kib = next(line for line in self._status.read_text().splitlines() if line.startswith("RssAnon:"))
            self.most = max(self.most, int(kib.split()[1]) / KIB)


class Bench:
    """Where to work, how to tell, and whose turn it is."""

    def __init__(self, work: Path, lock: Path | None) -> None:
        self.work = work
        self._lock = lock
        self._held = False
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:6.0f} s] {line}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """A timed step, or several that take one turn."""
        if self._held or self._lock is None:
            began = time.perf_counter()
            yield
            self.say(f"  {what}: {time.perf_counter() - began:.2f} s")
            return
        with open(self._lock, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._held = True
            try:
                with self.turn(what):
                    yield
            finally:
                self._held = False

    def volume(self, name: str) -> Volume:
        """A new volume that publishes at 64 MiB of dirty data and when it is asked to, not by the clock."""
        root = self.work / name
        made = Volume(root, settings={"volume": {"publish_seconds": 86400}, "cache": {"dirty": "16GiB"}})
        made.init()
        return made


# --- steps ------------------------------------------------------------------------------------------------------------


def rate(count: int, step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return count / (time.perf_counter() - began)


def seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def forget_entries() -> None:
    """Let the kernel forget names and inodes that nobody uses; without root it keeps them."""
    with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("2")


def look_up(top: Path, names: list[str]) -> None:
    for name in names:
        os.stat(top / name)


def walk(top: Path) -> int:
    """Every entry below `top`, with its attributes."""
    count = 0
    folders = [str(top)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                count += 1
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return count


def create(top: Path, names: list[str]) -> None:
    for name in names:
        os.close(os.open(top / name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))


def unlink(top: Path, names: list[str]) -> None:
    for name in names:
        os.unlink(top / name)


def mount(volume: Volume) -> float:
    """Seconds from the command until the mount answered a listing and made a file durable."""
    began = time.perf_counter()
    volume.mount()
    os.listdir(volume.mountpoint)
    fd = os.open(volume.mountpoint / ".usable", os.O_CREAT | os.O_WRONLY)
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - began


def status(volume: Volume) -> float:
    """Seconds that `icnfs status` takes, its own start included."""
    return statistics.median(seconds(volume.status) for _ in range(3))


def recover(volume: Volume) -> tuple[float, float]:
    """(seconds, the command's most memory in MiB)."""
    began = time.perf_counter()
    command = [str(ICNFS), "recover", volume.name]
    with subprocess.Popen(command, env=volume.env, stdout=subprocess.DEVNULL) as process, Memory(process.pid) as memory:
        assert process.wait(3600) == 0
    return time.perf_counter() - began, memory.most


def objects(volume: Volume) -> dict[Path, int]:
    """Every object at every provider, and its bytes."""
    found = {}
    for provider in volume.providers.values():
        for folder, _, names in os.walk(provider):
            for name in names:
                path = Path(folder, name)
                found[path] = path.stat().st_size
    return found


def publish(volume: Volume) -> tuple[float, float, int]:
    """(seconds, KiB, objects) of publishing what there is: `icnfs sync`, and all that it put at all providers."""
    before = objects(volume)
    took = seconds(lambda: volume.sync("--deadline", "3600", seconds=3600))
    wait_for(lambda: _heads_are_even(volume), 60, "the last head at every provider")
    after = objects(volume)
    put = {path: size for path, size in after.items() if path not in before or before[path] != size}
    return took, sum(put.values()) / KIB, len(put)


def _heads_are_even(volume: Volume) -> bool:
    return len({len(list((place / "heads").iterdir())) for place in volume.providers.values()}) == 1


def held(*roots: Path) -> float:
    """GB on the disk below the roots."""
    blocks = 0
    for root in roots:
        for folder, _, names in os.walk(root):
            blocks += sum(os.lstat(os.path.join(folder, name)).st_blocks for name in names)
    return blocks * 512 / 1e9


# --- many files -------------------------------------------------------------------------------------------------------


def many_files(bench: Bench, count: int, size: int) -> Row:
    """One point: a volume of `count` files of `size` bytes."""
    bench.say(f"{count:,} files of {size} bytes")
    row: Row = {"files": count}
    names = [populate.name(n) for n in random.Random(5).sample(range(count), min(SAMPLE, count))]
    fresh = [f"0/new{n}" for n in range(len(names))]
    with bench.volume(f"files-{count}") as volume:
        made = seconds(
            lambda: populate.populate(
                volume, lambda vfs: populate.make_tree(vfs, "tree", count, size, bench.say), sync=True
            )
        )
        bench.say(f"  made in process and published: {made:.0f} s")
        with bench.turn("mounted"):
            _mounted(bench, volume, row, names, fresh)
        row["state GB"], row["providers GB"] = held(volume.state_dir), held(*volume.providers.values())
        volume.drop_state()
        with bench.turn("recover and mount"):
            began = time.perf_counter()
            row["recover s"], row["recover MiB"] = recover(volume)
            mount(volume)
            row["recover + mount s"] = time.perf_counter() - began
        assert (volume.mountpoint / "tree" / "0" / "new0").stat().st_size == 1
        volume.umount()
    shutil.rmtree(volume.root)
    local = bench.work / "local"
    _make_local(local, [populate.name(n) for n in range(count)])
    with bench.turn("local"):
        _rates(bench, row, "local", local, names, fresh)
    shutil.rmtree(local)
    return row


def _mounted(bench: Bench, volume: Volume, row: Row, names: list[str], fresh: list[str]) -> None:
    """The figures of a mount of a volume of many files, with nothing in the kernel's caches."""
    with bench.turn("mount"):
        row["mount s"] = mount(volume)
    assert volume.front is not None
    top = volume.mountpoint / "tree"
    with Memory(volume.front.pid) as memory:
        row["status s"] = status(volume)
        _rates(bench, row, "icnfs", top, names, fresh)
        with bench.turn("publish the changes"):
            publish(volume)
        with open(top / "0" / "new0", "ab") as file:
            file.write(b"x")
        with bench.turn("publish one change"):
            row["publish one s"], row["publish one KiB"], row["objects"] = publish(volume)
    row["front MiB"] = memory.most
    volume.umount()


def _make_local(top: Path, names: list[str]) -> None:
    for folder in {os.path.dirname(name) for name in names}:
        (top / folder).mkdir(parents=True, exist_ok=True)
    create(top, names)


def _rates(bench: Bench, row: Row, where: str, top: Path, names: list[str], fresh: list[str]) -> None:
    """Look up, list, make and remove, as rates; ends with as many names as there were, less `names`, plus `fresh`."""
    forget_entries()
    with bench.turn(f"look up, {where}"):
        row[f"look up/s {where}"] = rate(len(names), lambda: look_up(top, names))
    with bench.turn(f"list, {where}"):
        began = time.perf_counter()
        row[f"list/s {where}"] = walk(top) / (time.perf_counter() - began)
    with bench.turn(f"create, {where}"):
        row[f"create/s {where}"] = rate(len(fresh), lambda: create(top, fresh))
    with bench.turn(f"unlink, {where}"):
        row[f"unlink/s {where}"] = rate(len(names), lambda: unlink(top, names))


# --- many entries in one directory ------------------------------------------------------------------------------------


def many_entries(bench: Bench, counts: list[int], rows: list[Row]) -> None:
    """One volume with a directory for each of `counts`, a row for each."""
    with bench.volume("entries") as volume:
        for count in counts:
            bench.say(f"{count:,} entries in one directory")
            top = f"{count}"
            populate.populate(volume, lambda vfs: populate.make_entries(vfs, top, count, bench.say), sync=False)  # noqa: B023
        mount(volume)
        assert volume.front is not None
        for count in counts:
            names = [str(n) for n in random.Random(5).sample(range(count), min(SAMPLE, count))]
            fresh = [f"new{n}" for n in range(len(names))]
            row: Row = {"entries": count}
            with bench.turn("mounted"), Memory(volume.front.pid) as memory:
                _rates(bench, row, "icnfs", volume.mountpoint / str(count), names, fresh)
                with bench.turn("publish"):
                    row["publish s"] = publish(volume)[0]
            row["front MiB"] = memory.most
            local = bench.work / "local"
            _make_local(local, [str(n) for n in range(count)])
            with bench.turn("local"):
                _rates(bench, row, "local", local, names, fresh)
            shutil.rmtree(local)
            rows.append(row)
        largest = volume.mountpoint / str(max(counts))
        with Memory(volume.front.pid) as memory, bench.turn(f"remove all of {max(counts):,} entries"):
            rows[-1]["remove all/s"] = rate(max(counts), lambda: shutil.rmtree(largest))
        rows[-1]["front MiB"] = max(float(str(rows[-1]["front MiB"])), memory.most)
        volume.umount()
    shutil.rmtree(volume.root)


# --- large files ------------------------------------------------------------------------------------------------------


def sizes(bench: Bench, wanted: list[int], rows: list[Row]) -> None:
    """One volume with a file of each size and kind, a row for each: dense, and large ones sparse in three ways."""
    with bench.volume("sizes") as volume:
        mount(volume)
        for size in wanted:
            bench.say(f"a file of {show_size(size)}")
            if size <= DENSE_MAX:
                rows.append(_one_size(bench, volume, size, "dense", size))
                continue
            rows.append(_one_size(bench, volume, size, "a hole", 0))
            rows.append(_one_size(bench, volume, size, "scattered chunks", 1000))
            rows.append(_one_size(bench, volume, size, "every chunk", size // populate.CHUNK))
        volume.umount()
        with bench.turn("mount after it"):
            rows[-1]["mount after it s"] = mount(volume)
        volume.umount()
    shutil.rmtree(volume.root)


def _one_size(bench: Bench, volume: Volume, size: int, kind: str, amount: int) -> Row:
    row: Row = {
        "size": show_size(size),
        "kind": kind,
        "chunks": -(-size // populate.CHUNK) if kind == "dense" else amount,
    }
    big, small = volume.mountpoint / "big", volume.mountpoint / "small"
    local = bench.work / "big"
    if kind == "dense":
        with bench.turn(f"write {kind}"):
            row["write s"] = seconds(lambda: _write(big, size))
        row["local write s"] = seconds(lambda: _write(local, size))
    elif kind == "a hole":
        for path in (big, local):
            path.touch()
            os.truncate(path, size)
    else:
        volume.umount()
        populate.populate(volume, lambda vfs: populate.make_islands(vfs, "big", size, amount, bench.say), sync=False)
        mount(volume)
        _write_islands(local, size, min(amount, 100_000))
    assert volume.front is not None
    with bench.turn("mounted"), Memory(volume.front.pid) as memory:
        with bench.turn("publish"):
            row["publish s"], row["publish KiB"], _ = publish(volume)
        row["read end ms"] = 1000 * seconds(lambda: _read_end(big, size))
        small.write_bytes(b"x")
        with bench.turn(f"unlink {kind}"):
            row["unlink ms"] = 1000 * seconds(big.unlink)
            row["next fsync ms"], row["worst fsync ms"] = _aftermath(small)
        row["local unlink ms"] = 1000 * seconds(local.unlink)
        with bench.turn("publish the unlink"):
            row["publish unlink s"], row["publish unlink KiB"], _ = publish(volume)
        row["status s"] = status(volume)
    row["front MiB"] = memory.most
    return row


def _write(path: Path, size: int) -> None:
    block = os.urandom(min(size, MIB))
    with open(path, "wb", buffering=0) as file:
        for _ in range(0, size, MIB):
            file.write(block)
        os.fsync(file.fileno())


def _write_islands(path: Path, size: int, islands: int) -> None:
    stride = max(size // islands // populate.CHUNK, 1) * populate.CHUNK
    with open(path, "wb", buffering=0) as file:
        for number in range(islands):
            os.pwrite(file.fileno(), b"x", number * stride)
        os.truncate(path, size)
        os.fsync(file.fileno())


def _read_end(path: Path, size: int) -> None:
    with open(path, "rb", buffering=0) as file:
        file.seek(size - 1)
        assert len(file.read(4096)) == 1


def _aftermath(path: Path) -> tuple[float, float]:
    """(ms of the next append and fsync, the worst of those in the AFTERMATH seconds after)."""
    taken: list[float] = []
    end = time.monotonic() + AFTERMATH
    with open(path, "ab", buffering=0) as file:
        while time.monotonic() < end:
            began = time.perf_counter()
            file.write(b"x")
            os.fsync(file.fileno())
            taken.append(1000 * (time.perf_counter() - began))
    return taken[0], max(taken)


# --- the whole --------------------------------------------------------------------------------------------------------


def show_size(size: int) -> str:
    for unit, factor in reversed(UNITS.items()):
        if size >= factor and not size % factor:
            return f"{size // factor} {unit}"
    return f"{size} B"


def read_size(text: str) -> int:
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int(text.removesuffix(unit)) * factor
    return int(text)


def table(rows: list[Row]) -> str:
    """Markdown; a figure that a row lacks is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---:|" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def numbers(text: str) -> list[int]:
    return [number for number in (int(part.replace("_", "")) for part in text.split(",")) if number]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description="curves over the size of things")
    parser.add_argument("--files", default="10000,100000,1000000", help="files in a volume (to 3000000)")
    parser.add_argument("--bytes", type=int, default=KIB, help="bytes in each of them (default %(default)s)")
    parser.add_argument("--entries", default="1,1000,100000,1000000", help="entries in one directory")
    parser.add_argument("--sizes", default="1KiB,1MiB,256MiB,10GiB,100GiB", help="sizes of one file")
    parser.add_argument("--work", type=Path, help="where to work")
    parser.add_argument("--lock", type=Path, help="take turns by a lock on this file")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="icnfs-scale-", dir=given.work))
    bench = Bench(work, given.lock)
    curves: dict[str, list[Row]] = {}
    try:
        for count in numbers(given.files):
            curves.setdefault("files in a volume", []).append(many_files(bench, count, given.bytes))
        if counts := numbers(given.entries):
            many_entries(bench, counts, curves.setdefault("entries in one directory", []))
        if wanted := [size for size in map(read_size, given.sizes.split(",")) if size]:
            sizes(bench, wanted, curves.setdefault("size of a file", []))
    except KeyboardInterrupt:
        bench.say("interrupted")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if given.json:
        print(json.dumps(curves, indent=1))
    else:
        for title, rows in curves.items():
            print(f"\n### {title}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
