"""What one request costs in this process: from pyfuse3's call of a handler to its return, without a kernel.

    python -m tests.bench.requests [--repeats N] [FIGURE...]

Every figure is a handler called `CALLS` times over a volume of a directory with `FILES` committed files of 4 KiB.  The
store's committer is not running, so nothing else happens in the process and nothing is waited for.

| column | what                                                                    | repeats exactly |
|--------|-------------------------------------------------------------------------|-----------------|
| us     | CPU of the thread, the least of the repeats                             | no              |
| calls  | functions entered, Python's and C's, as a profiler sees them            | yes             |
| gets   | records looked up and rows passed in LMDB                               | yes             |
| peak   | bytes allocated at most at a time during one call, what it keeps too    | yes             |
| kept   | objects' blocks that are still allocated when the call has returned     | nearly          |

They are means (peak: the median) over the calls after the first few, which fill caches.  `test_requests` holds those
that repeat against what they were.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import stat
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError

from icnfs.fuse.handlers import Handlers
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.vfs.vfs import Vfs
from tests.state.local import Local

FILES: Final = 1200
CALLS: Final = 1000
SKIPPED: Final = 100
"""Calls before the measured ones."""

DATA: Final = bytes(range(256)) * 16
BIG: Final = 1 << 20
CTX: Final = pyfuse3.RequestContext()


@dataclass
class Fields:
    """What pyfuse3 says of a setattr; its own class cannot be filled in from Python."""

    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False


class Counts(NamedTuple):
    """Of one request: see the module."""

    calls: float
    gets: float
    peak: float


def finish(coro: Coroutine[Any, Any, Any]) -> Any:
    """What the handler returns, or the errno it answers; one that waits is an error."""
    try:
        coro.send(None)
    except StopIteration as done:
        return done.value
    except FUSEError as exc:
        return exc.errno
    raise AssertionError("the handler waits")


class CountingTransaction:
    """An LMDB transaction that counts what is asked of it."""

    def __init__(self, txn: Any, counts: list[int]) -> None:
        self._txn = txn
        self._counts = counts

    def get(self, key: bytes, **options: Any) -> Any:
        self._counts[0] += 1
        return self._txn.get(key, **options)

    def cursor(self, db: Any) -> CountingCursor:
        return CountingCursor(self._txn.cursor(db), self._counts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)


class CountingCursor:
    """A cursor that counts each row it is moved to."""

    def __init__(self, cursor: Any, counts: list[int]) -> None:
        self._cursor = cursor
        self._counts = counts

    def __enter__(self) -> CountingCursor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._cursor.close()

    def __iter__(self) -> Iterator[Any]:
        for row in self._cursor:
            self._counts[0] += 1
            yield row

    def set_range(self, key: bytes) -> bool:
        self._counts[0] += 1
        return bool(self._cursor.set_range(key))

    def next(self) -> bool:
        self._counts[0] += 1
        return bool(self._cursor.next())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class Bench:
    """An opened volume, and what the figures need of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.vfs = Vfs(store, lambda: 1 << 40)
        self.handlers = Handlers(self.vfs, lambda: False, lambda: None, lambda: None)
        self.folder = store.find(ROOT_INO, b"folder").ino  # type: ignore[union-attr]
        self.big = store.find(ROOT_INO, b"big").ino  # type: ignore[union-attr]

    @property
    def inodes(self) -> list[int]:
        """Inodes of the files, by number."""
        return [self.store.find(self.folder, name(i)).ino for i in range(FILES)]  # type: ignore[union-attr]

    def warm(self) -> list[int]:
        """The same, with every inode in memory and known to the kernel."""
        inodes = self.inodes
        for ino in inodes:
            self.store.inode(ino)
            self.vfs.remember(ino)
        return inodes


def name(number: int) -> bytes:
    return b"file-%06d.txt" % number


Request = Callable[[int], Any]
"""Does the request of that number, and returns the handler's answer."""


def lookup(b: Bench) -> Request:
    b.warm()
    return lambda i: finish(b.handlers.lookup(b.folder, name(i), CTX))


