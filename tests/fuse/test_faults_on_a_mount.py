"""Whatever the file system raises, in whatever handler: an errno, a logged event, and a mount that works on."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from icnfs import errors
from icnfs.fuse.faults import BURST
from tests.fuse.mounting import BOUND, Mount, mounted

pytestmark = pytest.mark.mount

SECRET = "canary-name"
DEADLINE = 0.2


class OddError(Exception):
    """A class that nobody has heard of, and whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError(SECRET)


def _deep_group(levels: int) -> ExceptionGroup[Exception]:
    group: ExceptionGroup[Exception] = ExceptionGroup(SECRET, [RuntimeError(SECRET)])
    for _ in range(levels):
        group = ExceptionGroup(SECRET, [group])
    return group


def _icnfs_errors() -> Iterator[tuple[errors.IcnfsError, int]]:
    """One of each class in the tree, save FsError, which is a reply."""
    classes: list[type[errors.IcnfsError]] = [errors.IcnfsError]
    for cls in classes:
        classes += cls.__subclasses__()
        if cls.__module__ != errors.__name__ or cls is errors.FsError:
            continue
        exc = cls("p", "what happened") if issubclass(cls, errors.ProviderError) else cls("what happened")
        yield exc, errno.EIO if exc.errno in (errno.EINTR, errno.ENOENT) else exc.errno


FAULTS: list[tuple[BaseException, int]] = [
    (OSError(errno.ENOSPC, SECRET, SECRET), errno.ENOSPC),
    (PermissionError(errno.EACCES, SECRET), errno.EACCES),
    (OSError(SECRET), errno.EIO),
    (OSError(errno.ENOSYS, SECRET), errno.EIO),
    (OSError(512, SECRET), errno.EIO),
    (OSError(-5, SECRET), errno.EIO),
    (OSError(0, SECRET), errno.EIO),
    (BlockingIOError(errno.EAGAIN, SECRET), errno.EIO),
    (InterruptedError(errno.EINTR, SECRET), errno.EIO),
    (FileNotFoundError(errno.ENOENT, SECRET, SECRET), errno.EIO),
    (TimeoutError(SECRET), errno.EIO),
    (RuntimeError(SECRET), errno.EIO),
    (KeyError(SECRET), errno.EIO),
    (ValueError(SECRET), errno.EIO),
    (TypeError(SECRET), errno.EIO),
    (AssertionError(SECRET), errno.EIO),
    (NotImplementedError(SECRET), errno.EIO),
    (MemoryError(SECRET), errno.ENOMEM),
    (RecursionError(SECRET), errno.EIO),
    (UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET), errno.EIO),
    (UnicodeEncodeError("utf-8", SECRET, 0, 1, SECRET), errno.EIO),
    (ZeroDivisionError(SECRET), errno.EIO),
    (EOFError(SECRET), errno.EIO),
    (BufferError(SECRET), errno.EIO),
    (StopAsyncIteration(SECRET), errno.EIO),
    (StopIteration(SECRET), errno.EIO),
    (trio.ClosedResourceError(SECRET), errno.EIO),
    (trio.TooSlowError(SECRET), errno.EIO),
    (OddError(SECRET), errno.EIO),
    (ExceptionGroup(SECRET, [OSError(errno.ENOSPC, SECRET)]), errno.ENOSPC),
    (ExceptionGroup(SECRET, [OSError(errno.ENOSPC, SECRET), KeyError(SECRET)]), errno.EIO),
    (ExceptionGroup(SECRET, [errors.FsError(errno.ENOSPC), RuntimeError(SECRET)]), errno.EIO),
    (_deep_group(3000), errno.EIO),
    *_icnfs_errors(),
]

Act = Callable[[Path], object]


def _with_fd(flags: int, act: Callable[[int], object]) -> Act:
    def run(here: Path) -> None:
        fd = os.open(here / "file", flags)
        try:
            act(fd)
        finally:
            os.close(fd)

    return run


def _fsyncdir(here: Path) -> None:
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlinked(here: Path) -> None:
    """An inode that the kernel forgets at once."""
    (here / "brief").unlink(missing_ok=True)
    (here / "brief").touch()
    (here / "brief").unlink()


