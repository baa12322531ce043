"""What a directory adds to the contract: it stays inside, lasts, and names what the disk says."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from icnfs.errors import (
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderFullError,
    ProviderRefusedError,
)
from icnfs.providers import beneath
from icnfs.providers.directory import THREADS, DirectoryProvider
from icnfs.providers.oserrors import provider_error
from icnfs.providers.wrappers import Deadline

NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "provider"
    path.mkdir()
    return path


@pytest.fixture
def provider(root: Path) -> DirectoryProvider:
    return DirectoryProvider("alpha", root)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_bytes(b"not yours")
    return path


# --- staying inside ---------------------------------------------------------------------------------------------------


def test_link_among_the_directories_is_not_followed(provider: DirectoryProvider, root: Path, outside: Path) -> None:
    (root / "shares").symlink_to(outside)
    with pytest.raises(ProviderRefusedError, match="symbolic link"):
        trio.run(provider.get, "shares/secret")
    with pytest.raises(ProviderRefusedError, match="symbolic link"):
        trio.run(provider.put, "shares/new", b"x")
    with pytest.raises(ProviderRefusedError, match="symbolic link"):
        trio.run(provider.delete, "shares/secret")
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_link_in_place_of_an_object_is_not_followed(provider: DirectoryProvider, root: Path, outside: Path) -> None:
    (root / "a").symlink_to(outside / "secret")
    with pytest.raises(ProviderRefusedError, match="symbolic link"):
        trio.run(provider.get, "a")
    assert trio.run(provider.list, "") == []
    trio.run(provider.put, "a", b"mine")
    assert (outside / "secret").read_bytes() == b"not yours"
    assert trio.run(provider.get, "a") == b"mine"


def test_links_are_not_walked(provider: DirectoryProvider, root: Path, outside: Path) -> None:
    (root / "shares").symlink_to(outside)
    (root / "loop").symlink_to(root)
    assert trio.run(provider.list, "") == []


def test_root_may_be_reached_through_a_link(tmp_path: Path, root: Path) -> None:
    (tmp_path / "disk").symlink_to(root)
    trio.run(DirectoryProvider("alpha", tmp_path / "disk").put, "a", b"x")
    assert (root / "a").read_bytes() == b"x"


def test_fifo_in_place_of_an_object_holds_nobody(provider: DirectoryProvider, root: Path) -> None:
    os.mkfifo(root / "a")
    with pytest.raises(ObjectMissingError):
        trio.run(provider.get, "a")
    assert trio.run(provider.list, "") == []


def test_files_of_others_are_not_listed(provider: DirectoryProvider, root: Path) -> None:
    for name in ("README", "lost+found", ".hidden", "a~", "a b", "a..b"):
        (root / name).touch()
    (root / "UPPER").mkdir()
    (root / "UPPER" / "a").touch()
    deep = root
    for _ in range(150):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "x").touch()
    assert trio.run(provider.list, "") == []


def test_modes_are_the_owners_alone(provider: DirectoryProvider, root: Path) -> None:
    trio.run(provider.put, "shares/ab/cd", b"x")
    assert stat.S_IMODE((root / "shares/ab/cd").stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "shares/ab").stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "shares").stat().st_mode) == 0o700


# --- the directory itself ---------------------------------------------------------------------------------------------


def test_missing_directory_is_away_and_stays_missing(tmp_path: Path) -> None:
    provider = DirectoryProvider("alpha", tmp_path / "unplugged")
    for call in (partial(provider.put, "a", b""), partial(provider.get, "a"), partial(provider.list, ""),
                 partial(provider.delete, "a"), provider.probe):  # fmt: skip
        with pytest.raises(ProviderAwayError, match="not there; mount its disk"):
            trio.run(call)
    assert not (tmp_path / "unplugged").exists()


def test_create_makes_the_directory_once(tmp_path: Path) -> None:
    root = tmp_path / "provider"
    provider = DirectoryProvider("alpha", root, create=True)
    with pytest.raises(ObjectMissingError):
        trio.run(provider.get, "a")
    trio.run(provider.delete, "a")
    assert trio.run(provider.list, "") == []
    assert trio.run(provider.probe).free_bytes
    assert not root.exists(), "looking makes nothing"
    trio.run(provider.put, "a", b"x")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    (root / "a").unlink()
    root.rmdir()
    with pytest.raises(ProviderAwayError):
        trio.run(provider.put, "a", b"x")


def test_create_makes_no_parent_so_that_no_missing_disk_is_shadowed(tmp_path: Path) -> None:
    provider = DirectoryProvider("alpha", tmp_path / "disk" / "provider", create=True)
    for call in (partial(provider.put, "a", b""), partial(provider.get, "a"), partial(provider.list, ""),
                 provider.probe):  # fmt: skip
        with pytest.raises(ProviderRefusedError, match=r"disk is not there: .* correct provider\.alpha\.url"):
            trio.run(call)
    assert not (tmp_path / "disk").exists()


def test_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProviderRefusedError, match="not a directory"):
        trio.run(DirectoryProvider("alpha", tmp_path / "file").probe)


@pytest.mark.parametrize("made", [True, False])
def test_directory_on_a_mounted_volume_of_icnfs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """Also where the volume is mounted over it while it is used; what is not there is not made."""
    mounts, device = tmp_path / "mountinfo", tmp_path.stat().st_dev
    where = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,nosuid shared:7 - "
    mounts.write_text(f"22 1 0:21 / /proc rw - fuse.icnfs icnfs rw\n{where}ext4 fuse.icnfs rw\n")
    monkeypatch.setattr(beneath, "MOUNTINFO", mounts)
    root = tmp_path / "p"
    if made:
        root.mkdir()
    trio.run(DirectoryProvider("alpha", root, create=True).probe)
    mounts.write_text(mounts.read_text() + f"{where}fuse.icnfs demo rw\n")
    provider = DirectoryProvider("alpha", root, create=True)
    for call in (provider.probe, partial(provider.get, "a"), partial(provider.put, "a", b"x")):
        with pytest.raises(ProviderRefusedError, match=r"p lies on a mounted volume of icnfs; correct provider\.alpha"):
            trio.run(call)
    assert list(root.iterdir() if made else tmp_path.glob("p")) == []


def test_directory_that_comes_back_is_used_again(provider: DirectoryProvider, root: Path, tmp_path: Path) -> None:
    trio.run(provider.put, "a", b"x")
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(ProviderAwayError):
        trio.run(provider.get, "a")
    (tmp_path / "elsewhere").rename(root)
    assert trio.run(provider.get, "a") == b"x"


def test_two_directories_of_one_disk_are_one_pool(tmp_path: Path) -> None:
    a, b = (DirectoryProvider(name, tmp_path / name, create=True) for name in "ab")
    first, second = trio.run(a.probe), trio.run(b.probe)
    assert first.pool == second.pool
    assert first.free_bytes is not None and first.total_bytes is not None
    assert 0 <= first.free_bytes <= first.total_bytes


# --- atomic and durable -----------------------------------------------------------------------------------------------


def test_put_syncs_file_then_renames_then_syncs_directory(
    provider: DirectoryProvider, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def spy(name: str, label: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **kwargs: object) -> object:
            where = f" {os.readlink(f'/proc/self/fd/{args[0]}')}" if isinstance(args[0], int) else ""
            done.append(label + where.removeprefix(f" {root}"))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    spy("fdatasync", "data")
    spy("rename", "rename")
    spy("fsync", "entries")
    trio.run(provider.put, "shares/ab/cd", b"x")
    assert done[:3] == ["entries", "entries", "entries/shares"], "each new directory lasts in the one above"
    assert done[3].startswith("data/shares/ab/.put-")
    assert done[4:] == ["rename", "entries/shares/ab"]
    done.clear()
    trio.run(provider.put, "shares/ab/ce", b"x")
    assert [step.partition("/.put-")[0] for step in done] == ["data/shares/ab", "rename", "entries/shares/ab"]
    done.clear()
    trio.run(provider.delete, "shares/ab/cd")
    assert done == ["entries/shares/ab"]


@pytest.mark.parametrize("failing", ["write", "fdatasync", "rename"])
def test_put_that_fails_leaves_the_old_object_and_nothing_else(
    provider: DirectoryProvider, root: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    trio.run(provider.put, "a/b", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(ProviderAwayError, match="storing a/b"):
            trio.run(provider.put, "a/b", b"new")
    assert trio.run(provider.get, "a/b") == b"old"
    assert [path.name for path in (root / "a").iterdir()] == ["b"]


KILLED_IN_PUT = """
import os, signal, sys
from pathlib import Path
import trio
from icnfs.providers.directory import DirectoryProvider

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, sys.argv[2], die)
trio.run(DirectoryProvider("alpha", Path(sys.argv[1])).put, "a/b", b"new" * 1000)
"""


@pytest.mark.parametrize("instant", ["fdatasync", "rename"])
def test_killed_put_leaves_the_old_object_and_nothing_listed(
    provider: DirectoryProvider, root: Path, instant: str
) -> None:
    trio.run(provider.put, "a/b", b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_PUT, str(root), instant], check=False, timeout=60)
    assert killed.returncode == -9
    assert len(list((root / "a").iterdir())) == 2, "the temporary file is there"
    assert trio.run(provider.list, "") == ["a/b"]
    assert trio.run(provider.get, "a/b") == b"old"


def test_stale_temporary_files_are_swept_and_fresh_ones_kept(root: Path) -> None:
    (root / "a").mkdir()
    for place in (root, root / "a"):
        for name in (".put-stale", ".put-fresh", ".kept"):
            (place / name).touch()
        os.utime(place / ".put-stale", (0, 0))
        os.utime(place / ".kept", (0, 0))
    trio.run(DirectoryProvider("alpha", root).put, "a/b", b"x")
    assert sorted(path.name for path in root.iterdir()) == [".kept", ".put-fresh", "a"]
    assert sorted(path.name for path in (root / "a").iterdir()) == [".kept", ".put-fresh", "b"]


def test_reader_sees_the_old_or_the_new_object_and_never_a_mixture(provider: DirectoryProvider) -> None:
    async def main() -> None:
        await provider.put("a", b"0" * 50_000)
        seen: set[bytes] = set()

        async def write() -> None:
            for i in range(20):
                await provider.put("a", str(i % 10).encode() * 50_000)
            nursery.cancel_scope.cancel()

        async def read() -> None:
            while True:
                seen.add(await provider.get("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(read)
        assert all(len(data) == 50_000 and len(set(data)) == 1 for data in seen)

    trio.run(main)


# --- disks that hang, fill up, or say no ------------------------------------------------------------------------------


def test_hanging_disk_is_given_up_at_the_deadline_and_holds_nobody_else(
    provider: DirectoryProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    healthy = DirectoryProvider("beta", tmp_path / "beta", create=True)
    real = beneath.open_root

    def hang(path: Path) -> int:
        if path == provider.root:
            released.wait(60)
        return real(path)

    monkeypatch.setattr(beneath, "open_root", hang)

    async def away() -> None:
        with pytest.raises(ProviderAwayError, match="took longer"):
            await Deadline(provider, 0.1).get("a")

    async def main() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(THREADS + 4):
                    nursery.start_soon(away)
            await healthy.put("a", b"x")
            await away()
            released.set()

    try:
        trio.run(main)
    finally:
        released.set()


def test_cancelled_put_does_not_read_the_buffer_again(
    provider: DirectoryProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, released, finished = threading.Event(), threading.Event(), threading.Event()
    real = beneath.replace_file

    def slow(leaf: str, parent: int, data: bytes) -> None:
        entered.set()
        released.wait(60)
        real(leaf, parent, data)
        finished.set()

    monkeypatch.setattr(beneath, "replace_file", slow)

    async def main() -> None:
        buffer = bytearray(b"right")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(provider.put, "a", buffer)
            await trio.to_thread.run_sync(entered.wait, 60)
            nursery.cancel_scope.cancel()
        buffer[:] = b"wrong"
        released.set()
        await trio.to_thread.run_sync(finished.wait, 60)
        assert await provider.get("a") == b"right"

    trio.run(main)


@contextlib.contextmanager
def _mounted(where: Path, *options: str) -> Iterator[Path]:
    where.mkdir()
    command = ["mount", "-t", "tmpfs", *options, "icnfs-test", str(where)]
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs takes root")
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_full_disk_is_full_keeps_what_it_has_and_works_again(tmp_path: Path) -> None:
    async def main(provider: DirectoryProvider) -> None:
        await provider.put("a", b"kept" * 1000)
        with pytest.raises(ProviderFullError, match="free space there"):
            await provider.put("shares/ab/cd", bytes(2 << 20))
        with pytest.raises(ProviderFullError):
            await provider.put("a", bytes(2 << 20))
        assert await provider.get("a") == b"kept" * 1000
        assert await provider.list("") == ["a"]
        await provider.put("shares/ab/cd", bytes(512 << 10))
        await provider.delete("a")

    with _mounted(tmp_path / "small", "-o", "size=1m") as small:
        trio.run(main, DirectoryProvider("alpha", small))
        assert not [path for path in small.rglob("*") if path.name.startswith(".")]


def test_disk_without_inodes_is_full(tmp_path: Path) -> None:
    async def main(provider: DirectoryProvider) -> None:
        with pytest.raises(ProviderFullError):
            for i in range(20):
                await provider.put(f"a{i}", b"")

    with _mounted(tmp_path / "small", "-o", "size=1m,nr_inodes=8") as small:
        trio.run(main, DirectoryProvider("alpha", small))


def test_read_only_disk_refuses_puts_and_still_reads(tmp_path: Path) -> None:
    with _mounted(tmp_path / "small", "-o", "size=1m") as small:
        provider = DirectoryProvider("alpha", small)
        trio.run(provider.put, "a", b"x")
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(ProviderRefusedError, match="mount it writable"):
            trio.run(provider.put, "b", b"x")
        with pytest.raises(ProviderRefusedError):
            trio.run(provider.delete, "a")
        assert trio.run(provider.get, "a") == b"x"
        trio.run(provider.probe)


AS_NOBODY = """
import os, sys
from pathlib import Path
import trio
from icnfs.errors import ProviderError
from icnfs.providers.directory import DirectoryProvider

