"""A file system in memory behind the same FUSE loop, in a process of its own: what Python and FUSE cost by themselves.

    python -m tests.bench.floor DIR

The handlers, the loop and what is negotiated with the kernel are those of icnfs; what they call does next to nothing:
no locking, no accounting, no keys, no database.  A goal above this floor is out of reach for any file system behind
this loop.  Contents lie in memory until the last name and handle are gone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from icnfs import process
from icnfs.fuse import options
from icnfs.fuse.serve import serve
from icnfs.limits import CHUNK_SIZE
from icnfs.state.inode import Inode
from tests.acceptance.harness import REPO, is_mounted, wait_for
from tests.fuse.memfs import MemFs


class LeanFs(MemFs):
    """MemFs without what tests need: no calls are recorded or can be made to fail, and what is deleted is freed."""

    def __init__(self) -> None:
        super().__init__()
        self._listings: dict[int, list[tuple[int, bytes]]] = {}

    def _enter(self, method: str) -> None:
        pass

    async def _enter_async(self, method: str) -> None:
        pass

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        with memoryview(self._file(fh).data) as data:
            return bytes(data[offset : offset + size])

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        node = self._file(fh)
        held, end = node.data, offset + len(data)
        if offset > len(held):
            held.extend(bytes(offset - len(held)))
        held[offset:end] = data
        inode = node.inode
        inode.size = len(held)
        inode.count = -(-len(held) // CHUNK_SIZE)
        inode.mtime = inode.ctime = time.time_ns()
        return len(data)

    def readdir(self, fh: int, cookie: int) -> Iterator[tuple[bytes, Inode, int]]:
        node = self._file(fh)
        if cookie < 1:
            yield b".", node.inode, 1
        if cookie < 2:
            yield b"..", self._node(node.inode.parent).inode, 2
        listing = self._listings.get(fh)
        if listing is None:
            listing = self._listings[fh] = sorted((place, name) for name, place in node.cookies.items())
        for place, name in listing[bisect_right(listing, (max(cookie, 2), b"\xff" * 256)) :]:
            if name in node.entries:
                yield name, self._node(node.entries[name]).inode, place

    def releasedir(self, fh: int) -> None:
        self._listings.pop(fh, None)
        super().releasedir(fh)

    def forget(self, ino: int, count: int) -> None:
        super().forget(ino, count)
        if self.references[ino] <= 0:
            del self.references[ino]
            node = self._nodes.get(ino)
            if node is not None and node.inode.nlink == 0:
                del self._nodes[ino]


@contextmanager
def mounted(directory: Path) -> Iterator[int]:
    """The floor at `directory` (created); its process id.  Unmounted at the end."""
    directory.mkdir(exist_ok=True)
    daemon = subprocess.Popen([sys.executable, "-m", "tests.bench.floor", directory], cwd=REPO)
    try:
        wait_for(lambda: is_mounted(directory) or daemon.poll() is not None, 30, f"a mount at {directory}")
        yield daemon.pid
    finally:
        daemon.terminate()
        daemon.wait(60)


def main(directory: str) -> None:
    process.tune()

    async def run() -> None:
        await serve(LeanFs(), directory, options.parse(["allow_other"]), volume="floor", ready=lambda: None)

    trio.run(run)


if __name__ == "__main__":
    main(sys.argv[1])
