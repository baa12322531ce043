"""Where secrets come from: files, systemd credentials and prompts; never arguments, never the environment.

Order: what the command line names; else what the TOML names; else a prompt, where there is a terminal.  A file must be
a regular file that its owner alone can read.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from icnfs.cli.taking import FILE
from icnfs.config import values
from icnfs.config.secret_files import read_credential, read_keyfile, read_passphrase, read_secret_file
from icnfs.config.volume import VolumeConfig
from icnfs.crypto.hardening import forbid_core_dumps
from icnfs.crypto.keys import Secret
from icnfs.crypto.recovery import parse_recovery_key
from icnfs.errors import SecretError, UsageError
from icnfs.private import read_systemd_credential
from icnfs.volume.keyring import Secrets

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Given:
    """What the command line says of secrets: where they are, not what they are."""

    passphrase_file: Path | None = None
    keyfile: Path | None = None
    credential: str | None = None
    recovery_key_file: Path | None = None
    recovery_key: bool = False


def passphrase_options(command: F) -> F:
    """The options of a secret that a user chooses: for `init`."""
    for option in (
        click.option("--credential", metavar="NAME", help="Use the systemd credential NAME as key file."),
        click.option("--keyfile", type=FILE, metavar="FILE", help="Use FILE, 32 random bytes or more, as key."),
        click.option("--passphrase-file", type=FILE, metavar="FILE", help="Read the passphrase from FILE."),
    ):
        command = option(command)
    return command


def secret_options(command: F) -> F:
    """The options of a secret that opens a volume."""
    for option in (
        click.option("--recovery-key", is_flag=True, help="Ask for the recovery key instead of a passphrase."),
        click.option("--recovery-key-file", type=FILE, metavar="FILE", help="Read the recovery key from FILE."),
    ):
        command = option(command)
    return passphrase_options(command)


def given(options: dict[str, Any]) -> Given:
    """Take the options of `secret_options` out of a verb's arguments."""
    names = [name for name in Given.__dataclass_fields__ if name in options]
    return Given(**{name: options.pop(name) for name in names})


def opening(config: VolumeConfig, where: Given) -> Secrets:
    """The secrets to open a volume with; SecretError where there is none, or no way to ask for it."""
    forbid_core_dumps()
    named = _named(config, where)
    if where.recovery_key:
        named = replace(named, recovery=parse_recovery_key(_ask("Recovery key: ")))
    if not named:
        named = _configured(config)
    return named if named else Secrets(passphrase=_secret(_ask(f"Passphrase of volume {config.name}: ")))


def choosing(config: VolumeConfig, where: Given) -> Secrets:
    """The secrets that a new volume, or a new key, is to have; a prompted passphrase is asked for twice."""
    forbid_core_dumps()
    named = _named(config, where) or _configured(config)
    return named if named else Secrets(passphrase=ask_new(f"New passphrase for volume {config.name}: "))


def choosing_one(config: VolumeConfig, where: Given) -> Secrets:
    """The secret of one more key; what the TOML names is not meant by it."""
    named = _named(config, where)
    return named if named else Secrets(passphrase=ask_new("New passphrase: "))


def ask_new(prompt: str) -> Secret:
    """A passphrase, typed twice alike; SecretError otherwise."""
    first = _ask(prompt)
    if not first:
        raise SecretError("the passphrase is empty; choose a longer one")
    if _ask("Once more: ") != first:
        raise SecretError("the two passphrases differ; nothing was changed, try again")
    return _secret(first).composed()


def _named(config: VolumeConfig, where: Given) -> Secrets:
    """What the command line names."""
    passphrase = keyfile = recovery = None
    if where.passphrase_file is not None:
        passphrase = _passphrase_in(where.passphrase_file)
    if where.keyfile is not None:
        keyfile = Secret(read_secret_file(where.keyfile, "--keyfile"))
    if where.credential is not None:
        try:
            name = values.read_credential(where.credential)
        except values.BadValueError as error:
            raise UsageError(f"--credential: {error}") from None
        keyfile = Secret(read_systemd_credential(name, "--credential"))
    if where.recovery_key_file is not None:
        text = read_secret_file(where.recovery_key_file, "--recovery-key-file")
        recovery = parse_recovery_key(text.decode("utf-8", "replace"))
    return Secrets(passphrase=passphrase, keyfile=keyfile, recovery=recovery)


def _passphrase_in(path: Path) -> Secret:
    """The contents of `path` without the newline at their end, as for the TOML's passphrase_file."""
    text = read_secret_file(path, "--passphrase-file").removesuffix(b"\n").removesuffix(b"\r")
    if not text:
        raise SecretError(f"--passphrase-file: {path} is empty; write the passphrase into it")
    return Secret(text)


def _configured(config: VolumeConfig) -> Secrets:
    """What the TOML names under [keys]."""
    passphrase = read_passphrase(config)
    keyfile = read_keyfile(config) if config.keyfile is not None else read_credential(config)
    return Secrets(
        passphrase=None if passphrase is None else Secret(passphrase),
        keyfile=None if keyfile is None else Secret(keyfile),
    )


def _secret(text: str) -> Secret:
    return Secret(text.encode("utf-8", "surrogateescape"))


def _ask(prompt: str) -> str:
    """What is typed on the terminal, without an echo; SecretError without a terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise SecretError(
            "a secret is needed and there is no terminal to ask on; use --passphrase-file, --keyfile, --credential or "
            "--recovery-key-file, or name one under [keys] in the TOML"
        ) from None
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise SecretError("no secret was typed; try again") from None
    except UnicodeDecodeError:
        raise SecretError(
            "what was typed is no text in this terminal's encoding; try again, or use --passphrase-file"
        ) from None
