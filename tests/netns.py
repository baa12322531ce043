"""Slow links between network namespaces: real TCP over TUN devices, through a relay that limits and delays it.

    with Links([Link(rate, delay), ...]) as links:     (as root, with /dev/net/tun)

The calling process moves into a namespace of its own, the client's; link i leads from 10.77.i.1 there to 10.77.i.2 in a
namespace that `links.enter(i)` starts programs in.  Each direction is a bottleneck of `rate` bytes/s with a queue that
drops what does not fit, then a delay of half the round trip.  Packets keep the size at which the kernel hands them
over (a device with segmentation offload: one packet stands for up to 64 KiB of segments of 1448 bytes), so congestion
windows and slow starts are those of a real line while the relay, which is Python, sees some thousands a second.

Nothing has a name outside: namespaces and devices vanish with the processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

TUN: Final = "/dev/net/tun"

_CLONE_NEWNET: Final = 0x40000000
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x1, 0x1000, 0x4000
_CSUM, _TSO4, _TSO6, _TSO_ECN = 1, 2, 4, 8
_VNET_HEADER: Final = 10
_PACKET_MAX: Final = 65536 + _VNET_HEADER
_TICK: Final = 0.0005
"""Seconds that packets may wait for others: bounds the relay's wake-ups."""

_libc: Final = ctypes.CDLL(None, use_errno=True)

_SYSCTLS: Final = {
    "tcp_rmem": "4096 131072 16777216",
    "tcp_wmem": "4096 131072 16777216",
    "tcp_no_metrics_save": "1",
}
"""Windows with room for several times what a line holds.  Congestion control is the machine's own choice."""


@dataclass
class Link:
    """One line: `rate` in bytes/s each way, `delay` the round trip in seconds, `queue` in bytes before each end."""

    rate: float
    delay: float
    queue: int = 2 * 1024 * 1024


def missing() -> str | None:
    """Why no links can be had here, or None."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        return f"{TUN}: {error.strerror}"
    return None


def address(link: int) -> str:
    """Of the provider's end."""
    return f"10.77.{link}.2"


class Links:
    """The relay and its namespaces.  The process that enters it stays in the client's namespace afterwards."""

    def __init__(self, links: list[Link]) -> None:
        self.links = links
        self._relay: subprocess.Popen[str] | None = None
        self._names: list[int] = []

    def __enter__(self) -> Links:
        _unshare()
        command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.netns"]
        command.append(json.dumps([asdict(link) for link in self.links]))
        self._relay = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[1],
        )
        assert self._relay.stdout is not None
        line = self._relay.stdout.readline()
        if not line:
            raise RuntimeError("the relay does not start")
        self._names = json.loads(line)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.kill()
            relay.wait()
            for pipe in (relay.stdin, relay.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    @property
    def pid(self) -> int:
        assert self._relay is not None
        return self._relay.pid

    def enter(self, link: int) -> list[str]:
        """The beginning of a command that runs in the provider's namespace of `link`."""
        return ["nsenter", f"--net=/proc/{self.pid}/fd/{self._names[link]}"]

    def change(self, link: int, *, rate: float | None = None, delay: float | None = None) -> None:
        """From now on; what is on its way keeps its time."""
        self._tell({"link": link, "rate": rate, "delay": delay})

    def carried(self) -> list[dict[str, int]]:
        """Of each link so far: bytes up and down, and packets that its queues dropped."""
        found = self._tell({})
        assert isinstance(found, list)
        return found

    def _tell(self, words: object) -> object:
        relay = self._relay
        assert relay is not None and relay.stdin is not None and relay.stdout is not None
        relay.stdin.write(json.dumps(words) + "\n")
        relay.stdin.flush()
        return json.loads(relay.stdout.readline())


# --- the relay's process ------------------------------------------------------------------------------------------


class _Way:
    """One direction of one link."""

    def __init__(self, reads: int, writes: int, link: Link) -> None:
        self.reads, self.writes, self.link = reads, writes, link
        self.bytes = self.dropped = 0
        self._free = 0.0
        self._queue: deque[tuple[float, bytes]] = deque()

    def take(self, now: float) -> None:
        """All that waits at the near end."""
        link = self.link
        while True:
            try:
                packet = os.read(self.reads, _PACKET_MAX)
            except BlockingIOError:
                return
            free = max(now, self._free)
            if (free - now) * link.rate > link.queue:
                self.dropped += 1
                continue
            self._free = free + len(packet) / link.rate
            self._queue.append((self._free + link.delay / 2, packet))

    def give(self, now: float) -> None:
        """All that is due at the far end."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            packet = queue.popleft()[1]
            self.bytes += len(packet) - _VNET_HEADER
            with contextlib.suppress(BlockingIOError):
                os.write(self.writes, packet)

    @property
    def due(self) -> float:
        return self._queue[0][0] if self._queue else float("inf")


def _unshare() -> None:
    """Into a network namespace of our own, whose loopback works."""
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    _run("ip", "link", "set", "lo", "up")
    for name, value in _SYSCTLS.items():
        Path(f"/proc/sys/net/ipv4/{name}").write_text(value)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def _open_tun(name: str, own: str, other: str) -> int:
    descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER))
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, _CSUM | _TSO4 | _TSO6 | _TSO_ECN)
    _run("ip", "address", "add", own, "peer", other, "dev", name)
    _run("ip", "link", "set", name, "mtu", "1500", "txqueuelen", "10000", "up")
    return descriptor


def _build(links: list[Link]) -> tuple[list[tuple[_Way, _Way]], list[int]]:
    """(up, down) of each link, and descriptors of the providers' namespaces."""
    near = [_open_tun(f"line{i}", f"10.77.{i}.1", address(i)) for i in range(len(links))]
    ways, names = [], []
    for i, link in enumerate(links):
        _unshare()
        far = _open_tun("line", address(i), f"10.77.{i}.1")
        names.append(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        ways.append((_Way(near[i], far, link), _Way(far, near[i], link)))
    return ways, names


def _obey(line: str, ways: list[tuple[_Way, _Way]]) -> None:
    told = json.loads(line)
    if "link" in told:
        link = ways[told["link"]][0].link
        link.rate = told["rate"] or link.rate
        link.delay = link.delay if told["delay"] is None else told["delay"]
    found = [{"up": up.bytes, "down": down.bytes, "dropped": up.dropped + down.dropped} for up, down in ways]
    print(json.dumps(found), flush=True)


def relay(links: list[Link]) -> None:
    """Until standard input ends."""
    ways, names = _build(links)
    print(json.dumps(names), flush=True)
    flat = {way.reads: way for pair in ways for way in pair}
    stdin = sys.stdin.fileno()
    each = list(flat.values())
    while True:
        wait = min(way.due for way in each) - time.monotonic() - _TICK
        ready, _, _ = select.select([*flat, stdin], [], [], min(max(wait, 0.0), 1.0))
        time.sleep(_TICK)
        now = time.monotonic()
        for descriptor in ready:
            if descriptor == stdin:
                line = os.read(stdin, 65536).decode()
                if not line:
                    return
                _obey(line, ways)
            else:
                flat[descriptor].take(now - _TICK)
        for way in each:
            way.give(now)


if __name__ == "__main__":
    relay([Link(**words) for words in json.loads(sys.argv[1])])
