"""The machine that the tests of one module share."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.machine import World, furnish


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A configured machine; whatever a test leaves mounted is detached."""
    made = World(Path(tempfile.mkdtemp(prefix="icnfs-cli-")))
    furnish(made)
    yield made
    subprocess.run(["fusermount3", "-uz", str(made.directory)], check=False, capture_output=True)
    shutil.rmtree(made.root)
