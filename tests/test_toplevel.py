"""What lies at the top of the repository, and what its shell scripts look like."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TOP_LEVEL = {"pyproject.toml", "README.md", "icnfs", "tests", "packaging", "man"}

SCRIPTS = [ROOT / ".ci/run", ROOT / "packaging/demo", ROOT / "packaging/setup", ROOT / "packaging/test"]


def versioned() -> list[str]:
    """Files that git keeps or would keep; without git (an unpacked archive), all there is."""
    listing = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        return [name for name in listing.stdout.split("\0") if name]
    return os.listdir(ROOT)


def test_top_level_holds_exactly_what_was_agreed() -> None:
    entries = {name.split("/")[0] for name in versioned()}
    assert {entry for entry in entries if not entry.startswith(".")} == TOP_LEVEL


def test_the_licence_text_is_where_the_metadata_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license-files"] == ["packaging/LICENSE"]
    assert "Apache License" in (ROOT / "packaging/LICENSE").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_an_installation_holds_every_manual_page() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    pages = {f"man/{page.name}": f"share/man/man{page.suffix[1]}/{page.name}" for page in (ROOT / "man").iterdir()}
    assert wheel["shared-data"] == pages
