"""The bench itself works: every figure comes out, above zero.  What they are is for `python -m tests.bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.harness import in_mount_table, is_mounted
from tests.bench import compare, floor, levers, peers, stalls
from tests.bench.cold import forget, resident
from tests.bench.figures import REMOVAL, STEPS, Place, Scale
from tests.bench.run import COLD, measure
from tests.bench.table import Table

TINY = Scale(big=8 << 20, small=80, seconds=0.1, random_writes=40, transactions=3, tree=20)


def quiet(line: str) -> None:
    pass


def test_every_step_works_on_the_local_file_system(tmp_path: Path) -> None:
    place = Place(tmp_path, TINY)
    for figure in STEPS.values():
        assert figure.step(place) > 0
    assert REMOVAL[1].step(place) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_ratio_above_one_is_better_whatever_the_unit() -> None:
    table = Table()
    for column, rate, seconds in (("one", 10.0, 3.0), ("two", 5.0, 6.0)):
        table.add("rate", "1/s", column, rate)
        table.add("time", "s", column, seconds)
    table.add("alone", "1/s", "one", 1.0)
    assert table.ratio("rate", "one", "two") == table.ratio("time", "one", "two") == 2.0
    assert table.ratio("alone", "one", "two") is None
    assert table.markdown(["one", "two"], [("one", "two")]).splitlines()[-1] == "| alone | 1/s | 1.00 | - | - |"
    assert Table.from_json(table.to_json()) == table


@pytest.mark.mount
def test_every_figure_comes_out(tmp_path: Path) -> None:
    table = Table()
    measure(tmp_path, TINY, table, quiet, with_floor=True)
    assert len(table.units) == len(STEPS) + 1 + len(COLD) + 1
    assert all((table.ratio(figure, "icnfs", "local") or 0) > 0 for figure in table.units)
    assert all((table.ratio(figure, "icnfs", "floor") or 0) > 0 for figure in STEPS)


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have pages of another process reclaimed")
def test_what_a_process_has_mapped_is_cold_too(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 << 20))
    code = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); sum(m[::4096]);"
    command = [sys.executable, "-c", code + "print(flush=True); input()", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        assert resident(process.pid, tmp_path) == 4 << 20
        if not forget([process.pid], tmp_path):
            pytest.skip("this kernel takes no process_madvise")
        assert resident(process.pid, tmp_path) < 1 << 20
        process.stdin.close()


@pytest.mark.mount
def test_the_floor_frees_what_is_deleted(tmp_path: Path) -> None:
    with floor.mounted(tmp_path / "floor"):
        place = Place(tmp_path / "floor", TINY)
        for name in ("sequential write to fsync", "create 4 KiB files", "walk and stat", "read 4 KiB files", "rename"):
            assert STEPS[name].step(place) > 0
        assert REMOVAL[1].step(place) > 0
        assert os.listdir(place.root) == []
    assert not in_mount_table(tmp_path / "floor")


@pytest.mark.mount
def test_two_folders_are_compared(tmp_path: Path) -> None:
    here = str(Path(__file__).parents[2])
    table = compare.commits(here, here, tmp_path, TINY, 1, quiet)
    assert table.columns() == ["old", "new"]
    assert all((table.ratio(figure, "new", "old") or 0) > 0 for figure in (*STEPS, REMOVAL[0]))
    assert list(tmp_path.iterdir()) == []


def test_saved_figures_are_compared(tmp_path: Path) -> None:
    for name, rate in (("old", 10.0), ("new", 30.0)):
        table = Table()
        table.add("rate", "1/s", "icnfs", rate)
        table.add("rate", "1/s", "local", 1.0)
        table.add(f"only {name}", "1/s", "icnfs", rate)
        (tmp_path / name).write_text(table.to_json())
    found = compare.saved(tmp_path / "old", tmp_path / "new")
    assert list(found.units) == ["rate"]
    assert found.ratio("rate", "new", "old") == 3.0


@pytest.mark.mount
@pytest.mark.parametrize("peer", list(peers.PEERS))
def test_a_peer_is_mounted_measured_and_gone(tmp_path: Path, peer: str) -> None:
    if peers.available([peer], quiet) == []:
        pytest.skip(f"{peer} is not installed")
    table, said = Table(), list[str]()
    peers.measure(tmp_path, TINY, table, [peer], said.append)
    assert not [line for line in said if "failed" in line]
    for column in peers.columns([peer]):
        wanted = [name for name, figure in STEPS.items() if figure.writes or column == peer]
        assert [name for name in table.units if table.median(name, column)] == [*wanted, REMOVAL[0]]
    assert list(tmp_path.iterdir()) == []


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_VENV", "/nonexistent")
    said: list[str] = []
    assert peers.available(["local", "juicefs", "icnfs"], said.append) == ["local", "icnfs"]
    assert said == ["juicefs is not installed: left out"]
    with pytest.raises(SystemExit, match="nosuch"):
        peers.available(["nosuch"], said.append)


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0, reason="what is cold takes root")
def test_every_lever_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "FILES", 20)
    monkeypatch.setattr(levers, "BIG", 2 << 20)
    for lever in ("", *levers.LEVERS):
        rates = levers.measure(tmp_path, lever)
        assert min(rates.values()) > 0, lever
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mount
def test_stalls_are_measured_under_load(tmp_path: Path) -> None:
    found = stalls.measure(tmp_path, 1.0)
    assert all(found[what] for _, what in stalls.LOADS.values())
    assert isinstance(found["stalls"], dict)
    assert found["stalls"]["count"] > 0


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
