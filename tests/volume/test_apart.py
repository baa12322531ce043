"""Two providers at one directory, or one within the other's, are found out by whatever name."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from icnfs import config as configs
from icnfs.errors import ConfigError
from icnfs.volume.apart import check_directories
from tests.volume.world import NAMES, TOML


def check(root: Path, *places: str) -> None:
    """The directories of six providers, the first of which are `places` in `root`."""
    toml = TOML.format(code="4-of-6")
    for name, place in zip(NAMES, places, strict=False):
        toml = toml.replace(f"/nowhere/{name}", str(root / place))
    trio.run(check_directories, configs.parse("demo", root / "demo.toml", toml.encode()))


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("a", "link", "the same place as"),
        ("link", "a", "the same place as"),
        ("new", "up/new", "the same place as"),
        ("a", "link/sub", "lies within, or around,"),
        ("link/new", "a", "lies within, or around,"),
        ("a/sub", "up/a", "lies within, or around,"),
    ],
)
def test_one_directory_by_two_names_is_refused_with_both(tmp_path: Path, one: str, other: str, what: str) -> None:
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "up").symlink_to(".")
    with pytest.raises(ConfigError, match=rf"demo.toml: provider.bee.url: {what} provider.ada.url; give each"):
        check(tmp_path, one, other)


def test_directories_apart_and_such_as_cannot_be_looked_at_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    check(tmp_path, "a", "b", "ab", "loop", "none/x", "none/y")
