"""How a mount begins and ends: signals, umount, fusermount3, cancellation, a cut connection, a dead daemon."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from icnfs.errors import MountPointError
from icnfs.fuse import mountpoint as places
from icnfs.fuse.options import MountOptions, parse
from icnfs.fuse.serve import End
from icnfs.mountinfo import FS_TYPE
from tests.fuse.memfs import MemFs
from tests.fuse.mounting import BOUND, Mount, mounted

pytestmark = pytest.mark.mount

ROOT = Path(__file__).parents[2]


@contextmanager
def daemon(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A living mount at `path` in a process of its own."""
    path.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fuse.daemon", str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait(BOUND)
        process.stdout.close()
        if places.mounted_at(str(path)):
            places.detach(str(path))


def _last_words(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    process.wait(BOUND)
    return process.stdout.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(tmp_path: Path, number: signal.Signals) -> None:
    with daemon(tmp_path / "mnt") as process:
        process.send_signal(number)
        assert _last_words(process).startswith("signal")
        assert process.returncode == 0
        assert not places.mounted_at(str(tmp_path / "mnt"))


def test_a_signal_lets_the_kernel_write_back_mapped_pages(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with daemon(path) as process:
        with open(path / "file", "w+b") as file:
            file.truncate(8192)
            with mmap.mmap(file.fileno(), 8192) as pages:
                pages[:8] = b"by mmap!"
        process.send_signal(signal.SIGTERM)
        assert "by mmap!" in _last_words(process)


def test_a_signal_while_in_use_detaches(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with daemon(path) as process:
        fd = os.open(path / "file", os.O_CREAT | os.O_WRONLY)
        process.send_signal(signal.SIGTERM)
        assert _last_words(process).startswith("signal")
        assert not places.mounted_at(str(path))
        for act in (os.fsync, os.close):
            with pytest.raises(OSError) as caught:
                act(fd)
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)


@pytest.mark.parametrize("command", [["umount"], ["umount", "-l"], ["fusermount3", "-u"]])
def test_an_unmount_from_outside_is_noticed(tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "mnt"
    with daemon(path) as process:
        subprocess.run([*command, str(path)], check=True)
        assert _last_words(process).startswith("unmounted")
        assert process.returncode == 0


def test_cancellation_unmounts(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt") as mount:
        (mount.path / "file").write_bytes(b"x")
        assert mount.cancel() is None
        assert list(mount.path.iterdir()) == []


def test_cancellation_while_a_handler_waits_ends_in_time(tmp_path: Path) -> None:
    import threading

    import trio

    with mounted(tmp_path / "mnt", deadline=600.0) as mount:
        (mount.path / "file").write_bytes(b"x")
        entered = threading.Event()

        def pause(called: str) -> trio.Event | None:
            if called != "fsync":
                return None
            entered.set()
            return trio.Event()

        mount.in_loop(setattr, mount.fs, "pause", pause)
        told: list[int | None] = []

        def sync() -> None:
            fd = os.open(mount.path / "file", os.O_WRONLY)
            try:
                os.fsync(fd)
            except OSError as exc:
                told.append(exc.errno)
            finally:
                os.close(fd)

        thread = threading.Thread(target=sync)
        thread.start()
        assert entered.wait(BOUND)
        mount.cancel()
        thread.join(BOUND)
        assert told in ([errno.ENOTCONN], [errno.ECONNABORTED])


@pytest.fixture
def connections() -> Iterator[Path]:
    """/sys/fs/fuse/connections, mounted for the test where the machine has not."""
    path = Path("/sys/fs/fuse/connections")
    ours = not path.is_mount()
    if (
        ours
        and subprocess.run(["mount", "-t", "fusectl", "none", str(path)], capture_output=True, check=False).returncode
    ):
        pytest.skip("fusectl cannot be mounted")
    yield path
    if ours:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # some other mount may be using it just now


def test_a_cut_connection_is_noticed_and_nothing_is_left_mounted(tmp_path: Path, connections: Path) -> None:
    with mounted(tmp_path / "mnt") as mount:
        (connections / str(os.minor(mount.path.stat().st_dev)) / "abort").write_text("1")
        assert mount.ended.result(BOUND) is End.ABORTED
        assert not places.mounted_at(str(mount.path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may tune the kernel")
def test_root_gets_more_background_requests(tmp_path: Path, connections: Path) -> None:
    with mounted(tmp_path / "mnt") as mount:
        connection = connections / str(os.minor(mount.path.stat().st_dev))
        assert int((connection / "max_background").read_text()) == places.MAX_BACKGROUND


def test_a_dead_mount_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mnt"
    with daemon(path) as process:
        process.kill()
        process.wait(BOUND)
        with pytest.raises(OSError) as caught:
            os.statvfs(path)
        assert caught.value.errno == errno.ENOTCONN
        with daemon(path):
            (path / "file").write_bytes(b"alive")
        with mounted(path) as mount:
            assert list(mount.path.iterdir()) == []


def test_a_living_mount_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt") as mount, pytest.raises(MountPointError, match="is mounted here") as caught:
        places.prepare(str(mount.path))
    assert caught.value.errno == errno.EBUSY


def test_one_process_mounts_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        with mounted(tmp_path / "mnt") as mount:
            (mount.path / "file").touch()


def test_the_mount_says_what_it_is(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt") as mount:
        found = places.mounted_at(str(mount.path))
        assert found is not None
        assert (found.fs_type, found.source) == (FS_TYPE, b"mem")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may tune the kernel")
def test_root_gets_more_read_ahead(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt") as mount:
        device = mount.path.stat().st_dev
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        assert int(bdi.read_text()) == places.READ_AHEAD_KIB


def test_the_options_reach_the_kernel(tmp_path: Path) -> None:
    with mounted(tmp_path / "mnt") as mount:
        flags = os.statvfs(mount.path).f_flag
        assert flags & os.ST_NOSUID and flags & os.ST_NODEV
        assert not flags & (os.ST_RDONLY | os.ST_NOEXEC)
    if os.geteuid():
        return  # the others are root's
    with mounted(tmp_path / "mnt", options=parse(["ro,allow_other,suid,dev,noexec"])) as mount:
        flags = os.statvfs(mount.path).f_flag
        assert flags & os.ST_RDONLY and flags & os.ST_NOEXEC
        assert not flags & (os.ST_NOSUID | os.ST_NODEV)
        with pytest.raises(OSError) as caught:
            (mount.path / "file").touch()
        assert caught.value.errno == errno.EROFS


def test_a_volume_that_cannot_answer_is_not_called_ready(tmp_path: Path) -> None:
    fs = MemFs()

    def before(method: str) -> None:
        raise RuntimeError(method)

    fs.before = before
    (tmp_path / "mnt").mkdir()
    mount = Mount(tmp_path / "mnt", fs, MountOptions(), None)
    with pytest.raises(MountPointError, match="does not answer"):
        mount.start()
    assert not places.mounted_at(str(mount.path))
