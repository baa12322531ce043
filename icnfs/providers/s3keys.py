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
import re
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
            return _of_file(read_secret_file(Path(self._credentials), where), where)
        if self._credential:
            where = f"provider.{self._provider}.credential"
            return _of_file(read_systemd_credential(self._credential, where), where)
        where = f"provider.{self._provider}.profile"
        if not self._profile:
            raise SecretError(f'provider.{self._provider}: no keys; add credentials = "FILE" to its table')
        path = Path(os.environ.get(SHARED_FILE) or Path("~/.aws/credentials").expanduser())
        data = read_secret_file(path, where)
        sections = _sections(data, where)
        if self._profile not in sections:
            raise SecretError(f"{where}: {path} has no section [{self._profile}]; add it or correct the key")
        return _keys(sections[self._profile], _Lines(data, self._profile), where)


class _Lines:
    """Finds the line of a key in a text that was understood, from the header of `section` on."""

    def __init__(self, data: bytes, section: str = "") -> None:
        self._lines = data.decode().splitlines()
        header = re.compile(rf"\s*\[{re.escape(section)}\]")
        self._first = next((number for number, line in enumerate(self._lines) if header.match(line)), 0)

    def at(self, key: str) -> str:
        """`line NUMBER: `, or nothing for a key that is written in some other way."""
        written = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*[=:]""", re.IGNORECASE)
        lines = enumerate(self._lines[self._first :], self._first + 1)
        return next((f"line {number}: " for number, line in lines if written.match(line)), "")


def _of_file(data: bytes, where: str) -> AccessKeys:
    """The keys in a file that holds nothing else: what is not known there may be a key that is mistyped."""
    table, lines = _document(data, where), _Lines(data)
    for name in table.keys() - {name for names in _NAMES.values() for name in names}:
        raise SecretError(f"{where}: {lines.at(name)}no such key; there are {', '.join(_NAMES)}")
    return _keys(table, lines, where)


def _document(data: bytes, where: str) -> Mapping[str, Any]:
    """The one table of a credentials file: TOML, or else an ini file with one section or none."""
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        sections = _sections(data, where)
    else:
        inner = [value for value in table.values() if isinstance(value, dict)]
        if not inner:
            return table
        sections = {name: value if isinstance(value, dict) else {} for name, value in table.items()}
    if len(sections) != 1:
        raise SecretError(f"{where}: the file has more than one section; leave one, or name it: profile = NAME")
    return next(iter(sections.values()))


def _sections(data: bytes, where: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    headed = any(line.startswith(b"[") for line in data.splitlines())
    try:
        text = data.decode()
        parser.read_string(text if headed else f"[keys]\n{text}")
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        line = (error.lineno or 0) - (not headed)
        raise SecretError(f"{where}: line {line}: a section or a key that is there already; leave one") from None
    except (ValueError, configparser.Error):  # neither may show what it read
        raise SecretError(
            f"{where}: neither TOML nor an ini file; write access_key = ... and secret_key = ..."
        ) from None
    return {name: dict(parser[name]) for name in parser.sections()}


def _keys(table: Mapping[str, Any], lines: _Lines, where: str) -> AccessKeys:
    found: dict[str, str] = {}
    for key, names in _NAMES.items():
        for name in names:
            if name in table:
                found[key] = _text(table[name], f"{where}: {lines.at(name)}its {key}")
    for key in ("access_key", "secret_key"):
        if key not in found:
            raise SecretError(f"{where}: it has no {key}; add a line {key} = ...")
    return AccessKeys(found["access_key"], found["secret_key"], found.get("session_token"))


def _text(value: object, what: str) -> str:
    """One key, without the blanks around it; SecretError for what can be none."""
    if not isinstance(value, str) or not value.strip() or len(value) > _TEXT_MAX or not value.isascii():
        raise SecretError(f"{what} is no key; write it in one line of plain characters")
    text = value.strip()
    if not text.isprintable():
        raise SecretError(f"{what} holds control characters; remove them")
    if " " in text:
        raise SecretError(f"{what} holds blanks; remove them")
    if text[0] in "\"'" or text[-1] in "\"'":
        raise SecretError(f"{what} begins or ends with a quote; close the quotes, or leave them out")
    return text
