"""Full disks: the local one at any moment, the providers' all at once.  Nothing acknowledged is lost; room mends it."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.harness import Settings, Volume, in_mount_table, wait_for

DISK_SIZE: Final = 320 << 20
NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
ROUNDS: Final = 2
FILE_SIZE: Final = 700_000
DEGRADED: Final = 14
"""The exit code of icnfs(1) for it."""

ANSWER_SECONDS: Final = 60
"""A write that finds no room waits, then says ENOSPC: never longer than this."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own: ext4 on a loop device, or where there is none a tmpfs."""
    place, image = tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(DISK_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    looped = subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=False, capture_output=True)
    if looped.returncode:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "none", str(place)], check=True)
    yield place
    while in_mount_table(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


def free_bytes(place: Path) -> int:
    st = os.statvfs(place)
    return st.f_bavail * st.f_frsize


def fill_up(ballast: Path) -> None:
    """Takes all the room there is, to the last block."""
    with open(ballast, "ab", buffering=0) as file:
        size = 1 << 20
        while size >= 512:
            try:
                file.write(bytes(size))
            except OSError as error:
                assert error.errno in NO_ROOM
                size //= 2


class Writer:
    """Writes file after file and knows which of them it was promised."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.promised: dict[str, bytes] = {}
        self._random = random.Random(seed)
        self._number = 0

    def write_one(self) -> bool:
        """One file, fsynced; False when the answer is that there is no room."""
        self._number += 1
        name = f"file-{self._number}"
        data = self._random.randbytes(self._random.randint(1, FILE_SIZE))
        try:
            fd = os.open(self.root / name, os.O_CREAT | os.O_WRONLY)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            assert error.errno in NO_ROOM, errno.errorcode.get(error.errno or 0)
            return False
        self.promised[name] = data
        return True

    def until_full(self, limit: int = 3000) -> None:
        for _ in range(limit):
            if not self.write_one():
                return
        raise AssertionError(f"{limit} files were taken where there is no room")

    def check(self, promised: dict[str, bytes] | None = None) -> None:
        """What was promised (or the part of it that is given) is all there."""
        for name, data in (self.promised if promised is None else promised).items():
            assert (self.root / name).read_bytes() == data, f"{name} was fsynced and is not what it was"


@pytest.mark.mount
@pytest.mark.timeout(300)
def test_local_disk_filling_up_loses_nothing_that_was_fsynced(tmp_path: Path, disk: Path) -> None:
    state = disk / "state"
    state.mkdir(mode=0o700)
    chance = random.Random(5)
    settings: Settings = {"cache": {"reserve": "16MiB", "clean": "64MiB"}, "volume": {"publish_seconds": 5}}
    with Volume(tmp_path / "machine", settings=settings, state=state) as volume:
        volume.init()
        volume.mount()
        writer = Writer(volume.mountpoint, seed=1)
        for round_number in range(ROUNDS):
            before = len(writer.promised)
            ballast = disk / "ballast"
            filler = threading.Thread(target=fill_up, args=(ballast,))
            for _ in range(chance.randint(1, 15)):
                assert writer.write_one()
            filler.start()
            writer.until_full()
            filler.join()
            writer.check()
            if round_number == 1:
                volume.kill_front()
                volume.mount()
                writer.check()
                ballast.unlink()
            ballast.unlink(missing_ok=True)
            wait_for(writer.write_one, ANSWER_SECONDS, "writes to work on once there is room")
            assert len(writer.promised) > before
        writer.check()
        volume.sync()
        volume.umount()
        volume.mount()
        writer.check()


@pytest.mark.mount
@pytest.mark.timeout(300)
def test_writers_wait_then_hear_enospc_while_providers_take_nothing(tmp_path: Path) -> None:
    settings: Settings = {
        "cache": {"dirty": "64MiB", "reserve": "16MiB"},
        "volume": {"publish_seconds": 1},
    }
    with Volume(tmp_path, settings=settings) as volume:
        volume.init()
        volume.mount()
        writer = Writer(volume.mountpoint, seed=2)
        assert writer.write_one()
        volume.sync()
        for place in volume.providers.values():
            place.rename(place.with_suffix(".away"))
        writer.until_full()
        writer.check()
        assert (volume.mountpoint / "file-1").exists()
        (volume.mountpoint / "file-1").unlink()
        del writer.promised["file-1"]
        volume.sync("--deadline", "3", code=DEGRADED)
        for place in volume.providers.values():
            place.with_suffix(".away").rename(place)
        volume.sync("--deadline", "100")
        published = dict(writer.promised)
        wait_for(writer.write_one, ANSWER_SECONDS, "writes to work on once providers take data again")
        writer.check()
        with volume.elsewhere(tmp_path / "elsewhere") as other:
            other.recover()
            other.mount()
            writer.root = other.mountpoint
            writer.check(published)
