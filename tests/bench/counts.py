"""python -m tests.bench.counts

The FUSE requests that each system call costs, by kind: what the kernel sends for it, seen by a wrapper around each
handler of a real mount of a local volume.  Everything that a call does is counted, what it leaves in the background
too; only FORGET is not, for the kernel sends it when it likes.  Every call is made twice, in a fresh folder each time,
and the second counts: the first lets the kernel learn what is answered ENOSYS.

A call is made with its path's entries and attributes known to the kernel, unless it says cold: then the kernel's caches
were dropped before (needs root), and the folder that it works in is asked for as well.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from icnfs.fuse.handlers import Handlers
from icnfs.fuse.options import MountOptions
from icnfs.fuse.serve import serve
from icnfs.state.store import Store
from icnfs.vfs.vfs import Vfs
from tests.acceptance.harness import REPO
from tests.bench.cold import drop_caches
from tests.state.local import Local

MIB: Final = 1 << 20
BLOCK: Final = os.urandom(MIB)
"""Pages that were touched: the kernel writes from a buffer that is not there yet page by page."""

DATA: Final = BLOCK[:4096]
SILENT: Final = {"init", "stacktrace", "destroy", "reply", "forget"}
"""Methods of the handlers that answer no request, and FORGET."""

Counts = dict[str, int]


@dataclass(frozen=True)
class Call:
    """`prepare` makes what `make` needs and is not counted; both get a folder, and `make` what `prepare` answered."""

    make: Callable[[Path, Any], object]
    prepare: Callable[[Path], Any] = lambda folder: None
    cold: bool = False


def _file(folder: Path, size: int = 4096) -> Path:
    path = folder / "file"
    path.write_bytes(BLOCK[:size])
    path.read_bytes()
    path.stat()
    return path


def _opened(folder: Path, flags: int = os.O_RDWR) -> int:
    return os.open(_file(folder), flags)


def _written(folder: Path) -> int:
    fd = _opened(folder)
    os.pwrite(fd, DATA, 0)
    return fd


def _hundred(folder: Path) -> None:
    for number in range(100):
        (folder / f"file{number}").touch()


def _open_close(path: Path, flags: int = os.O_RDONLY) -> None:
    os.close(os.open(path, flags))


def _create(folder: Path) -> None:
    fd = os.open(folder / "new", os.O_CREAT | os.O_WRONLY | os.O_EXCL)
    os.write(fd, DATA)
    os.close(fd)


def _append_fsync(fd: int) -> None:
    os.write(fd, DATA)
    os.fsync(fd)


def _map(path: Path) -> None:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        sum(mapped[::4096])


def _attribute(folder: Path) -> Path:
    path = _file(folder)
    os.setxattr(path, "user.name", b"value")
    return path


def _link(folder: Path) -> Path:
    path = folder / "link"
    path.symlink_to("target")
    path.lstat()
    return path


CALLS: Final[dict[str, Call]] = {
    "open, close": Call(lambda _, path: _open_close(path), _file),
    "create, write 4 KiB, close": Call(lambda folder, _: _create(folder)),
    "pread 4 KiB, cached": Call(lambda _, fd: os.pread(fd, 4096, 0), _opened),
    "pread 4 KiB, cold": Call(lambda _, fd: os.pread(fd, 4096, 0), _opened, cold=True),
    "append 4 KiB": Call(lambda _, fd: os.write(fd, DATA), lambda folder: _opened(folder, os.O_WRONLY | os.O_APPEND)),
    "append 4 KiB, fsync": Call(
        lambda _, fd: _append_fsync(fd), lambda folder: _opened(folder, os.O_WRONLY | os.O_APPEND)
    ),
    "pwrite 4 KiB": Call(lambda _, fd: os.pwrite(fd, DATA, 0), _opened),
    "pwrite 4 KiB, the second": Call(lambda _, fd: os.pwrite(fd, DATA, 0), _written),
    "write 1 MiB": Call(lambda _, fd: os.pwrite(fd, BLOCK, 0), _written),
    "stat": Call(lambda _, path: os.stat(path), _file),
    "stat, cold": Call(lambda _, path: os.stat(path), _file, cold=True),
    "stat of what is not there": Call(lambda folder, _: (folder / "none").exists()),
    "rename": Call(lambda folder, path: os.rename(path, folder / "renamed"), _file),
    "link": Call(lambda folder, path: os.link(path, folder / "linked"), _file),
    "symlink": Call(lambda folder, _: os.symlink("target", folder / "new")),
    "readlink": Call(lambda _, path: os.readlink(path), _link),
    "unlink": Call(lambda _, path: os.unlink(path), _file),
    "mkdir": Call(lambda folder, _: os.mkdir(folder / "new")),
    "rmdir": Call(lambda folder, _: os.rmdir(folder / "old"), lambda folder: os.mkdir(folder / "old")),
    "list 100 entries": Call(lambda folder, _: os.listdir(folder), _hundred),
    "list 100 entries, stat each, cold": Call(
        lambda folder, _: [entry.stat() for entry in os.scandir(folder)], _hundred, cold=True
    ),
    "chmod": Call(lambda _, path: os.chmod(path, 0o600), _file),
    "chown": Call(lambda _, path: os.chown(path, os.geteuid(), os.getegid()), _file),
    "utimensat": Call(lambda _, path: os.utime(path, (1, 1)), _file),
    "truncate": Call(lambda _, path: os.truncate(path, 100), _file),
    "getxattr": Call(lambda _, path: os.getxattr(path, "user.name"), _attribute),
    "setxattr": Call(lambda _, path: os.setxattr(path, "user.name", b"other"), _attribute),
    "statfs": Call(lambda folder, _: os.statvfs(folder)),
    "open, map and read 128 KiB, close, cold": Call(
        lambda _, path: _map(path), lambda folder: _file(folder, 128 * 1024), cold=True
    ),
    "copy 1 MiB": Call(lambda folder, path: shutil.copyfile(path, folder / "copy"), lambda folder: _file(folder, MIB)),
}


class Counted:
    """A mount whose requests are counted in its process."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self.directory = directory
        self._process = process

    def taken(self) -> Counts:
        """Requests since the last time; those of this question are left out."""
        os.statvfs(self.directory)  # comes behind all that the kernel has sent
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = Counter(json.loads(self._process.stdout.readline()))
        found.subtract(["statfs"])
        return {kind: count for kind, count in sorted(found.items()) if count}


