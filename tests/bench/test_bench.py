"""The bench itself works: every figure comes out, above zero.  What they are is for `python -m tests.bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.harness import in_mount_table, is_mounted
from tests.bench.__main__ import Table, measure
from tests.bench.figures import STEPS, Place, Scale

TINY = Scale(big=8 << 20, small=80, seconds=0.1, random_writes=40)


def test_every_step_works_on_the_local_file_system(tmp_path: Path) -> None:
    place = Place(tmp_path, TINY)
    for _, step in STEPS.values():
        assert step(place) > 0


@pytest.mark.mount
def test_every_figure_comes_out(tmp_path: Path) -> None:
    table = Table()
    measure(tmp_path, TINY, table, lambda line: None)
    rows = table.rows()
    assert len(rows) == len(STEPS) + 5
    assert all(mounted > 0 and local > 0 and ratio > 0 for _, _, mounted, local, ratio in rows)


@pytest.mark.mount
def test_peer_script_mounts_and_unmounts(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    script = Path(__file__).with_name("peer.py")
    environment = os.environ | {"ICNFS_BENCH_DIR": str(tmp_path)}
    try:
        subprocess.run(
            [sys.executable, script, "mount", mountpoint], env=environment, cwd=tmp_path, check=True, timeout=60
        )
        assert is_mounted(mountpoint)
        (mountpoint / "file").write_bytes(b"x")
    finally:
        subprocess.run(
            [sys.executable, script, "umount", mountpoint], env=environment, cwd=tmp_path, check=True, timeout=60
        )
    assert not in_mount_table(mountpoint)