provider = DirectoryProvider("alpha", Path("."))
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
for call in (lambda: provider.put("b", b"x"), lambda: provider.delete("a"), lambda: provider.get("locked/c")):
    try:
        trio.run(call)
        print("done")
    except ProviderError as error:
        print(type(error).__name__)
"""


def test_permission_errors_are_refusals(root: Path) -> None:
    (root / "a").touch()
    (root / "locked").mkdir(mode=0o000)
    root.chmod(0o555)
    command = [sys.executable, "-c", AS_NOBODY, str(root), str(NOBODY)]
    ran = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    root.chmod(0o755)
    assert ran.stdout.split() == ["ProviderRefusedError"] * 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, ObjectMissingError),
        (errno.ENOSPC, ProviderFullError),
        (errno.EDQUOT, ProviderFullError),
        (errno.EACCES, ProviderRefusedError),
        (errno.EROFS, ProviderRefusedError),
        (errno.EIO, ProviderAwayError),
        (errno.ESTALE, ProviderAwayError),
        (errno.EMFILE, ProviderAwayError),
        (errno.ENOTCONN, ProviderAwayError),
    ],
)
def test_errno_has_its_class(code: int, kind: type[ProviderError]) -> None:
    error = provider_error("alpha", "storing a", OSError(code, os.strerror(code)))
    assert type(error) is kind
    assert str(error).startswith("provider alpha: storing a: ") and "\n" not in str(error)


@pytest.mark.parametrize("code", [None, *errno.errorcode])
def test_every_errno_has_a_class(code: int | None) -> None:
    assert isinstance(provider_error("alpha", "x", OSError() if code is None else OSError(code, "x")), ProviderError)


def test_new_object_is_made_once_where_the_disk_has_no_links(
    provider: DirectoryProvider, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    assert trio.run(provider.put_new, "heads/1", b"first")
    assert not trio.run(provider.put_new, "heads/1", b"second")
    assert (root / "heads/1").read_bytes() == b"first" and os.listdir(root / "heads") == ["1"]


def test_what_no_name_leads_through_is_not_looked_into(
    provider: DirectoryProvider, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk's lost+found is root's alone: whoever else looked into it would be refused."""
    trio.run(provider.put, "a/b", b"object")
    (root / "lost+found").mkdir()
    descend = beneath._open_directory

    def guarded(name: str, parent: int) -> int:
        if name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied")
        return descend(name, parent)

    monkeypatch.setattr(beneath, "_open_directory", guarded)
    assert trio.run(provider.list, "") == ["a/b"]


def test_an_error_about_a_path_that_is_not_utf_8_can_be_encoded() -> None:
    error = ProviderAwayError("p", os.fsdecode(b"/srv/m\xffll is not there"))
    assert error.detail.encode() == b"/srv/m\\udcffll is not there"
