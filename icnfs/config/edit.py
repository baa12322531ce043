"""Changing the providers of a TOML by its own rules: every other byte of it stays as it is, comments and order too.

The pure half edits text.  A table `[provider.NAME]` is found by its header and changed line by line; the result is
then read back and must say exactly what was asked for, else nothing is changed.  That check is what makes so plain an
editor safe: what it does not understand (inline tables, a header inside a string) it refuses.  A library that keeps
the style of TOML (tomlkit 0.15) counts the comment above a table to the table before, and loses it with that.

The other half replaces the file: one editor at a time, checked as a whole, never half-written.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from icnfs.config.values import show
from icnfs.config.volume import VolumeConfig, decode, parse, read
from icnfs.errors import ConfigError

Value = str | float | int | bool

WAITING: Final = 60.0
"""Seconds that an editor waits for another: adopting a change takes a mount seconds."""

_LOOK_EVERY: Final = 0.05
_HEADER: Final = re.compile(r"[ \t]*\[")
_NAMED: Final = re.compile(
    r"[ \t]*\[[ \t]*(?:provider|\"provider\"|'provider')[ \t]*\.[ \t]*([\"']?)([a-z0-9-]+)\1[ \t]*\]"
)
_BLANK: Final = re.compile(r"[ \t]*\r?\n?\Z")
_COMMENT: Final = re.compile(r"[ \t]*#")


class EditError(ValueError):
    """A text that cannot be changed so; what to do by hand."""


# --- text ---------------------------------------------------------------------------------------------------------


def with_provider(text: str, name: str, values: Mapping[str, Value]) -> str:
    """`text` with a table `[provider.NAME]` of `values` at its end; EditError where there is one already."""
    wanted = _meaning(text)
    if name in _providers(wanted):
        raise EditError(f"it has a [provider.{name}] already; choose another name, or change that table by hand")
    wanted.setdefault("provider", {})[name] = dict(values)
    lines = _lines(text)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    if lines and _BLANK.match(lines[-1]) is None:
        lines.append(end)
    lines.append(f"[provider.{name}]{end}")
    lines += [f"{key} = {_written(value)}{end}" for key, value in values.items()]
    return _checked(lines, wanted)


def with_value(text: str, name: str, key: str, value: Value | None) -> str:
    """`text` with `key` of `[provider.NAME]` set to `value`, or taken out for None; a comment beside it stays."""
    wanted = _meaning(text)
    table = _table(wanted, name)
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
    lines = _lines(text)
    first, last = _section(lines, name)
    assigned = re.compile(rf"([ \t]*{key}[ \t]*=[ \t]*)([^#\r\n]*?)([ \t]*(?:#[^\r\n]*)?\r?\n?)\Z")
    for number in range(first + 1, last):
        found = assigned.match(lines[number])
        if found is not None:
            lines[number] = "" if value is None else found[1] + _written(value) + found[3]
            return _checked(lines, wanted)
    if value is not None:
        end = "\r\n" if lines[first].endswith("\r\n") else "\n"
        if not lines[last - 1].endswith("\n"):
            lines[last - 1] += end
        lines.insert(last, f"{key} = {_written(value)}{end}")
    return _checked(lines, wanted)


def without_provider(text: str, name: str) -> str:
    """`text` without `[provider.NAME]`: its lines, the comment right above it, and that right below its last key."""
    wanted = _meaning(text)
    _table(wanted, name)
    del wanted["provider"][name]
    if not wanted["provider"]:
        del wanted["provider"]
    lines = _lines(text)
    first, last = _section(lines, name)
    while first and _COMMENT.match(lines[first - 1]):
        first -= 1
    below = last
    while below < len(lines) and _COMMENT.match(lines[below]):
        below += 1
    if below == len(lines) or _BLANK.match(lines[below]):
        last = below  # else that comment stands right above what follows, and is of it
    if not first or _BLANK.match(lines[first - 1]):
        while last < len(lines) and _BLANK.match(lines[last]):
            last += 1
    return _checked(lines[:first] + lines[last:], wanted)


def _lines(text: str) -> list[str]:
    """Lines with their ends; TOML ends one with LF or CRLF alone."""
    return [line for line in re.split(r"(?<=\n)", text) if line]


def _section(lines: list[str], name: str) -> tuple[int, int]:
    """The lines of `[provider.NAME]`, from its header to behind its last key."""
    headers = (number for number, line in enumerate(lines) if (found := _NAMED.match(line)) and found[2] == name)
    first = next(headers, None)
    if first is None:
        raise EditError(f"provider {name} is not written as a table [provider.{name}]; change it by hand")
    last = first + 1
    while last < len(lines) and _HEADER.match(lines[last]) is None:
        last += 1
    while last > first + 1 and (_BLANK.match(lines[last - 1]) or _COMMENT.match(lines[last - 1])):
        last -= 1
    return first, last


def _written(value: Value) -> str:
    """`value` as TOML: what JSON writes of such values is TOML too."""
    if isinstance(value, str) and not value.isprintable():
        raise EditError(f"{show(value)} holds characters that do not print; leave them out")
    return json.dumps(value, ensure_ascii=False)


def _meaning(text: str) -> dict[str, Any]:
    """What `text` says, to be changed."""
    return copy.deepcopy(tomllib.loads(text))


def _providers(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found = document.get("provider", {})
    if not isinstance(found, dict):
        raise EditError("its `provider` is no table; write one [provider.NAME] for each provider")
    return found


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = _providers(document).get(name)
    if not isinstance(found, dict):
        raise EditError(f"it has no [provider.{name}]")
    return found


def _checked(lines: list[str], wanted: Mapping[str, Any]) -> str:
    """The lines as a text, which says what is wanted and no more."""
    text = "".join(lines)
    try:
        if tomllib.loads(text) == wanted:
            return text
    except tomllib.TOMLDecodeError:
        pass
    raise EditError("its providers are written in a way that only a person can change; change it by hand")


# --- the file -----------------------------------------------------------------------------------------------------


class Editor:
    """One TOML that nobody else edits meanwhile; made by `editing`."""

    def __init__(self, name: str, path: Path, locks: ExitStack) -> None:
        self._name = name
        self._path = path
        self._locks = locks
        self._before = read(name, path)
        decode(path, self._before)
        self.text = self._before.decode()
        """What the file says now: TOML, but perhaps of no volume, which an edit may mend."""

    def replace(self, text: str) -> VolumeConfig:
        """Write `text`, which becomes the file as a whole or not at all; ConfigError where no volume can have it."""
        data = text.encode()
        config = parse(self._name, self._path, data)
        if text != self.text:
            self._write(data)
        self.text = text
        return config

    def put_back(self) -> None:
        """Make the file what it was."""
        self._write(self._before)

    def _write(self, data: bytes) -> None:
        target = Path(os.path.realpath(self._path))
        try:
            self._put_in_place(target, data)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be changed: {error.strerror}; run this as its owner") from None

    def _put_in_place(self, target: Path, data: bytes) -> None:
        """A new file beside `target` takes its place, with the same owner, mode and attributes, locked already."""
        old = target.stat()
        fd, beside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        self._locks.callback(os.close, fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            if (old.st_uid, old.st_gid) != (os.fstat(fd).st_uid, os.fstat(fd).st_gid):
                os.fchown(fd, old.st_uid, old.st_gid)
            shutil.copystat(target, beside)
            os.utime(fd)
            os.fsync(fd)
            os.rename(beside, target)
        except BaseException:
            os.unlink(beside)
            raise
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def editing(name: str, path: Path) -> Iterator[Editor]:
    """Hold the TOML of volume `name` for an edit; others wait, up to WAITING seconds.

    Raises `NoVolumeError` and `ConfigError` as `config.load`, and ConfigError where another holds it too long.  An
    EditError of the block becomes a ConfigError with the path.
    """
    with ExitStack() as locks:
        _lock(name, path, locks)
        try:
            yield Editor(name, path, locks)
        except EditError as error:
            raise ConfigError(f"{path}: {error}") from None


def _lock(name: str, path: Path, locks: ExitStack) -> None:
    """Lock the file that `path` names once nobody else does; one that was replaced meanwhile is let go again."""
    until = time.monotonic() + WAITING
    while True:
        read(name, path)
        with ExitStack() as trying:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            trying.callback(os.close, fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                now, held = os.stat(path), os.fstat(fd)
                if stat.S_ISREG(held.st_mode) and (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
                    locks.push(trying.pop_all())
                    return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise ConfigError(f"{path}: another icnfs has been changing it for a minute; try again") from None
                time.sleep(_LOOK_EVERY)
