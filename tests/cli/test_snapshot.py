"""`icnfs snapshot` and the mounts of snapshots, by real processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icnfs.control.mounts import mounted
from tests.cli.machine import World

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module", autouse=True)
def volume(world: World) -> None:
    world.run("init", "demo")


@pytest.fixture
def mount(world: World) -> Iterator[Path]:
    """The volume, mounted in the background."""
    world.run("mount", "demo", world.directory)
    yield world.directory
    for each in mounted():
        if each.point.is_relative_to(world.root):
            world.run("umount", "--lazy", each.point)


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


def test_without_a_mount_it_says_so(world: World) -> None:
    for arguments in (["create", "demo"], ["list", "demo"], ["delete", "demo", "x"]):
        assert "not mounted" in world.run("snapshot", *arguments, code=9).stderr
    world.run("snapshot", "list", "other", code=5)
