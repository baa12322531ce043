"""One mount for all tests here, and a folder beside it on the machine's own file system."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.harness import mounted_volume


@pytest.fixture(scope="session")
def playground() -> Iterator[Path]:
    """Outside pytest's own folder, which other users may not enter."""
    path = Path(tempfile.mkdtemp(prefix="icnfs-posix-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def drive(playground: Path) -> Iterator[Path]:
    """The mount point of a volume that nothing else uses."""
    with mounted_volume(playground / "volume") as volume:
        yield volume.mountpoint