def lookup_cold(b: Bench) -> Request:
    return lambda i: finish(b.handlers.lookup(b.folder, name(i), CTX))


def lookup_missing(b: Bench) -> Request:
    return lambda i: finish(b.handlers.lookup(b.folder, name(i + FILES), CTX))


def getattr_(b: Bench) -> Request:
    inodes = b.warm()
    return lambda i: finish(b.handlers.getattr(inodes[i], CTX))


def _setattr(b: Bench, fields: Fields) -> Request:
    inodes = b.warm()
    attr = EntryAttributes()
    attr.st_mode, attr.st_uid, attr.st_gid = stat.S_IFREG | 0o600, 1000, 1000
    attr.st_atime_ns = attr.st_mtime_ns = 10**18
    return lambda i: finish(b.handlers.setattr(inodes[i], attr, fields, None, CTX))  # type: ignore[arg-type]


def chmod(b: Bench) -> Request:
    return _setattr(b, Fields(update_mode=True, update_ctime=True))


def chown(b: Bench) -> Request:
    return _setattr(b, Fields(update_uid=True, update_gid=True, update_ctime=True))


def utimens(b: Bench) -> Request:
    return _setattr(b, Fields(update_atime=True, update_mtime=True, update_ctime=True))


def getxattr(b: Bench) -> Request:
    inodes = b.warm()
    return lambda i: finish(b.handlers.getxattr(inodes[i], b"security.capability", CTX))


def create(b: Bench) -> Request:
    return lambda i: finish(b.handlers.create(b.folder, name(i + FILES), stat.S_IFREG | 0o644, os.O_RDWR, CTX))


def mknod(b: Bench) -> Request:
    return lambda i: finish(b.handlers.mknod(b.folder, name(i + FILES), stat.S_IFREG | 0o644, 0, CTX))


def mkdir(b: Bench) -> Request:
    return lambda i: finish(b.handlers.mkdir(b.folder, name(i + FILES), 0o755, CTX))


def unlink(b: Bench) -> Request:
    b.warm()
    return lambda i: finish(b.handlers.unlink(b.folder, name(i), CTX))


def unlink_new(b: Bench) -> Request:
    """Files whose contents were written a moment ago."""
    for i in range(FILES):
        handle, node = b.vfs.create(b.folder, name(i + FILES), 0o644, os.O_WRONLY, 0, 0)
        b.store.contents.write(b.store.edit(node.ino), 0, DATA)
        b.vfs.release(handle.fh)
    return lambda i: finish(b.handlers.unlink(b.folder, name(i + FILES), CTX))


def rename(b: Bench) -> Request:
    b.warm()
    return lambda i: finish(b.handlers.rename(b.folder, name(i), b.folder, name(i + FILES), 0, CTX))


def rename_over(b: Bench) -> Request:
    b.warm()
    for i in range(FILES):
        finish(b.handlers.mknod(b.folder, name(i + FILES), stat.S_IFREG | 0o644, 0, CTX))
    return lambda i: finish(b.handlers.rename(b.folder, name(i + FILES), b.folder, name(i), 0, CTX))


def open_release(b: Bench) -> Request:
    inodes = b.warm()

    def request(i: int) -> Any:
        info = finish(b.handlers.open(inodes[i], os.O_RDONLY, CTX))
        return finish(b.handlers.release(info.fh))

    return request


def read_small(b: Bench) -> Request:
    """The first read of each file."""
    inodes = b.warm()
    handles = [b.vfs.open(ino, os.O_RDONLY).fh for ino in inodes]
    return lambda i: finish(b.handlers.read(handles[i], 0, 4096))


def read_again(b: Bench) -> Request:
    """4 KiB of one large file, here and there."""
    fh = b.vfs.open(b.big, os.O_RDONLY).fh
    return lambda i: finish(b.handlers.read(fh, i * 37 % 256 * 4096, 4096))


