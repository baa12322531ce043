"""`icnfs clone` by real processes: what it makes is a copy, and nothing that it holds is moved."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from icnfs.limits import MIB
from tests.cli.machine import World

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("volume")]


def held(world: World) -> int:
    """Bytes at all providers."""
    return sum(path.stat().st_size for path in (world.root / "providers").rglob("*") if path.is_file())


def local(world: World) -> int:
    return sum(path.stat().st_blocks * 512 for path in (world.root / "state").rglob("*") if path.is_file())


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return subprocess.run(["sha256sum"], stdin=file, capture_output=True, check=True, text=True).stdout


def test_a_clone_moves_nothing_of_what_a_file_holds(world: World, mount: Path) -> None:
    source, size = mount / "source", 256 * MIB
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    world.run("sync")
    stored, here = held(world), local(world)
    world.run("clone", source, mount / "clone")
    assert digest(mount / "clone") == digest(source)
    world.run("sync")
    assert held(world) - stored < 4 * MIB
    assert local(world) - here < 16 * MIB
    with (mount / "clone").open("r+b") as changed:
        changed.write(b"changed")
    assert source.read_bytes()[:7] != b"changed"
    for path in (source, mount / "clone"):
        path.unlink()


def test_a_tree_is_what_cp_a_makes_of_it(world: World, mount: Path) -> None:
    tree = mount / "tree"
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "deep" / "file").write_bytes(os.urandom(300_000))
    os.link(tree / "deep" / "file", tree / "again")
    os.symlink("deep/file", tree / "link")
    os.mkfifo(tree / "fifo", 0o620)
    with (tree / "sparse").open("wb") as sparse:
        sparse.seek(5 * MIB)
        sparse.write(b"end")
    os.setxattr(tree / "sparse", "user.colour", b"blue")
    os.chmod(tree / "sparse", 0o6755)
    os.utime(tree / "sparse", ns=(10**18, 10**18 + 5))
    os.utime(tree / "deep", ns=(10**18, 10**18 + 7))
    subprocess.run(["cp", "-a", tree, world.root / "reference"], check=True)
    facts = world.facts("clone", tree, mount / "clone")
    assert facts == {"path": str(mount / "clone"), "files": 7}
    compared = ["diff", "-r", "--no-dereference", "-x", "fifo", world.root / "reference", mount / "clone"]
    assert subprocess.run(compared, capture_output=True, check=False).stdout == b""
    for path in [world.root / "reference", *(world.root / "reference").rglob("*")]:
        expected = path.lstat()
        there = (mount / "clone" / path.relative_to(world.root / "reference")).lstat()
        for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_nlink"):
            assert getattr(expected, name) == getattr(there, name), (path, name)
        assert expected.st_size == there.st_size or path.is_dir()
    clone = mount / "clone"
    assert (clone / "sparse").stat().st_blocks < 2048
    assert os.getxattr(clone / "sparse", "user.colour") == b"blue"
    assert (clone / "again").stat().st_ino == (clone / "deep" / "file").stat().st_ino
    world.run("clone", tree, clone)
    assert (clone / "tree" / "again").read_bytes() == (tree / "again").read_bytes(), "into a directory, as cp does"
    world.run("sync")
    world.run("umount", mount)
    world.run("mount", "demo", mount)
    assert (clone / "tree" / "deep" / "file").read_bytes() == (tree / "again").read_bytes()


def test_what_cannot_be_cloned_is_one_clear_line(world: World, mount: Path) -> None:
    (mount / "folder" / "inner").mkdir(parents=True)
    (mount / "here").write_text("text")
    (mount / "there").write_text("other")
    assert "exists already" in world.run("clone", mount / "here", mount / "there", code=2).stderr
    assert "exists already" in world.run("clone", mount / "here", mount, code=2).stderr
    assert "No such file" in world.run("clone", mount / "nothing", mount / "new", code=2).stderr
    assert "make it first" in world.run("clone", mount / "here", mount / "nowhere" / "new", code=2).stderr
    long = mount / ("x" * 300)
    assert "too long for a name" in world.run("clone", mount / "here", long, code=2).stderr
    assert "File name too long" in world.run("clone", long, mount / "new", code=2).stderr
    assert "make it first" in world.run("clone", mount / "here", long / "new", code=2).stderr
    assert "not lie on a mount" in world.run("clone", mount / "here", world.root / "new", code=9).stderr
    assert "itself" in world.run("clone", mount / "folder", mount / "folder" / "inner", code=2).stderr
    assert not (mount / "folder" / "inner" / "folder").exists()
    assert (mount / "there").read_text() == "other"


def test_a_name_that_the_kernel_knew_not_to_be_there_is_seen(world: World, mount: Path) -> None:
    (mount / "one").write_text("text")
    for _ in range(3):
        assert not (mount / "two").exists()
        assert "two" not in os.listdir(mount)
        world.run("clone", mount / "one", mount / "two")
        assert (mount / "two").read_text() == "text"
        assert "two" in os.listdir(mount)
        (mount / "two").unlink()