@contextmanager
def counted(work: Path) -> Iterator[Counted]:
    """A fresh local volume, mounted below `work` by a process of its own."""
    directory = work / "mnt"
    directory.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.counts", "--serve", str(work / "state"), str(directory)],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("it could not be mounted")
        yield Counted(directory, process)
    finally:
        process.terminate()
        process.wait(60)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def measure(work: Path) -> dict[str, Counts]:
    """Requests by kind for each call; cold ones are left out where caches cannot be dropped."""
    found: dict[str, Counts] = {}
    with counted(work) as mount:
        for name, call in CALLS.items():
            for attempt in range(2):
                folder = mount.directory / f"{list(CALLS).index(name)}-{attempt}"
                folder.mkdir()
                ready = call.prepare(folder)
                if call.cold and not drop_caches():
                    break
                if not call.cold:
                    folder.stat()
                mount.taken()
                call.make(folder, ready)
                found[name] = mount.taken()
                if isinstance(ready, int):
                    os.close(ready)
    return found


def _count(counter: Counter[str]) -> None:
    """Have each handler counted as it is entered."""

    def wrap(name: str, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(handler)
        async def counting(*args: Any, **kwargs: Any) -> Any:
            counter[name] += 1
            return await handler(*args, **kwargs)

        return counting

    for name, handler in list(vars(Handlers).items()):
        if callable(handler) and not name.startswith("_") and name not in SILENT:
            setattr(Handlers, name, wrap(name, handler))


def _serve(state: str, directory: str) -> int:
    """The counting process: a line on stdin is answered with the counts since the last."""
    counter: Counter[str] = Counter()
    _count(counter)

    async def answer() -> None:
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps(counter), flush=True)
            counter.clear()

    async def body(store: Store) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            vfs = Vfs(store, lambda: 1 << 40, nursery=nursery)
            ready = functools.partial(print, "ready", flush=True)
            await serve(vfs, directory, MountOptions(), volume="counts", ready=ready)
            nursery.cancel_scope.cancel()

    Local(Path(state)).run(body)
    return 0


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        return _serve(*sys.argv[2:])
    with tempfile.TemporaryDirectory(prefix="icnfs-counts-") as work:
        found = measure(Path(work))
    if sys.argv[1:2] == ["--json"]:
        print(json.dumps(found, indent=4))
        return 0
    print("| call | requests | by kind |\n|---|---:|---|")
    for name, counts in found.items():
        kinds = ", ".join(f"{count} {kind.upper()}" for kind, count in counts.items())
        print(f"| {name} | {sum(counts.values())} | {kinds or '-'} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
