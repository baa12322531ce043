"""A provider's access keys: where they come from, and how they are kept out of sight.

They never pass through the TOML, a url, argv, the environment or the socket between front and transfer: the process
that talks to the provider reads them itself, when it first needs them, and again after the provider refused them.

    credentials = "FILE"    a file of this user alone: access_key, secret_key and, if need be, session_token, as TOML or
                            as an ini file; Amazon's own names (aws_access_key_id, ...) do as well
    profile = "NAME"        a section of the shared credentials file, $AWS_SHARED_CREDENTIALS_FILE or ~/.aws/credentials
    credential = "NAME"     a credential of systemd's that holds what such a file would
"""

from __future__ import annotations

import configparser
import os
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from icnfs.errors import SecretError
from icnfs.private import read_secret_file, read_systemd_credential

SHARED_FILE: Final = "AWS_SHARED_CREDENTIALS_FILE"

_NAMES: Final = {
    "access_key": ("access_key", "aws_access_key_id", "access_key_id"),
    "secret_key": ("secret_key", "aws_secret_access_key", "secret_access_key"),
    "session_token": ("session_token", "aws_session_token"),
}

_TEXT_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class AccessKeys:
    """One pair, whose values never show in a repr."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False, default=None)


class KeySource:
    """Where one provider's keys are; at most one of the three places is named."""

    def __init__(self, provider: str, credentials: str = "", profile: str = "", credential: str = "") -> None:
        self._provider = provider
        self._credentials = credentials
        self._profile = profile
        self._credential = credential
        self._lock = threading.Lock()
        self._kept: AccessKeys | None = None

    def get(self) -> AccessKeys:
        """The keys; blocks on the disk the first time.  Raises `SecretError`, which names the place and the remedy."""
        with self._lock:
            if self._kept is None:
                self._kept = self._load()
            return self._kept

    def forget(self) -> None:
        """They were refused: perhaps there are new ones by now."""
        with self._lock:
            self._kept = None

    def _load(self) -> AccessKeys:
        if self._credentials:
            where = f"provider.{self._provider}.credentials"
            return _keys(_document(read_secret_file(Path(self._credentials), where), where), where)
        if self._credential:
            where = f"provider.{self._provider}.credential"
            return _keys(_document(read_systemd_credential(self._credential, where), where), where)
        where = f"provider.{self._provider}.profile"
        if not self._profile:
            raise SecretError(f'provider.{self._provider}: no keys; add credentials = "FILE" to its table')
        path = Path(os.environ.get(SHARED_FILE) or Path("~/.aws/credentials").expanduser())
        sections = _sections(read_secret_file(path, where), where)
        if self._profile not in sections:
            raise SecretError(f"{where}: {path} has no section [{self._profile}]; add it or correct the key")
        return _keys(sections[self._profile], where)


def _document(data: bytes, where: str) -> Mapping[str, Any]:
    """The one table of a credentials file: TOML, or else an ini file with one section or none."""
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        sections = _sections(data, where)
    else:
        inner = [value for value in table.values() if isinstance(value, dict)]
        return inner[0] if len(inner) == len(table) == 1 else table
    if len(sections) != 1:
        raise SecretError(f"{where}: the file has more than one section; leave one, or name it: profile = NAME")
    return next(iter(sections.values()))


def _sections(data: bytes, where: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, default_section="", strict=False)
    try:
        text = data.decode()
        headed = any(line.startswith("[") for line in text.splitlines())
        parser.read_string(text if headed else f"[keys]\n{text}")
    except (ValueError, configparser.Error):  # neither may show what it read
        raise SecretError(
            f"{where}: neither TOML nor an ini file; write access_key = ... and secret_key = ..."
        ) from None
    return {name: dict(parser[name]) for name in parser.sections()}


def _keys(table: Mapping[str, Any], where: str) -> AccessKeys:
    found: dict[str, str] = {}
    for key, names in _NAMES.items():
        for value in (table[name] for name in names if name in table):
            if not isinstance(value, str) or not value.strip() or len(value) > _TEXT_MAX or not value.isascii():
                raise SecretError(f"{where}: its {key} is no key; write it in one line of plain characters")
            if not value.strip().isprintable():
                raise SecretError(f"{where}: its {key} holds control characters; remove them")
            found[key] = value.strip()
    for key in ("access_key", "secret_key"):
        if key not in found:
            raise SecretError(f"{where}: it has no {key}; add a line {key} = ...")
    return AccessKeys(found["access_key"], found["secret_key"], found.get("session_token"))