def write_append(b: Bench) -> Request:
    handle, _ = b.vfs.create(ROOT_INO, b"log", 0o644, os.O_WRONLY, 0, 0)
    return lambda i: finish(b.handlers.write(handle.fh, i * 4096, DATA))


def write_over(b: Bench) -> Request:
    """4 KiB into one large sealed file, here and there."""
    fh = b.vfs.open(b.big, os.O_RDWR).fh
    return lambda i: finish(b.handlers.write(fh, i * 37 % 256 * 4096, DATA))


def readdir(b: Bench) -> Request:
    """Ten entries a request, as few as no kernel asks for: divide by ten."""
    fh = finish(b.handlers.opendir(b.folder, CTX))
    b.warm()
    entries = [(cookie, name) for name, _, cookie in b.vfs.readdir(fh, 0)]
    return lambda i: finish(b.handlers.readdir(fh, entries[i][0], TOKEN))


def forget(b: Bench) -> Request:
    inodes = b.warm()
    return lambda i: finish(b.handlers.forget([(inodes[i], 1)]))


class Token:
    """Stands for the kernel's buffer: takes ten entries."""

    left = 10


TOKEN: Final[Any] = Token()


def _readdir_reply(token: Token, name: bytes, entry: EntryAttributes, cookie: int) -> bool:
    token.left -= 1
    if token.left < 0:
        token.left = 10
        return False
    return True


FIGURES: Final[dict[str, tuple[Callable[[Bench], Request], Callable[[Any], bool]]]] = {
    "lookup": (lookup, lambda entry: entry.st_ino > 0),
    "lookup, cold": (lookup_cold, lambda entry: entry.st_ino > 0),
    "lookup, none": (lookup_missing, lambda entry: entry.st_ino == 0),
    "getattr": (getattr_, lambda entry: entry.st_size == len(DATA)),
    "chmod": (chmod, lambda entry: entry.st_mode & 0o777 == 0o600),
    "chown": (chown, lambda entry: entry.st_uid == 1000),
    "utimens": (utimens, lambda entry: entry.st_mtime_ns == 10**18),
    "getxattr, none": (getxattr, lambda code: code == errno.ENODATA),
    "create": (create, lambda made: made[1].st_ino > 0),
    "mknod": (mknod, lambda entry: entry.st_ino > 0),
    "mkdir": (mkdir, lambda entry: entry.st_nlink == 2),
    "unlink": (unlink, lambda code: code is None),
    "unlink, new": (unlink_new, lambda code: code is None),
    "rename": (rename, lambda code: code is None),
    "rename, over": (rename_over, lambda code: code is None),
    "open, release": (open_release, lambda code: code is None),
    "read 4K file": (read_small, lambda data: data == DATA),
    "read 4K": (read_again, lambda data: data == DATA),
    "append 4K": (write_append, lambda size: size == len(DATA)),
    "write 4K": (write_over, lambda size: size == len(DATA)),
    "readdir of 10": (readdir, lambda code: code is None),
    "forget": (forget, lambda code: code is None),
}
"""By name: what prepares the figure's request, and whether its answer is right."""


