"""Real programs on a mount, a part of the trees that `python -m tests.acceptance.realtree` takes whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.contents import manifest
from tests.acceptance.harness import Volume
from tests.acceptance.realtree import CHECKS, check_loss, compare, make_sources


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sources(tmp_path_factory.mktemp("tree"), full=False)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    with Volume(tmp_path_factory.mktemp("volume")) as volume:
        volume.init()
        volume.mount()
        yield volume


def test_asked_for_its_usage_it_does_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.acceptance.realtree", "--help"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("usage: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mount
@pytest.mark.parametrize("program", CHECKS)
def test_program_finds_what_it_would_anywhere(volume: Volume, source: Path, program: str) -> None:
    CHECKS[program](source, volume.mountpoint)


@pytest.mark.mount
@pytest.mark.timeout(240)
def test_tree_survives_remount_loss_of_state_and_of_two_providers_and_is_refused_with_three_gone(
    volume: Volume, source: Path, tmp_path: Path
) -> None:
    if not (volume.mountpoint / "copy").exists():
        CHECKS["copy"](source, volume.mountpoint)
    expected = manifest(volume.mountpoint)
    volume.umount()
    volume.mount()
    compare(source, volume.mountpoint)
    check_loss(volume, expected, tmp_path)
    shutil.rmtree(tmp_path, ignore_errors=True)
