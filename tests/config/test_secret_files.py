"""Secrets are read from files that nobody else can read, and refused in one line that holds none of them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from icnfs.config.secret_files import CREDENTIALS, SECRET_MAX, read_credential, read_keyfile, read_passphrase
from icnfs.config.volume import VolumeConfig, parse
from icnfs.errors import SecretError

PROVIDERS = "".join(
    f'[provider.{c}]\nurl="/srv/{c}"\nowner="{c}"\nparent_country="DE"\ncountry="DE"\n' for c in "abcdef"
)


@pytest.fixture
def config(tmp_path: Path) -> VolumeConfig:
    keys = '[keys]\npassphrase_file = "phrase"\nkeyfile = "key"\ncredential = "cred"\n'
    return parse("demo", tmp_path / "demo.toml", (keys + PROVIDERS).encode())


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    path.write_bytes(data)
    path.chmod(mode)


@pytest.mark.parametrize("data", [b"correct horse\n", b"correct horse", b"correct horse\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_passphrase_comes_without_its_newline(config: VolumeConfig, tmp_path: Path, data: bytes, mode: int) -> None:
    write(tmp_path / "phrase", data, mode)
    assert read_passphrase(config) == b"correct horse"


def test_keyfile_comes_as_it_is(config: VolumeConfig, tmp_path: Path) -> None:
    write(tmp_path / "key", b"\0\1\n\n")
    assert read_keyfile(config) == b"\0\1\n\n"


def test_credential_comes_from_systemds_folder(
    config: VolumeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cred", b"from systemd", 0o440)
    monkeypatch.setenv(CREDENTIALS, str(tmp_path))
    assert read_credential(config) == b"from systemd"
    monkeypatch.delenv(CREDENTIALS)
    with pytest.raises(SecretError, match=r"keys\.credential: .*add LoadCredential=cred to the unit"):
        read_credential(config)


def test_secret_that_is_not_named_is_none(config: VolumeConfig) -> None:
    bare = dataclasses.replace(config, passphrase_file=None, keyfile=None, credential=None)
    assert read_passphrase(bare) is read_keyfile(bare) is read_credential(bare) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_file_open_to_others_is_refused(config: VolumeConfig, tmp_path: Path, mode: int) -> None:
    write(tmp_path / "phrase", b"correct horse", mode)
    with pytest.raises(SecretError, match="is open to others; run chmod 600") as caught:
        read_passphrase(config)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/demo.toml: keys.passphrase_file: ") and "horse" not in message


def test_missing_empty_and_huge_files_are_refused(config: VolumeConfig, tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="No such file or directory; put the secret there"):
        read_keyfile(config)
    for data in (b"", b"x" * (SECRET_MAX + 1)):
        write(tmp_path / "key", data)
        with pytest.raises(SecretError, match="is empty or longer than 64 KiB"):
            read_keyfile(config)
    write(tmp_path / "phrase", b"\n")
    with pytest.raises(SecretError, match="is empty; write the passphrase into it"):
        read_passphrase(config)


def test_what_is_no_file_is_refused_and_holds_nobody(config: VolumeConfig, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "key", 0o600)
    with pytest.raises(SecretError, match="is not a file"):
        read_keyfile(config)
    (tmp_path / "phrase").mkdir()
    with pytest.raises(SecretError, match="is not a file"):
        read_passphrase(config)


def test_file_of_another_user_is_refused(config: VolumeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "key", b"x")
    if os.geteuid() == 0:
        os.chown(tmp_path / "key", 12345, 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(SecretError, match="belongs to another user; run chown 54321"):
        read_keyfile(config)
