"""Large directories and the counters of df: what has no like on the local file system to be compared with.

ICNFS_BIG_DIRECTORY sets the number of entries (default 12000); the million of a release takes some minutes, and
`-o faulthandler_timeout=0`, for pytest's look at a test of minutes may end it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import Volume, mounted_volume, wait_for
from tests.posix.checks_directories import Listing

ENTRIES = int(os.environ.get("ICNFS_BIG_DIRECTORY", "12000"))
GROWTH_MAX = 96 << 20
"""Bytes by which listing may grow the front, however many entries there are."""

MIB = 1 << 20


def resident(pid: int) -> int:
    """Bytes of memory of its own that a process holds now; what it maps of LMDB's files is the page cache's."""
    with open(f"/proc/{pid}/status") as file:
        kib = next(line.split()[1] for line in file if line.startswith("RssAnon:"))
    return int(kib) * 1024


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with mounted_volume(tmp_path) as volume:
        yield volume


@pytest.mark.mount
@pytest.mark.timeout(0 if "ICNFS_BIG_DIRECTORY" in os.environ else 120)
def test_large_directory_lists_every_entry_that_stays_once_in_bounded_memory(volume: Volume) -> None:
    folder = volume.mountpoint / "many"
    folder.mkdir()
    for number in range(ENTRIES):
        os.mknod(folder / f"{number}")
    volume.umount()
    volume.mount()
    assert volume.front is not None
    before = resident(volume.front.pid)
    counts: Counter[bytes] = Counter()
    listing = Listing(str(folder))
    while (name := listing.next()) is not None:
        counts[name] += 1
        number = int(name) if name.isdigit() else 0
        if number % 5 == 1:
            os.unlink(folder / os.fsdecode(name))
        elif number % 100 == 2:
            os.rename(folder / os.fsdecode(name), folder / f"renamed-{number}")
    listing.close()
    grown = resident(volume.front.pid) - before
    stayed = [str(n).encode() for n in range(ENTRIES) if n % 5 != 1 and n % 100 != 2]
    assert all(counts[name] == 1 for name in stayed)
    assert max(counts.values()) == 1
    assert len(os.listdir(folder)) == ENTRIES - len(range(1, ENTRIES, 5))
    assert grown < GROWTH_MAX, f"{grown / MIB:.0f} MiB for {ENTRIES} entries"


@pytest.mark.mount
def test_df_counts_what_is_there(drive: Path) -> None:
    def used() -> tuple[int, int]:
        st = os.statvfs(drive)
        return st.f_files - st.f_ffree, (st.f_blocks - st.f_bfree) * st.f_frsize

    files, size = used()
    folder = drive / "df"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}").write_bytes(os.urandom(MIB))
    os.sync()
    more_files, more = used()
    assert more_files - files == 11
    assert 10 * MIB <= more - size <= 12 * MIB
    with open(folder / "sparse", "wb") as sparse:
        sparse.truncate(1 << 40)
    assert used()[1] - more <= MIB, "a hole costs nothing"
    shutil.rmtree(folder)
    wait_for(lambda: used()[0] == files and used()[1] <= size + MIB, 30, "df to forget what was removed")


@pytest.mark.mount
def test_large_file_is_unlinked_in_the_time_of_a_small_one(drive: Path) -> None:
    def seconds(path: Path) -> float:
        began = time.monotonic()
        path.unlink()
        return time.monotonic() - began

    small, large = drive / "small", drive / "large"
    small.write_bytes(b"x")
    with open(large, "wb") as file:
        for number in range(200):
            file.seek(number * 500 * MIB)
            file.write(b"island")
    assert large.stat().st_size > 90 << 30
    assert seconds(large) < seconds(small) + 0.2
