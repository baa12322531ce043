"""What must not leave the front: contents, names, attributes and the passphrase are found nowhere else."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.harness import Volume, regular_files
from tests.posix.observe import OTHER, as_user

STEM: Final = b"canary7f1d93c2a8e5-"
"""What all canaries begin with: where its disguises are not found, none of them is."""

CONTENT: Final = STEM + b"content"
NAME: Final = STEM + b"name"
FOLDER: Final = STEM + b"folder"
TARGET: Final = STEM + b"target"
ATTRIBUTE: Final = b"user." + STEM + b"attribute"
VALUE: Final = STEM + b"value"
PASSPHRASE: Final = STEM + b" the passphrase"
CANARIES: Final = (CONTENT, NAME, FOLDER, TARGET, ATTRIBUTE, VALUE, PASSPHRASE)


def disguises(canary: bytes) -> Iterator[bytes]:
    """The canary as it is, and as other encodings would show it."""
    yield canary
    yield canary.hex().encode()
    yield canary.decode().encode("utf-16-le")
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + canary)[4:-4]


NEEDLES: Final = {needle: canary for canary in CANARIES for needle in disguises(canary)}


def canaries_in(data: bytes) -> set[bytes]:
    if not any(disguise in data for disguise in disguises(STEM)):
        return set()
    return {canary for needle, canary in NEEDLES.items() if needle in data}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    """Unlocked by a passphrase, holding every canary, published, and read from."""
    root = tmp_path_factory.mktemp("canaries")
    with Volume(root, settings={"keys": {"passphrase_file": "vol.pass"}, "log": {"level": "info"}}) as volume:
        del volume.settings["keys"]["keyfile"]
        volume.write_toml()
        secret = volume.config_dir / "vol.pass"
        secret.write_bytes(PASSPHRASE + b"\n")
        secret.chmod(0o600)
        volume.init()
        volume.mount()
        plant(os.fsencode(volume.mountpoint))
        volume.sync()
        yield volume


def plant(root: bytes) -> None:
    folder = root + b"/" + FOLDER
    os.mkdir(folder)
    for name, data in ((NAME, CONTENT), (NAME + b"-long", CONTENT * 20000), (NAME + b"\x1b[31m\n", CONTENT)):
        with open(folder + b"/" + name, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        os.setxattr(folder + b"/" + name, ATTRIBUTE, VALUE)
    os.symlink(TARGET, folder + b"/link")
    os.rename(folder + b"/link", folder + b"/" + NAME + b"-moved")


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    plant(os.fsencode(tmp_path))
    found = set().union(*(canaries_in(path.read_bytes()) for path in regular_files(tmp_path)))
    assert found == {CONTENT}
    for canary in CANARIES:
        for shift in range(3):
            assert canaries_in(base64.b64encode(b"xyz"[:shift] + canary + b"end")) == {canary}
        assert canaries_in(canary.hex().encode()) == canaries_in(canary.decode().encode("utf-16-le")) == {canary}


@pytest.mark.mount
@pytest.mark.parametrize("where", ["state", "providers", "log", "config"])
def test_no_canary_lies_on_any_disk(volume: Volume, where: str) -> None:
    paths = {
        "state": list(regular_files(volume.state_dir)),
        "providers": [path for place in volume.providers.values() for path in regular_files(place)],
        "log": [volume.log],
        "config": [path for path in regular_files(volume.config_dir) if path.suffix != ".pass"],
    }[where]
    assert paths
    for path in paths:
        assert not canaries_in(path.read_bytes()), path
        assert not canaries_in(os.fsencode(path)), path


@pytest.mark.mount
def test_no_canary_is_in_the_memory_of_transfer(volume: Volume, tmp_path: Path) -> None:
    pid = volume.transfer_pid()
    assert pid is not None
    core = core_of(pid, tmp_path / "core")
    assert core.stat().st_size > 1 << 20
    assert not canaries_in(core.read_bytes())


def core_of(pid: int, path: Path) -> Path:
    """A core dump of a running process: by gdb's gcore, or else what /proc lets root read of its memory."""
    if shutil.which("gcore"):
        done = subprocess.run(["gcore", "-o", str(path), str(pid)], capture_output=True, check=False, timeout=60)
        dumped = path.with_name(f"{path.name}.{pid}")
        if done.returncode == 0 and dumped.exists():
            return dumped
    with (
        open(f"/proc/{pid}/maps") as maps,
        open(f"/proc/{pid}/mem", "rb", buffering=0) as memory,
        open(path, "wb") as to,
    ):
        for line in maps:
            span, permissions = line.split()[:2]
            if "r" not in permissions:
                continue
            start, end = (int(x, 16) for x in span.split("-"))
            try:
                memory.seek(start)
                to.write(memory.read(end - start))
            except (OSError, OverflowError):
                continue
    return path


@pytest.mark.mount
def test_no_canary_is_in_arguments_or_environment_of_either_process(volume: Volume) -> None:
    transfer = volume.transfer_pid()
    assert volume.front is not None and transfer is not None
    for pid in (volume.front.pid, transfer):
        for part in ("cmdline", "environ", "comm"):
            assert not canaries_in(Path(f"/proc/{pid}/{part}").read_bytes())


@pytest.mark.mount
def test_neither_process_leaves_a_core_dump(volume: Volume) -> None:
    transfer = volume.transfer_pid()
    assert volume.front is not None and transfer is not None
    for pid in (volume.front.pid, transfer):
        limits = Path(f"/proc/{pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4] == "0"


@pytest.mark.mount
def test_the_control_socket_tells_other_users_nothing(volume: Volume) -> None:
    sockets = [path for path in volume.runtime_dir.iterdir() if path.is_socket()]
    assert sockets
    for path in sockets:
        assert path.stat().st_mode & 0o077 == 0

        def ask(path: Path = path) -> bytes:
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(10)
                caller.connect(str(path))
                caller.sendall(b"\x01\x00\x00\x00\x00")
                return caller.recv(65536)

        volume.runtime_dir.chmod(0o755)
        path.chmod(0o777)
        try:
            assert as_user(OTHER, ask) in (b"", "ECONNRESET", "EPIPE", "EACCES", "ECONNREFUSED")
        finally:
            path.chmod(0o600)
            volume.runtime_dir.chmod(0o700)


@pytest.mark.mount
def test_status_and_its_json_name_no_file(volume: Volume) -> None:
    for argv in (("status",), ("status", "--json"), ("key", "list", volume.name)):
        done = volume.icnfs(*argv)
        assert not canaries_in(done.stdout.encode() + done.stderr.encode())
