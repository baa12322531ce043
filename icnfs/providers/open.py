"""From a url to a provider: the table of the kinds that there are.

A url is read without touching what it points at, so that a configuration can be checked with every disk unplugged.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote_to_bytes, urlsplit

from icnfs.providers.base import Provider
from icnfs.providers.directory import DirectoryProvider
from icnfs.providers.faults import FaultPlan, Faults


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """All that is needed to open a provider, and all that the transfer process is told of one."""

    name: str
    url: str
    create: bool = False
    """Make the place where it is missing: `init` alone may."""


@dataclass(frozen=True, slots=True)
class Place:
    """A url, understood."""

    scheme: str
    path: Path
    faults: FaultPlan | None = None

    @property
    def identity(self) -> str:
        """The same string for two urls of one place."""
        return f"{self.scheme}:{self.path}"


def parse_url(url: str) -> Place:
    """What `url` points at; ValueError, with what is wrong and what to write instead, where it points at nothing."""
    if any(ord(character) < 0x20 for character in url):
        raise ValueError("holds a control character; remove it")
    if url.startswith("/"):
        return Place("file", _absolute(url.encode()))
    parts = _split(url)
    if parts.scheme not in _KINDS:
        known = ", ".join(f"{scheme}:///PATH" for scheme in _KINDS)
        raise ValueError(f"is of no known kind; write {known} or an absolute path")
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"names a host; a directory of this machine is {parts.scheme}:///PATH, with three slashes")
    if parts.fragment:
        raise ValueError('has a "#"; write it as %23')
    return Place(parts.scheme, _absolute(unquote_to_bytes(parts.path)), _parse_faults(parts.query))


def open_provider(spec: ProviderSpec) -> Provider:
    """The provider of `spec`, without retries or deadlines (`wrappers.guard` adds them); ValueError as `parse_url`."""
    place = parse_url(spec.url)
    provider = _KINDS[place.scheme](spec, place)
    return provider if place.faults is None else Faults(provider, place.faults)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ValueError("is no url; write file:///PATH") from error


def _absolute(path: bytes) -> Path:
    if not path.startswith(b"/"):
        raise ValueError("has no absolute path; write file:///PATH")
    if b"\0" in path:
        raise ValueError("holds a NUL; remove it")
    if b".." in path.split(b"/"):
        raise ValueError('holds ".."; write the path without')
    clean = Path(os.fsdecode(os.path.normpath(path).lstrip(b"/")))
    return Path("/") / clean


def _parse_faults(query: str) -> FaultPlan | None:
    if not query:
        return None
    kinds = {field.name: int if field.name == "seed" else float for field in dataclasses.fields(FaultPlan)}
    values: dict[str, float] = {}
    for key, text in parse_qsl(query, keep_blank_values=True, max_num_fields=len(kinds) + 1):
        if key not in kinds or key in values:
            raise ValueError(f"has the query {key[:20]!r} twice or unknown; there are {', '.join(sorted(kinds))}")
        try:
            values[key] = kinds[key](text)
        except ValueError as error:
            raise ValueError(f"has the query {key} with no number; write {key}=1") from error
    return FaultPlan(**values)  # type: ignore[arg-type]  # seed is an int by the table above


def _open_directory(spec: ProviderSpec, place: Place) -> Provider:
    return DirectoryProvider(spec.name, place.path, create=spec.create)


_KINDS: Final[dict[str, Callable[[ProviderSpec, Place], Provider]]] = {"file": _open_directory}
