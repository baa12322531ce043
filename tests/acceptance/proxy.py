"""A proxy that makes a server bad on command: slow, late, cut off, or with flipped bits in the bodies it answers.

    python -m tests.acceptance.proxy PORT TARGET_PORT SEED      (both on 127.0.0.1)

Standard input brings one command a line, JSON: `rate` in bytes/s for each direction of all connections together (0 for
no bound), `delay` in seconds before every piece of an answer, `flip` the probability that a piece of an answer's body
has a bit flipped, `cut` whether connections are cut and none is taken.  It ends with standard input.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_PIECE: Final = 64 * 1024


@dataclass
class State:
    """What is wrong now, and the connections there are."""

    rate: float = 0.0
    delay: float = 0.0
    flip: float = 0.0
    cut: bool = False
    open: set[socket.socket] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Way:
    """One direction's bottleneck, of all connections together."""

    def __init__(self) -> None:
        self._free = 0.0
        self._lock = threading.Lock()

    def wait(self, rate: float, size: int) -> None:
        if not rate:
            return
        with self._lock:
            begin = max(time.monotonic(), self._free)
            self._free = begin + size / rate
        while (left := begin + size / rate - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))


def _carry(source: socket.socket, sink: socket.socket, state: State, way: Way, chance: random.Random | None) -> None:
    """Until either end closes; with `chance` these are answers."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            way.wait(state.rate, len(piece))
            if chance is not None:
                if state.delay:
                    time.sleep(state.delay)
                piece = _flipped(piece, state.flip, chance)
            sink.sendall(piece)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _flipped(piece: bytes, probability: float, chance: random.Random) -> bytes:
    """A bit of the body; headers stay, so that the answer is one."""
    body = piece.find(b"\r\n\r\n") + 4 if piece.startswith(b"HTTP/") else 0
    if body >= len(piece) or (body == 3) or chance.random() >= probability:
        return piece
    altered = bytearray(piece)
    altered[chance.randrange(body, len(piece))] ^= 1 << chance.randrange(8)
    return bytes(altered)


def _serve(peer: socket.socket, target: int, state: State, ways: tuple[Way, Way], chance: random.Random) -> None:
    with peer:
        try:
            server = socket.create_connection(("127.0.0.1", target), 10)
        except OSError:
            return
        with server, _listed(state, peer, server):
            for end in (peer, server):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            up = threading.Thread(target=_carry, args=(peer, server, state, ways[0], None), daemon=True)
            up.start()
            _carry(server, peer, state, ways[1], chance)
            up.join()


@contextlib.contextmanager
def _listed(state: State, *ends: socket.socket) -> Iterator[None]:
    with state.lock:
        state.open.update(ends)
    try:
        yield
    finally:
        with state.lock:
            state.open.difference_update(ends)


def _obey(line: str, state: State) -> None:
    words = json.loads(line)
    state.rate, state.delay = words.get("rate", 0.0), words.get("delay", 0.0)
    state.flip, state.cut = words.get("flip", 0.0), words.get("cut", False)
    if state.cut:
        with state.lock:
            for end in state.open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def _listen(port: int, target: int, seed: int, state: State) -> None:
    ways, chance = (Way(), Way()), random.Random(seed)
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    while True:
        peer, _ = listener.accept()
        if state.cut:
            peer.close()
        else:
            threading.Thread(target=_serve, args=(peer, target, state, ways, chance), daemon=True).start()


def main(port: int, target: int, seed: int) -> None:
    state = State()
    threading.Thread(target=_listen, args=(port, target, seed, state), daemon=True).start()
    for line in sys.stdin:
        _obey(line, state)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
