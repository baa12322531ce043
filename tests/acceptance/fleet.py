"""Servers as processes of their own, one for each provider, each behind a proxy; killed, frozen and spoiled at will."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.acceptance.harness import REPO, wait_for
from tests.acceptance.remote import Bucket
from tests.seaweed import BUCKETS, PORTS, Server, free_ports, request

START_SECONDS: Final = 30.0

_SPAWNERS: Final = ThreadPoolExecutor(8)
"""Processes that are to end with ours end with the thread that started them: these last."""


class Node:
    """One provider's server and proxy."""

    def __init__(self, name: str, root: Path, *, kind: str, seed: int) -> None:
        """`kind` is "weed" for SeaweedFS or "plain" for `tests.plain_s3`."""
        self.name = name
        self._root = root
        root.mkdir(parents=True)
        ports = free_ports(PORTS + 1)
        self._port, self._ports = ports[0], ports[1:]
        self._weed = Server(root, self._ports) if kind == "weed" else None
        self._plain: subprocess.Popen[bytes] | None = None
        command = [sys.executable, "-m", "tests.acceptance.proxy", str(self._port), str(self._ports[0]), str(seed)]
        self._proxy = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.PIPE, text=True, cwd=REPO
        )

    @property
    def place(self) -> Bucket:
        """As the product sees it, through the proxy."""
        return Bucket(f"http://127.0.0.1:{self._port}", BUCKETS[0], self.name)

    @property
    def server(self) -> Bucket:
        """The server itself."""
        return Bucket(f"http://127.0.0.1:{self._ports[0]}", BUCKETS[0], self.name)

    def start(self) -> None:
        """Over what data there is; returns once it answers."""
        _SPAWNERS.submit(self._start).result()

    def _start(self) -> None:
        if self._weed is not None:
            if not self._weed.start():
                raise RuntimeError(f"SeaweedFS does not start; see {self._root}/weed.log")
            return
        (self._root / BUCKETS[0]).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.plain_s3", "127.0.0.1", str(self._ports[0]), str(self._root)]
        self._plain = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], cwd=REPO)
        wait_for(self._answers, START_SECONDS, f"the server of {self.name}")

    def kill(self) -> None:
        if self._weed is not None:
            self._weed.kill()
        elif self._plain is not None:
            self._plain.kill()
            self._plain.wait()

    def freeze(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def spoil(self, **words: float | bool) -> None:
        """What `proxy` says; nothing makes it well."""
        assert self._proxy.stdin is not None
        self._proxy.stdin.write(json.dumps(words) + "\n")
        self._proxy.stdin.flush()

    def close(self) -> None:
        self.kill()
        self._proxy.kill()
        self._proxy.wait()
        assert self._proxy.stdin is not None
        with contextlib.suppress(OSError):
            self._proxy.stdin.close()

    @property
    def _pid(self) -> int:
        if self._weed is not None:
            return self._weed.facts.pid
        assert self._plain is not None
        return self._plain.pid

    def _answers(self) -> bool:
        try:
            return request(self.server.endpoint, "GET", f"/{BUCKETS[0]}?list-type=2")[0] == 200
        except OSError:
            return False


@contextlib.contextmanager
def fleet(names: Sequence[str], root: Path, *, kind: str, seed: int = 0) -> Iterator[dict[str, Node]]:
    """All of them, started side by side."""
    with ExitStack() as stack:
        nodes = {}
        for number, name in enumerate(names):
            nodes[name] = Node(name, root / name, kind=kind, seed=seed + number)
            stack.callback(nodes[name].close)
        for started in [_SPAWNERS.submit(node._start) for node in nodes.values()]:
            started.result()
        yield nodes
