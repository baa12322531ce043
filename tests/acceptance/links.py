"""Reads and publishes over six slow lines, against what the lines allow and what a plain client gets out of them.

    python -m tests.acceptance.links [--short] [--network relay|wrapper] [--server plain|weed] [--only WHAT,...]

Each of six providers is a server behind a line of its own: 40 ms round trip, 200 Mbit/s each way (`tests.netns`; needs
root).  `--network wrapper` delays calls to directories instead, where lines cannot be had: there every request has the
bandwidth for itself, so only times of single requests mean something.  `--server weed` takes SeaweedFS, which needs
some 10 processor seconds for each GB that it is given; `plain` is a server that does not stand in the way.

Measured: publishing (`icnfs sync` of what was written just before), and after the loss of the local state, all of it
cold: opening and reading small files far from each other, one after the other and after 25 idle seconds; a sequential
read; the same with one line ten times slower, from that moment on and again.  Before each, a plain client moves
the same bytes over the same lines.  Processor seconds of all that take part are shown with each.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from icnfs.limits import LEAF_SIZE
from icnfs.volume.stripes import LEAVES
from tests.acceptance.harness import PROVIDERS, Settings, wait_for
from tests.acceptance.plain_client import Carried, get_all, put_all
from tests.acceptance.remote import Bucket, Processor, RemoteVolume, say
from tests.netns import Link, Links, address, missing
from tests.seaweed import BUCKETS, PORTS, Server, free_ports

MIB: Final = 1 << 20
K, N = 4, 6
PARTS: Final = ("publish", "small", "idle", "read", "slow")
SMALL_SIZE: Final = 4096
RANGE: Final = LEAVES * LEAF_SIZE
IDLE_SECONDS: Final = 25.0
SLOWER: Final = 10


@dataclass(frozen=True)
class Targets:
    """Least part of what the lines allow, most loss with one slower, most round trips."""

    publish: float = 0.8
    read: float = 0.8
    loss: float = 0.1
    small: float = 1.5


SHORT_TARGETS: Final = Targets(publish=0.1, read=0.05, loss=0.85, small=3.0)
"""Of so little that most of it is slow starts: what is kept unless something is broken."""

SETTINGS: Final[Settings] = {
    "volume": {"code": f"{K}-of-{N}", "publish_seconds": 86400, "publish_mib": 65536, "sync_deadline": 3600},
}
"""Nothing is published before it is asked for."""


@dataclass
class Plan:
    """How much of everything."""

    files: int = 4
    file_mib: int = 256
    small: int = 40
    idle_rounds: int = 5
    rate: float = 200e6 / 8
    delay: float = 0.04
    network: str = "relay"
    server: str = "plain"
    targets: Targets = Targets()
    parts: tuple[str, ...] = PARTS


@dataclass
class Ground:
    """Lines, servers and the volume over them."""

    plan: Plan
    work: Path
    links: Links | None = None
    places: list[Bucket] = field(default_factory=list)
    servers: list[int] = field(default_factory=list)
    volume: RemoteVolume | None = None
    round_trip: float = 0.0

    @property
    def machine(self) -> RemoteVolume:
        assert self.volume is not None
        return self.volume

    def processor(self) -> Processor:
        front = self.machine.front
        return Processor(
            {
                "front": front.pid if front else None,
                "transfer": self.machine.transfer_pid(),
                "relay": self.links.pid if self.links else None,
                "servers": self.servers,
                "this": os.getpid(),
            }
        )


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    figure: str
    ratio: float | None = None
    target: str = ""
    kept: bool | None = None
    more: str = ""

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        verdict = "" if self.kept is None else ("kept" if self.kept else "MISSED")
        return f"{self.what:44} {self.figure:>20} {ratio:>6}  {self.target:>8} {verdict:7} {self.more}".rstrip()


# --- the ground ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def prepare(plan: Plan, work: Path) -> Iterator[Ground]:
    """Everything up to a mounted empty volume."""
    with ExitStack() as stack:
        ground = Ground(plan, work)
        if plan.network == "relay":
            ground.links = stack.enter_context(Links([Link(plan.rate, plan.delay) for _ in PROVIDERS]))
            for number in range(len(PROVIDERS)):
                stack.enter_context(_serving(ground, number))
            ground.round_trip = statistics.median(_ping(place) for place in ground.places * 5)
            urls = {name: place.url for name, place in zip(PROVIDERS, ground.places, strict=True)}
        else:
            query = f"?latency={plan.delay}&bandwidth={plan.rate:.0f}"
            urls = {name: f"file://{work}/providers/{name}{query}" for name in PROVIDERS}
            ground.round_trip = plan.delay
        ground.volume = stack.enter_context(RemoteVolume(work / "machine", urls, settings=SETTINGS))
        ground.volume.init()
        ground.volume.mount()
        yield ground


@contextlib.contextmanager
def _serving(ground: Ground, number: int) -> Iterator[None]:
    """A server at the far end of one line."""
    assert ground.links is not None
    root = ground.work / f"server-{number}"
    root.mkdir(parents=True)
    host, enter = address(number), ground.links.enter(number)
    if ground.plan.server == "weed":
        server = Server(root, free_ports(PORTS), host=host, prefix=tuple(enter))
        try:
            if not server.start():
                raise RuntimeError(f"SeaweedFS does not start; see {root}/weed.log")
            ground.servers.append(server.facts.pid)
            ground.places.append(Bucket(server.facts.http, BUCKETS[0]))
            yield
        finally:
            server.kill()
        return
    command = [*enter, "setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.plain_s3", host, "8333"]
    process = subprocess.Popen([*command, str(root)])
    try:
        (root / "bucket").mkdir()
        ground.servers.append(process.pid)
        place = Bucket(f"http://{host}:8333", "bucket")
        wait_for(lambda: _answers(place), 10, f"a server at {host}")
        ground.places.append(place)
        yield
    finally:
        process.kill()
        process.wait()


def _answers(place: Bucket) -> bool:
    try:
        _ping(place)
    except ConnectionError:
        return False
    return True


def _ping(place: Bucket) -> float:
    """Seconds of one round trip: what a connection takes to be made."""
    host, port = place.endpoint.partition("//")[2].split(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port)), 10):
        return time.monotonic() - began


# --- files ----------------------------------------------------------------------------------------------------------


def write_files(folder: Path, plan: Plan) -> dict[str, int]:
    """Large files, and small ones written at even distances among them; checksums by name."""
    sums: dict[str, int] = {}
    total = plan.files * plan.file_mib
    due = [total * (number + 1) // (plan.small + 1) for number in range(plan.small)]
    written = 0
    for number in range(plan.files):
        name, checksum = f"large-{number}", 0
        with open(folder / name, "wb", buffering=0) as file:
            for _ in range(plan.file_mib):
                piece = os.urandom(MIB)
                file.write(piece)
                checksum = zlib.crc32(piece, checksum)
                written += 1
                while due and due[0] <= written:
                    small = f"small-{plan.small - len(due)}"
                    data = os.urandom(SMALL_SIZE)
                    (folder / small).write_bytes(data)
                    sums[small] = zlib.crc32(data)
                    del due[0]
        sums[name] = checksum
    return sums


def read_file(path: Path) -> tuple[int, int]:
    """Checksum and length, read from begin to end, 1 MiB at a time."""
    piece = memoryview(bytearray(MIB))
    checksum = length = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(piece):
            checksum = zlib.crc32(piece[:count], checksum)
            length += count
    return checksum, length


# --- what is measured -------------------------------------------------------------------------------------------------


class Trial:
    """The parts in their order; each gives rows of the table."""

    def __init__(self, ground: Ground, tell: Callable[[str], None]) -> None:
        self.ground, self.plan = ground, ground.plan
        self.rows: list[Row] = []
        self._tell = tell
        self._sums: dict[str, int] = {}
        self._plain: dict[str, float] = {}
        """Rates that the plain client reached, of "put" and "get"."""

    def run(self) -> None:
        self._row("round trip of the lines", f"{self.ground.round_trip * 1e3:.1f} ms")
        self._sums = write_files(self.ground.machine.mountpoint, self.plan)
        self._publish()
        self._lose_state()
        if "small" in self.plan.parts:
            self._small("small file, open and read", [f"small-{i}" for i in range(self.plan.small)][self._idle :], 0)
        if "idle" in self.plan.parts:
            names = [f"small-{i}" for i in range(self._idle)]
            self._small(f"the same after {IDLE_SECONDS:.0f} s of rest", names, IDLE_SECONDS)
        if "read" in self.plan.parts:
            self._plain_get(len(PROVIDERS))
            self._read("sequential read", "large-0", target=self.plan.targets.read)
        if "slow" in self.plan.parts and self.ground.links is not None:
            self._slow(self.ground.links)

    @property
    def _idle(self) -> int:
        return self.plan.idle_rounds if "idle" in self.plan.parts else 0

    def _row(
        self,
        what: str,
        figure: str,
        ratio: float | None = None,
        target: str = "",
        kept: bool | None = None,
        more: str = "",
    ) -> None:
        row = Row(what, figure, ratio, target, kept, more)
        self.rows.append(row)
        self._tell(str(row))

    def _publish(self) -> None:
        machine, total = self.ground.machine, self.plan.files * self.plan.file_mib * MIB
        allowed = self.plan.rate * len(PROVIDERS)
        if "publish" in self.plan.parts and self.ground.places:
            count = max(1, total * N // K // len(PROVIDERS) // (4 * MIB))
            processor = self.ground.processor()
            plain = put_all(self.ground.places, count, os.urandom(4 * MIB))
            self._plain["put"] = plain.rate
            self._row(
                "plain client, puts of 4 MiB", _rate(plain.rate), plain.rate / allowed, more=_cpu(processor, plain)
            )
        status = machine.status()
        processor, began = self.ground.processor(), time.monotonic()
        machine.sync(seconds=3600)
        took = Carried(total * N // K, time.monotonic() - began)
        what = f"publish of {total // MIB} MiB"
        if "publish" in self.plan.parts:
            ratio, least = took.rate / allowed, self.plan.targets.publish
            assert status["published_batch"] == -1 or status["dirty_bytes"], status
            self._row(
                what,
                _rate(took.rate),
                ratio,
                f">= {least:.2f}",
                ratio >= least,
                self._beside("put", took) + _cpu(processor, took),
            )

    def _lose_state(self) -> None:
        machine = self.ground.machine
        machine.umount(seconds=600)
        machine.drop_state()
        began = time.monotonic()
        machine.recover(seconds=600)
        self._row("recover", f"{time.monotonic() - began:.2f} s")
        machine.mount()

    def _small(self, what: str, names: list[str], rest: float) -> None:
        names = random.Random(4).sample(names, len(names))
        times = []
        processor, began = self.ground.processor(), time.monotonic()
        for name in names:
            time.sleep(rest)
            path = self.ground.machine.mountpoint / name
            start = time.monotonic()
            with open(path, "rb", buffering=0) as file:
                data = file.read(SMALL_SIZE)
            times.append(time.monotonic() - start)
            assert zlib.crc32(data) == self._sums[name], f"{name} reads wrong"
        median = statistics.median(times)
        trips, most = median / self.ground.round_trip, self.plan.targets.small
        spread = f"{len(times)} files, {min(times) * 1e3:.0f} to {max(times) * 1e3:.0f} ms; "
        more = spread + _cpu(processor, Carried(0, time.monotonic() - began))
        self._row(f"{what}, in round trips", f"{median * 1e3:.1f} ms", trips, f"<= {most:.2f}", trips <= most, more)

    def _plain_get(self, providers: int) -> None:
        if not self.ground.places:
            return
        places = self.ground.places[:providers]
        each = max(1, self.plan.file_mib // providers // 4)
        keys = []
        for place in places:
            shares = [key for key in place.listed() if key.startswith("shares/")]
            keys.append(shares[:each])
        allowed = self.plan.rate * providers
        for what, part in (("ranges as the product's", RANGE), ("shares", None)):
            processor = self.ground.processor()
            got = get_all(places, keys, part)
            self._plain["get"] = got.rate
            self._row(f"plain client, gets of {what}", _rate(got.rate), got.rate / allowed, more=_cpu(processor, got))

    def _read(self, what: str, name: str, links: float = N, target: float | None = None) -> float:
        """Rate of a cold read; `links` is how many lines' worth it may use."""
        processor, began = self.ground.processor(), time.monotonic()
        before = self.ground.links.carried() if self.ground.links else []
        checksum, length = read_file(self.ground.machine.mountpoint / name)
        got = Carried(length, time.monotonic() - began)
        assert checksum == self._sums[name], f"{name} reads wrong"
        assert length == self.plan.file_mib * MIB
        ratio = got.rate / (self.plan.rate * links)
        down = ""
        if self.ground.links:
            after = self.ground.links.carried()
            each = [(b["down"] - a["down"]) // MIB for a, b in zip(before, after, strict=True)]
            down = f"; MiB by line {each}"
        more = self._beside("get", got) + _cpu(processor, got) + down
        self._row(
            what,
            _rate(got.rate),
            ratio,
            f">= {target:.2f}" if target else "",
            ratio >= target if target else None,
            more,
        )
        return got.rate

    def _beside(self, kind: str, took: Carried) -> str:
        """What part of the plain client's rate this is."""
        plain = self._plain.get(kind)
        return f"{took.rate / plain:.2f} of the plain client; " if plain else ""

    def _slow(self, links: Links) -> None:
        """The first line ten times slower from now on; the last file is read with it well again."""
        well = self._read("sequential read again", "large-3", target=self.plan.targets.read)
        links.change(0, rate=self.plan.rate / SLOWER)
        most = self.plan.targets.loss
        for name, which in (("large-1", "from now on"), ("large-2", "for a while")):
            rate = self._read(f"one line {SLOWER} times slower {which}", name, N - 1 + 1 / SLOWER)
            loss = 1 - rate / well
            self._row("  loss against the read before", f"{loss * 100:.0f} %", loss, f"<= {most:.2f}", loss <= most)
        links.change(0, rate=self.plan.rate)


def _rate(rate: float) -> str:
    return f"{rate / 1e6:.1f} MB/s"


def _cpu(processor: Processor, took: Carried) -> str:
    """Cores in use by each."""
    used = {name: seconds / took.seconds for name, seconds in processor.used().items()}
    shown = ", ".join(f"{name} {cores:.2f}" for name, cores in used.items() if cores >= 0.005)
    return f"{took.seconds:.1f} s; cores: {shown}"


def run(plan: Plan, work: Path, tell: Callable[[str], None]) -> list[Row]:
    """All rows; the calling process is in another network namespace afterwards, where lines are made."""
    with prepare(plan, work) as ground:
        trial = Trial(ground, tell)
        trial.run()
        ground.machine.umount(seconds=600)
        return trial.rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--short", action="store_true", help="four files of 16 MiB, and targets that say no more than that it works"
    )
    parser.add_argument("--network", choices=("relay", "wrapper"), default="relay")
    parser.add_argument("--server", choices=("plain", "weed"), default="plain")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--mib", type=int, default=256, help="of each of four files")
    parser.add_argument("--mbit", type=float, default=200, help="of a line, each way")
    parser.add_argument("--ms", type=float, default=40, help="of a round trip")
    parser.add_argument("--work", type=Path, default=None, help="an empty folder; default: one below /tmp")
    chosen = parser.parse_args()
    if chosen.network == "relay" and (reason := missing()):
        print(f"no lines can be had ({reason}); try --network wrapper", file=sys.stderr)
        return 2
    plan = Plan(rate=chosen.mbit * 1e6 / 8, delay=chosen.ms / 1e3, network=chosen.network, server=chosen.server)
    plan.parts = tuple(chosen.only.split(","))
    plan.file_mib = chosen.mib
    if chosen.short:
        plan.file_mib, plan.small, plan.idle_rounds = 16, 6, 0
        plan.targets = SHORT_TARGETS
        plan.parts = tuple(part for part in plan.parts if part != "idle")
    work = chosen.work or Path(tempfile.mkdtemp(prefix="icnfs-links-"))
    say(f"{N} lines of {chosen.mbit:g} Mbit/s, {chosen.ms:g} ms, by {plan.network}; {K}-of-{N}; servers: {plan.server}")
    if plan.network == "wrapper":
        say(
            "each request has the bandwidth of its line for itself: rates are no measure here, times of one request are"
        )
    rows = run(plan, work, say)
    shutil.rmtree(work)
    missed = [row.what for row in rows if row.kept is False]
    say(f"missed: {'; '.join(missed)}" if missed else "all targets kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
