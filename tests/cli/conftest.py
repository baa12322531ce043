"""The machine that the tests of one module share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from icnfs.control.mounts import mounted
from tests.cli.machine import World, furnish


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A configured machine; what a test leaves mounted is unmounted."""
    made = World(Path(tempfile.mkdtemp(prefix="icnfs-cli-")))
    furnish(made)
    yield made
    if made.directory.is_mount():
        made.run("umount", made.directory)
    shutil.rmtree(made.root)


@pytest.fixture(scope="module")
def volume(world: World) -> None:
    world.run("init", "demo")


@pytest.fixture
def mount(world: World, volume: None) -> Iterator[Path]:
    """The volume, mounted in the background."""
    world.run("mount", "demo", world.directory)
    yield world.directory
    for each in mounted():
        if each.point.is_relative_to(world.root):
            world.run("umount", "--lazy", each.point)