REQUESTS: dict[str, Act] = {
    "lookup": lambda here: (here / os.urandom(8).hex()).stat(),
    "mknod": lambda here: os.mkfifo(here / "new"),
    "mkdir": lambda here: (here / "new").mkdir(),
    "symlink": lambda here: (here / "new").symlink_to("x"),
    "link": lambda here: os.link(here / "file", here / "new"),
    "create": lambda here: (here / "new").touch(),
    "unlink": lambda here: (here / "doomed").unlink(),
    "rmdir": lambda here: (here / "dir").rmdir(),
    "rename": lambda here: os.rename(here / "doomed", here / "new"),
    "readlink": lambda here: os.readlink(here / "link"),
    "setattr": lambda here: os.chmod(here / "file", 0o600),
    "getxattr": lambda here: os.getxattr(here / "file", "user.x"),
    "setxattr": lambda here: os.setxattr(here / "file", "user.x", b"v"),
    "listxattr": lambda here: os.listxattr(here / "file"),
    "removexattr": lambda here: os.removexattr(here / "file", "user.x"),
    "statfs": os.statvfs,
    "open": lambda here: os.close(os.open(here / "file", os.O_RDONLY)),
    "read": _with_fd(os.O_RDONLY | os.O_DIRECT, lambda fd: os.read(fd, 10)),
    "write": _with_fd(os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "fsync": _with_fd(os.O_WRONLY, os.fsync),
    "opendir": os.listdir,
    "readdir": os.listdir,
    "fsyncdir": _fsyncdir,
    "wait_room": lambda here: (here / "new").mkdir(),
}
SILENT: dict[str, Act] = {
    "release": _with_fd(os.O_RDONLY, lambda fd: None),
    "releasedir": os.listdir,
    "forget": _unlinked,
}
"""Requests whose answer nobody sees."""


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(tmp_path_factory.mktemp("faults") / "mnt", deadline=DEADLINE) as mount:
        for name in ("file", "doomed"):
            (mount.path / name).write_bytes(b"contents")
        (mount.path / "dir").mkdir()
        (mount.path / "link").symlink_to("target")
        os.setxattr(mount.path / "file", "user.x", b"v")
        yield mount


def _fails(act: Act, here: Path) -> int | None:
    try:
        act(here)
    except OSError as exc:
        return exc.errno
    return None


def _works_on(mount: Mount) -> None:
    assert not mount.ended.done()
    probe = mount.path / "probe"
    probe.write_bytes(b"alive")
    assert probe.read_bytes() == b"alive"
    probe.unlink()


@pytest.fixture(params=FAULTS, ids=lambda case: f"{type(case[0]).__name__}-{case[1]}")
def fault(request: pytest.FixtureRequest) -> tuple[BaseException, int]:
    return request.param  # type: ignore[no-any-return]


def test_every_exception_in_every_handler_is_answered(
    mount: Mount, fault: tuple[BaseException, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.fuse.faults.BURST", 1_000_000)
    caplog.set_level(logging.INFO)
    exc, expected = fault
    for method, act in {**REQUESTS, **SILENT}.items():
        caplog.clear()
        told = _inject(mount, method, exc, act)
        _works_on(mount)
        assert told == (None if method in SILENT else expected), method
        _check_events(caplog, method)


def _inject(mount: Mount, method: str, exc: BaseException, act: Act) -> int | None:
    """Run `act` while `method` raises `exc`; the errno it ends with.  Waits until the fault has been met."""
    met: list[str] = []

    def before(called: str) -> None:
        if called == method:
            met.append(called)
            raise exc.with_traceback(None)

    mount.in_loop(setattr, mount.fs, "before", before)
    mount.in_loop(setattr, mount.fs, "congested", method == "wait_room")
    try:
        told = _fails(act, mount.path)
        for _ in range(10_000):
            if met:
                break
            mount.in_loop(int)
    finally:
        mount.in_loop(setattr, mount.fs, "congested", False)
        mount.in_loop(setattr, mount.fs, "before", lambda called: None)
    assert met, f"{method} was not asked"
    return told


def _check_events(caplog: pytest.LogCaptureFixture, method: str) -> None:
    """Something is logged, each event on one line, and nothing in it tells a name."""
    events = [record for record in caplog.records if record.name == "icnfs.fuse.faults"]
    assert events, f"{method}: nothing logged"
    for record in events:
        assert record.levelno == logging.ERROR
        assert "\n" not in record.getMessage()
        assert record.getMessage().startswith(f"{method} answered") or method == "wait_room"
    assert SECRET not in caplog.text


WAITING = ["read", "write", "fsync", "fsyncdir", "wait_room"]


@pytest.mark.parametrize("method", WAITING)
@pytest.mark.parametrize("how", ["plainly", "in a nursery", "beside another fault"])
def test_a_handler_that_waits_too_long_is_answered(
    mount: Mount, method: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Never:
        async def wait(self) -> None:
            if how == "plainly":
                await trio.sleep_forever()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(self._fail)

        async def _fail(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                if how == "beside another fault":
                    raise RuntimeError(SECRET)

    caplog.set_level(logging.INFO)
    mount.in_loop(setattr, mount.fs, "pause", lambda called: Never() if called == method else None)
    mount.in_loop(setattr, mount.fs, "congested", method == "wait_room")
    try:
        told = _fails(REQUESTS[method], mount.path)
    finally:
        mount.in_loop(setattr, mount.fs, "congested", False)
        mount.in_loop(setattr, mount.fs, "pause", lambda called: None)
    assert told == errno.EIO
    _works_on(mount)
    _check_events(caplog, method)


def test_many_waiting_handlers_leave_room_for_others_and_all_are_answered(mount: Mount) -> None:
    """More stuck readers than pyfuse3 keeps workers: the mount answers others meanwhile, and each gets its errno."""
    import threading

    told: list[int | None] = []
    mount.in_loop(setattr, mount.fs, "pause", lambda called: trio.Event() if called == "read" else None)
    readers = [threading.Thread(target=lambda: told.append(_fails(REQUESTS["read"], mount.path))) for _ in range(150)]
    for reader in readers:
        reader.start()
    (mount.path / "other").touch()
    os.statvfs(mount.path)
    for reader in readers:
        reader.join(BOUND)
    mount.in_loop(setattr, mount.fs, "pause", lambda called: None)
    assert told == [errno.EIO] * 150
    _works_on(mount)


def test_a_fault_that_repeats_does_not_fill_the_log(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    class RepeatedError(Exception):
        pass

    mount.in_loop(setattr, mount.fs, "before", lambda called: _raise(RepeatedError()) if called == "statfs" else None)
    for _ in range(BURST * 3):
        assert _fails(REQUESTS["statfs"], mount.path) == errno.EIO
    mount.in_loop(setattr, mount.fs, "before", lambda called: None)
    assert sum("RepeatedError" in record.getMessage() for record in caplog.records) == BURST


def _raise(exc: Exception) -> None:
    raise exc
