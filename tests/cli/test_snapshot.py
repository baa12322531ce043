"""`icnfs snapshot` and the mounts of snapshots, by real processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.machine import World

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("volume")]


def listed(world: World) -> list[dict[str, Any]]:
    facts = json.loads(world.run("snapshot", "list", "demo", "--json").stdout)
    assert isinstance(facts, list)
    return facts


def test_snapshots_are_made_listed_and_deleted(world: World, mount: Path) -> None:
    (mount / "file").write_bytes(b"x" * 300_000)
    made = world.facts("snapshot", "create", "demo", "--as", "before")
    assert (made["name"], made["kind"], made["until"], made["files"]) == ("before", "manual", 0, 2)
    assert abs(made["time_ns"] / 1e9 - time.time()) < 60  # type: ignore[operator]
    assert "dirty" in world.run("status", "demo").stdout
    assert world.facts("status", "demo")["pending"] is False
    named = world.run("snapshot", "create", "demo").stdout
    name = re.search(r"snapshot: (\S+)", named)
    assert name is not None and re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", name[1])
    assert [each["name"] for each in listed(world)] == ["before", name[1]]
    assert "before\t" in world.run("snapshot", "list", "demo").stdout
    assert "already" in world.run("snapshot", "create", "demo", "--as", "before", code=20).stderr
    world.run("snapshot", "delete", "demo", "before", name[1])
    assert listed(world) == []
    assert "no snapshot before" in world.run("snapshot", "delete", "demo", "before", code=20).stderr


def test_a_locked_one_is_refused_with_its_date(world: World, mount: Path) -> None:
    made = world.facts("snapshot", "create", "demo", "--as", "locked", "--until", "2090-01-02")
    assert made["until"] == 3786998400
    refused = world.run("snapshot", "delete", "demo", "locked", code=20).stderr
    assert "locked until 2090-01-02 00:00:00 UTC" in refused
    assert "2090-01-02" in world.run("snapshot", "list", "demo").stdout


def test_what_cannot_be_is_refused_in_one_line(world: World, mount: Path) -> None:
    assert "cannot name" in world.run("snapshot", "create", "demo", "--as", "a/b", code=20).stderr
    assert "not a date" in world.run("snapshot", "create", "demo", "--until", "soon", code=2).stderr
    assert "past" in world.run("snapshot", "create", "demo", "--until", "2001-01-01", code=2).stderr


def tree_of(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that a tree shows: kinds, modes, owners, times, attributes, links and bytes, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    inodes: dict[int, str] = {}
    for path in sorted([root, *root.rglob("*")]):
        name, facts = str(path.relative_to(root)), path.lstat()
        same = inodes.setdefault(facts.st_ino, name)
        keys = os.listxattr(path, follow_symlinks=False)
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
        held: Any = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        times = facts.st_mtime_ns, facts.st_ctime_ns
        found[name] = (facts.st_mode, facts.st_uid, facts.st_nlink, facts.st_size, times, attributes, held, same)
    return found


def furnish_tree(root: Path) -> None:
    (root / "dir" / "deep").mkdir(parents=True)
    (root / "dir" / "deep" / "large").write_bytes(os.urandom(3_000_000))
    (root / "dir" / "small").write_bytes(b"small")
    (root / "dir" / "small").chmod(0o640)
    os.utime(root / "dir" / "small", ns=(10**18 + 1, 10**18 + 2))
    os.setxattr(root / "dir" / "small", "user.colour", b"blue")
    os.link(root / "dir" / "small", root / "hard")
    os.symlink("dir/small", root / "soft")
    with open(root / "holes", "wb") as file:
        file.truncate(5_000_000)
        file.seek(1_000_000)
        file.write(b"in between")
    (root / "gone").write_bytes(os.urandom(200_000))


def change_everything(root: Path) -> None:
    (root / "gone").unlink()
    (root / "dir" / "deep" / "large").write_bytes(os.urandom(1_000_000))
    (root / "dir" / "deep").rename(root / "elsewhere")
    (root / "hard").unlink()
    (root / "dir" / "small").write_bytes(b"other")
    os.setxattr(root / "dir" / "small", "user.colour", b"red")
    (root / "dir").chmod(0o700)
    (root / "soft").unlink()
    os.symlink("nowhere", root / "soft")
    with open(root / "holes", "r+b") as file:
        file.truncate(10)
    (root / "new").write_bytes(b"new")


def test_a_mounted_snapshot_is_what_was_there(world: World, mount: Path) -> None:
    """Beside the live mount, two at once, after everything was changed and collected."""
    (mount / "x").mkdir()
    furnish_tree(mount / "x")
    world.run("snapshot", "create", "demo", "--as", "one")
    then = tree_of(mount)
    change_everything(mount / "x")
    world.run("snapshot", "create", "demo", "--as", "two")
    later = tree_of(mount)
    (mount / "x" / "new").write_bytes(b"newer")
    world.run("sync", "demo")
    one, two = world.root / "one", world.root / "two"
    one.mkdir()
    two.mkdir()
    world.run("mount", "demo@one", one)
    world.run("mount", "demo@two", two)
    assert tree_of(one) == then
    assert tree_of(two) == later
    with pytest.raises(OSError, match="Read-only"):
        (one / "x" / "more").touch()
    with pytest.raises(OSError, match="Read-only"):
        (one / "x" / "gone").unlink()
    status = world.facts("status", "demo@one")
    assert (status["name"], status["read_only"], status["pending"]) == ("demo@one", True, False)
    assert {each["name"] for each in json.loads(world.run("status", "--json").stdout)} == {
        "demo",
        "demo@one",
        "demo@two",
    }
    assert world.facts("info", one / "x" / "gone")["survives"] == 2
    assert world.facts("sync")["batch"], "the volume is meant where none is named"
    assert "already" in world.run("mount", "demo@one", two, code=7).stderr
    world.run("umount", one)
    world.run("umount", two)
    assert [path.name for path in (world.root / "state").iterdir() if path.is_dir()] == ["demo"]
    assert "no snapshot three" in world.run("mount", "demo@three", one, code=20).stderr
    world.run("mount", "demo@../x", one, code=2)
    assert tree_of(mount) != then


def test_without_a_mount_it_says_so(world: World) -> None:
    for arguments in (["create", "demo"], ["list", "demo"], ["delete", "demo", "x"]):
        assert "not mounted" in world.run("snapshot", *arguments, code=9).stderr
    world.run("snapshot", "list", "other", code=5)


def test_what_was_lost_comes_back_from_a_snapshot(world: World, mount: Path) -> None:
    (mount / "folder" / "deep").mkdir(parents=True)
    precious = mount / "folder" / "deep" / "precious"
    precious.write_bytes(data := os.urandom(3_000_000))
    os.utime(precious, ns=(10**18, 10**18))
    os.chmod(precious, 0o640)
    world.run("snapshot", "create", "demo", "--as", "kept")
    precious.write_bytes(b"encrypted by somebody")
    refused = world.run("snapshot", "restore", "demo", "kept", precious, code=2)
    assert "--to" in refused.stderr
    assert "--to" in world.run("snapshot", "restore", "demo", "kept", mount / "folder", code=2).stderr
    facts = world.facts("snapshot", "restore", "demo", "kept", precious, "--to", mount / "old")
    assert facts == {"path": str(mount / "old"), "files": 1}
    assert (mount / "old").read_bytes() == data
    assert ((mount / "old").stat().st_mtime_ns, (mount / "old").stat().st_mode) == (10**18, 0o100640)
    shutil.rmtree(mount / "folder")
    world.run("sync")
    assert world.facts("snapshot", "restore", "demo", "kept", "folder") == {"path": str(mount / "folder"), "files": 3}
    assert precious.read_bytes() == data
    world.run("snapshot", "restore", "demo", "kept", "folder/deep", "--to", mount / "folder" / "deep")
    assert (mount / "folder" / "deep" / "deep" / "precious").read_bytes() == data
    assert "no folder/none" in world.run("snapshot", "restore", "demo", "kept", "folder/none", code=20).stderr
    assert "no snapshot other" in world.run("snapshot", "restore", "demo", "other", "folder/x", code=20).stderr
    assert "not beneath" in world.run("snapshot", "restore", "demo", "kept", "/etc/passwd", code=2).stderr
    assert "give it a name" in world.run("snapshot", "restore", "demo", "kept", mount, "--to", mount, code=2).stderr
    world.run("snapshot", "restore", "demo", "kept", mount, "--to", mount / "everything")
    assert (mount / "everything" / "folder" / "deep" / "precious").read_bytes() == data
    assert not list((world.root / "state").glob("*+"))


def test_another_machine_restores_what_only_the_snapshot_has(world: World, mount: Path) -> None:
    (mount / "gone").write_bytes(data := os.urandom(3_000_000))
    world.run("snapshot", "create", "demo", "--as", "last-week")
    (mount / "gone").unlink()
    world.run("sync")
    world.run("umount", mount)
    (world.root / "state").rename(world.root / "stolen")
    world.run("recover", "demo")
    world.run("mount", "demo", mount)
    world.run("snapshot", "restore", "demo", "last-week", "gone")
    assert (mount / "gone").read_bytes() == data
    world.run("snapshot", "delete", "demo", "last-week")
    world.run("sync")
    assert (mount / "gone").read_bytes() == data


def test_a_diff_tells_what_was_changed_by_now(world: World, mount: Path) -> None:
    place = mount / "compared"
    place.mkdir()
    (place / "stays").write_bytes(b"same")
    (place / "old").write_bytes(b"1")
    (place / "grows").write_bytes(b"1")
    (place / "goes").write_bytes(b"1")
    world.run("snapshot", "create", "demo", "--as", "compared")
    (place / "old").rename(place / "new\n")
    (place / "grows").write_bytes(b"22")
    (place / "goes").unlink()
    (place / "comes").write_bytes(b"1")
    found = json.loads(world.run("snapshot", "diff", "demo", "compared", "--json").stdout)
    assert sorted((each["kind"], each["path"], each.get("before"), each["what"]) for each in found) == [
        ("added", "/compared/comes", None, []),
        ("changed", "/compared/grows", None, ["contents"]),
        ("removed", "/compared/goes", None, []),
        ("renamed", "/compared/new\n", "/compared/old", []),
    ]
    lines = world.run("snapshot", "diff", "demo", "compared").stdout.splitlines()
    assert "renamed\t/compared/old -> /compared/new\\x0a" in lines and len(lines) == 4
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "icnfs.cli", "snapshot", "diff", "demo", "compared"]
    gone = subprocess.run(command, env=world.environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (1, ""), "a reader that went away"
    assert json.loads(world.run("snapshot", "diff", "demo", "compared", "compared", "--json").stdout) == []
    assert "no snapshot nowhere" in world.run("snapshot", "diff", "demo", "nowhere", code=20).stderr
    assert [path.name for path in (world.root / "state").iterdir() if path.is_dir()] == ["demo"]
