"""Where files are, and who may enter the folder of the sockets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from icnfs.config import config_file, runtime_dir, socket_path, state_dir
from icnfs.config.paths import private_directory
from icnfs.errors import ConfigError, UsageError


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "STATE", "RUNTIME"):
        monkeypatch.delenv(f"ICNFS_{name}_DIR", raising=False)


def test_root_uses_the_systems_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config_file("demo") == Path("/etc/icnfs/demo.toml")
    assert state_dir("demo") == Path("/var/lib/icnfs/demo")
    assert runtime_dir() == Path("/run/icnfs")
    assert socket_path("demo") == Path("/run/icnfs/demo.sock")


def test_user_uses_the_xdg_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/u/.config")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/.local/state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert config_file("demo") == Path("/home/u/.config/icnfs/demo.toml")
    assert state_dir("demo") == Path("/home/u/.local/state/icnfs/demo")
    assert socket_path("demo") == Path("/run/user/1000/icnfs/demo.sock")


def test_user_without_a_runtime_folder_gets_one_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert runtime_dir().is_absolute()


def test_environment_overrides_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "STATE", "RUNTIME"):
        monkeypatch.setenv(f"ICNFS_{name}_DIR", f"/x/{name.lower()}")
    assert config_file("demo") == Path("/x/config/demo.toml")
    assert state_dir("demo") == Path("/x/state/demo")
    assert socket_path("demo") == Path("/x/runtime/demo.sock")


@pytest.mark.parametrize("value", ["x", "./x", "~/x"])
def test_relative_override_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ICNFS_STATE_DIR", value)
    with pytest.raises(ConfigError, match=r"ICNFS_STATE_DIR: .* is no absolute path"):
        state_dir("demo")


@pytest.mark.parametrize("name", ["..", "a/b", "", "demo\n", "-f"])
def test_name_cannot_leave_the_folders(name: str) -> None:
    for where in (config_file, state_dir, socket_path):
        with pytest.raises(UsageError):
            where(name)


def test_socket_path_that_no_socket_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICNFS_RUNTIME_DIR", f"/{'x' * 120}")
    with pytest.raises(ConfigError, match="set ICNFS_RUNTIME_DIR to a short one"):
        socket_path("demo")


def test_private_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = private_directory(tmp_path / "above" / "private")
    assert path.stat().st_mode & 0o777 == 0o700
    assert private_directory(path) == path


def test_private_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="others may enter it; run chmod 700"):
        private_directory(tmp_path / "open")


def test_private_directory_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(ConfigError, match="not a directory of this user's own"):
            private_directory(tmp_path / name)


def test_private_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private_directory(tmp_path / "theirs")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(ConfigError, match="not a directory of this user's own"):
        private_directory(tmp_path / "theirs")
