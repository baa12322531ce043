"""Every golden volume is read by this release: from its local state, and from its providers alone."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.acceptance.contents import differences, manifest
from tests.acceptance.harness import Volume

VOLUMES: Final = sorted(Path(__file__).parent.glob("*.tar.xz"))


def unpack(archive: Path, root: Path) -> Volume:
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "tar_filter"):  # from Python 3.11.4 on
            tar.extractall(root, filter="tar")
        else:
            tar.extractall(root)
    return Volume(root)


def check(volume: Volume) -> None:
    expected = json.loads((volume.root / "manifest.json").read_text())
    found = json.loads(json.dumps(manifest(volume.mountpoint), default=bytes.hex))
    assert not differences(found, expected)


def test_there_is_a_golden_volume() -> None:
    assert VOLUMES


@pytest.mark.mount
@pytest.mark.parametrize("archive", VOLUMES, ids=lambda path: path.name)
def test_a_golden_local_state_is_mounted(archive: Path, tmp_path: Path) -> None:
    with unpack(archive, tmp_path) as volume:
        volume.mount()
        check(volume)
        volume.umount()


@pytest.mark.mount
@pytest.mark.parametrize("archive", VOLUMES, ids=lambda path: path.name)
@pytest.mark.parametrize("secret", ["keyfile", "recovery-key"])
def test_golden_providers_are_recovered(archive: Path, tmp_path: Path, secret: str) -> None:
    with unpack(archive, tmp_path) as volume:
        volume.drop_state()
        if secret == "keyfile":
            volume.recover()
        else:
            volume.recover("--recovery-key-file", volume.root / "recovery-key")
        volume.mount()
        check(volume)
        volume.umount()