def make_volume(root: Path) -> Local:
    """The volume that the figures work on, committed."""
    local = Local(root)

    async def fill(store: Store) -> None:
        vfs = Vfs(store, lambda: 1 << 40)
        folder = vfs.mkdir(ROOT_INO, b"folder", 0o755, 0, 0).ino
        for number in range(FILES):
            handle, _ = vfs.create(folder, name(number), 0o644, os.O_RDWR, 0, 0)
            await vfs.write(handle.fh, 0, DATA)
            vfs.release(handle.fh)
        handle, _ = vfs.create(ROOT_INO, b"big", 0o644, os.O_RDWR, 0, 0)
        await vfs.write(handle.fh, 0, DATA * (BIG // len(DATA)))
        vfs.release(handle.fh)
        await store.wait_committed(store.close_batch())  # sealed whole, not as patches

    local.run(fill, upkeep=False)
    return local


@contextmanager
def opened(local: Local) -> Iterator[Store]:
    """The store, its committer not running: what is changed is dropped at the end."""
    store = Store.open(local.root, local.master)
    try:
        yield store
    finally:
        store.reader.meta.abort()
        store.reader.data.abort()
        if store._journal is not None:
            store._journal.close()
        store.env.close()


Work = Callable[[Bench, Request, range], float]
"""Does the requests of these numbers, and answers something about them."""


def _with_request(local: Local, figure: str, work: Work, numbers: range) -> float:
    """Run `work` where a request of that figure may be done, and answer what it does."""

    async def main() -> float:
        with ExitStack() as stack:
            store = stack.enter_context(opened(local))
            stack.enter_context(patch.object(pyfuse3, "readdir_reply", _readdir_reply))
            prepare, right = FIGURES[figure]
            bench = Bench(store)
            request = prepare(bench)
            TOKEN.left = Token.left
            for number in range(SKIPPED):
                assert right(request(number)), f"{figure}: a wrong answer"
            gc.collect()
            gc.disable()
            try:
                return work(bench, request, numbers)
            finally:
                gc.enable()

    return trio.run(main)


def _time(bench: Bench, request: Request, numbers: range) -> float:
    began = time.thread_time_ns()
    for number in numbers:
        request(number)
    return (time.thread_time_ns() - began) / len(numbers) / 1000


def _count_calls(bench: Bench, request: Request, numbers: range) -> float:
    count = 0

    def seen(frame: object, event: str, arg: object) -> None:
        nonlocal count
        if event in ("call", "c_call"):
            count += 1

    sys.setprofile(seen)
    try:
        for number in numbers:
            request(number)
    finally:
        sys.setprofile(None)
    return count / len(numbers)


def _count_gets(bench: Bench, request: Request, numbers: range) -> float:
    counts = [0]
    reader = bench.store.reader
    reader.meta = CountingTransaction(reader.meta, counts)  # type: ignore[assignment]
    reader.data = CountingTransaction(reader.data, counts)  # type: ignore[assignment]
    for number in numbers:
        request(number)
    return counts[0] / len(numbers)


def _peak_bytes(bench: Bench, request: Request, numbers: range) -> float:
    peaks = []
    tracemalloc.start()
    try:
        for number in numbers:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            request(number)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return statistics.median(peaks)


def _kept_blocks(bench: Bench, request: Request, numbers: range) -> float:
    before = sys.getallocatedblocks()
    for number in numbers:
        request(number)
    return (sys.getallocatedblocks() - before) / len(numbers)


def counts(local: Local, figure: str, calls: int = CALLS) -> Counts:
    """What repeats exactly; every count is made on a volume opened anew."""
    numbers = range(SKIPPED, SKIPPED + calls)
    return Counts(*(_with_request(local, figure, work, numbers) for work in (_count_calls, _count_gets, _peak_bytes)))


def cpu(local: Local, figure: str, repeats: int) -> float:
    """us a request: the least of the repeats."""
    numbers = range(SKIPPED, SKIPPED + CALLS)
    return min(_with_request(local, figure, _time, numbers) for _ in range(repeats))


def kept(local: Local, figure: str) -> float:
    """Blocks that a request leaves allocated."""
    return _with_request(local, figure, _kept_blocks, range(SKIPPED, SKIPPED + CALLS))


def main(wanted: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.requests", description="the cost of one request")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="names of figures; none: all")
    parser.add_argument("--repeats", type=int, default=5, help="the least CPU of so many is printed")
    given = parser.parse_args(wanted)
    with tempfile.TemporaryDirectory(prefix="icnfs-bench-") as work:
        local = make_volume(Path(work) / "state")
        print(f"{'request':16}{'us':>8}{'calls':>8}{'gets':>7}{'peak':>8}{'kept':>7}")
        for figure in given.figures or FIGURES:
            us, of, left = cpu(local, figure, given.repeats), counts(local, figure), kept(local, figure)
            print(f"{figure:16}{us:8.2f}{of.calls:8.1f}{of.gets:7.2f}{of.peak:8.0f}{left:7.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
