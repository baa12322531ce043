"""Where secrets come from; terminals are real ones (pty), on a process of their own."""

from __future__ import annotations

import os
import pty
import select
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import pytest

from icnfs.cli import asking
from icnfs.cli.asking import Given
from icnfs.config.volume import VolumeConfig, parse
from icnfs.crypto.keys import Secret
from icnfs.crypto.recovery import format_recovery_key, new_recovery_key
from icnfs.errors import SecretError, UsageError
from tests.cli.machine import World, write_secret


@pytest.fixture
def config(world: World, tmp_path: Path) -> Callable[[str], VolumeConfig]:
    """The configuration with other lines under [keys], which count from `tmp_path`."""
    text = (world.root / "config" / "demo.toml").read_text()

    def with_keys(lines: str) -> VolumeConfig:
        changed = text.replace('keyfile = "demo.key"', lines)
        return parse("demo", tmp_path / "demo.toml", changed.encode())

    return with_keys


Configure = Callable[[str], VolumeConfig]


def test_a_passphrase_file_loses_one_newline(config: Configure, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "pw", b"two words\n")
    assert asking.opening(config(""), Given(passphrase_file=path)).passphrase == Secret(b"two words")


def test_a_key_file_is_taken_whole(config: Configure, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "key", b"k" * 32 + b"\n")
    assert asking.opening(config(""), Given(keyfile=path)).keyfile == Secret(b"k" * 32 + b"\n")


def test_a_recovery_key_file_may_be_what_init_printed(config: Configure, tmp_path: Path) -> None:
    key = new_recovery_key()
    path = write_secret(tmp_path / "rk", f" {format_recovery_key(key).lower()}\n\n".encode())
    assert asking.opening(config(""), Given(recovery_key_file=path)).recovery == key


def test_a_credential_is_read_where_systemd_put_it(
    config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cred").write_bytes(b"c" * 32)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert asking.opening(config(""), Given(credential="cred")).keyfile == Secret(b"c" * 32)
    assert asking.opening(config('credential = "cred"'), Given()).keyfile == Secret(b"c" * 32)
    with pytest.raises(SecretError, match=r"^--credential: .*No such file"):
        asking.opening(config(""), Given(credential="none"))
    with pytest.raises(UsageError, match="names no credential"):
        asking.opening(config(""), Given(credential="../cred"))


def test_the_command_line_goes_before_the_toml(config: Configure, tmp_path: Path) -> None:
    write_secret(tmp_path / "toml", b"from the TOML")
    line = write_secret(tmp_path / "line", b"from the command line")
    configured = config('passphrase_file = "toml"')
    assert asking.opening(configured, Given()).passphrase == Secret(b"from the TOML")
    assert asking.opening(configured, Given(passphrase_file=line)).passphrase == Secret(b"from the command line")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_open_to_others_is_no_secret(config: Configure, tmp_path: Path, mode: int) -> None:
    path = write_secret(tmp_path / "pw", b"secret")
    path.chmod(mode)
    for where in (Given(passphrase_file=path), Given(keyfile=path), Given(recovery_key_file=path)):
        with pytest.raises(SecretError, match="chmod 600"):
            asking.opening(config(""), where)


def test_a_missing_file_names_the_option(config: Configure, tmp_path: Path) -> None:
    with pytest.raises(SecretError, match=r"--passphrase-file: .*none"):
        asking.opening(config(""), Given(passphrase_file=tmp_path / "none"))


def test_an_empty_passphrase_file_is_refused(config: Configure, tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="is empty"):
        asking.opening(config(""), Given(passphrase_file=write_secret(tmp_path / "pw", b"\n")))


def test_a_typo_in_a_recovery_key_is_told_without_quoting_it(config: Configure, tmp_path: Path) -> None:
    text = format_recovery_key(new_recovery_key())
    typo = ("2" if text[0] != "2" else "3") + text[1:]
    with pytest.raises(SecretError, match="mistyped") as caught:
        asking.opening(config(""), Given(recovery_key_file=write_secret(tmp_path / "rk", typo.encode())))
    assert text[1:] not in str(caught.value)


def on_terminal(work: Callable[[], object], answers: list[str], encoding: str = "utf-8") -> str:
    """What a process that has a terminal shows there while it runs `work` and `answers` are typed at its prompts."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.write(1, f"result={work()!r}\n".encode())
        except SecretError as error:
            os.write(1, f"refused={error}\n".encode())
        finally:
            os._exit(0)
    shown = b""
    waiting = list(answers)
    while select.select([terminal], [], [], 60)[0]:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the terminal's other end is closed
            break
        shown += part
        if waiting and shown.endswith(b": "):
            os.write(terminal, waiting.pop(0).encode(encoding) + b"\n")
    os.close(terminal)
    os.waitpid(pid, 0)
    return shown.decode()


def test_a_prompt_takes_a_passphrase_without_an_echo(config: Configure) -> None:
    expected = Secret("gehéim".encode())
    shown = on_terminal(lambda: asking.opening(config(""), Given()).passphrase == expected, ["gehéim"])
    assert "Passphrase of volume demo: " in shown
    assert "result=True" in shown
    assert "gehéim" not in shown


def test_a_recovery_key_is_prompted_for_when_asked(config: Configure) -> None:
    key = new_recovery_key()
    typed = format_recovery_key(key).replace("-", " ")
    shown = on_terminal(lambda: asking.opening(config(""), Given(recovery_key=True)).recovery == key, [typed])
    assert "result=True" in shown
    assert typed not in shown


def test_a_new_passphrase_is_typed_twice_alike(config: Configure) -> None:
    def choose() -> object:
        return asking.choosing(config(""), Given()).passphrase == Secret(b"one")

    assert "result=True" in on_terminal(choose, ["one", "one"])
    assert "refused=the two passphrases differ" in on_terminal(choose, ["one", "two"])
    assert "refused=the passphrase is empty" in on_terminal(choose, [""])


def test_a_new_passphrase_is_kept_with_its_letters_composed(config: Configure) -> None:
    apart = normalize("NFD", "gehéim")

    def choose() -> object:
        return asking.choosing(config(""), Given()).passphrase == Secret("gehéim".encode())

    assert "result=True" in on_terminal(choose, [apart, apart])


def test_bytes_that_are_no_text_are_refused_in_a_line(config: Configure) -> None:
    shown = on_terminal(lambda: asking.opening(config(""), Given()), ["gehéim"], "latin-1")
    assert "refused=what was typed is no text" in shown


def test_without_a_terminal_the_ways_are_named(world: World) -> None:
    toml = world.root / "config" / "demo.toml"
    kept = toml.read_text()
    toml.write_text(kept.replace('keyfile = "demo.key"', ""))
    try:
        done = world.run("init", "demo", code=4)
    finally:
        toml.write_text(kept)
    assert "--passphrase-file" in done.stderr
    assert "[keys] in the TOML" in done.stderr
