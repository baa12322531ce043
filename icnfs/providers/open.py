"""From a url to a provider: the table of the kinds that there are.

A url is read without touching what it points at, so that a configuration can be checked with every disk unplugged.
The client of S3 (see `s3`) is a signer over the standard library and carries no other kind of storage at no further
cost; a kind that comes (`node://`) is a row of `_KINDS` and a way to read its url.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, unquote_to_bytes, urlencode, urlsplit

from icnfs.providers.base import Provider
from icnfs.providers.directory import DirectoryProvider
from icnfs.providers.faults import FaultPlan, Faults
from icnfs.providers.s3 import S3Provider
from icnfs.providers.s3keys import KeySource
from icnfs.providers.s3place import KEYS as S3_KEYS
from icnfs.providers.s3place import SECRETS_ELSEWHERE, S3Place
from icnfs.providers.s3place import parse as parse_s3


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """All that is needed to open a provider, and all that the transfer process is told of one: no secret, only where
    it is."""

    name: str
    url: str
    create: bool = False
    """Make the place where it is missing: `init` alone may."""
    credentials: str = ""
    profile: str = ""
    credential: str = ""
    """Where its keys are, as `s3keys` says: at most one is not empty."""
    upload: int = 0
    download: int = 0
    """Bytes per second, 0 for no bound."""
    eur_per_tb_read: float = 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """A url, understood."""

    scheme: str
    path: Path
    """Of a bucket: its name, and the prefix below."""
    faults: FaultPlan | None = None
    s3: S3Place | None = None

    @property
    def realm(self) -> str:
        """What `path` lies in: two places in different realms have nothing to do with each other."""
        return self.scheme if self.s3 is None else self.s3.origin

    @property
    def identity(self) -> str:
        """The same string for two urls of one place."""
        return f"{self.realm}:{self.path}"


def parse_url(url: str) -> Place:
    """What `url` points at; ValueError, with what is wrong and what to write instead, where it points at nothing."""
    if any(ord(character) < 0x20 for character in url):
        raise ValueError("holds a control character; remove it")
    if url.startswith("/"):
        return Place("file", _absolute(url.encode()))
    parts = _split(url)
    if "@" in parts.netloc:
        raise ValueError(f"holds a name or a password; {SECRETS_ELSEWHERE}")
    if parts.scheme not in _KINDS:
        raise ValueError(f"is of no known kind; write {FORMS} or an absolute path")
    if parts.scheme == "s3":
        return _parse_s3(parts)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"names a host; a directory of this machine is {parts.scheme}:///PATH, with three slashes")
    if parts.fragment:
        raise ValueError('has a "#"; write it as %23')
    return Place(parts.scheme, _absolute(unquote_to_bytes(parts.path)), _parse_faults(parts.query))


def without_secrets(url: str) -> str:
    """`url`, which may be none at all, as an error may quote it.

    Left out is what stands where a name and a password would, and the value of each query that is not known.  A
    password may hold what ends it in a proper url, such as a slash: all up to the last @ goes.
    """
    where, mark, queries = _USER.sub(f"//{_LEFT_OUT}@", url).partition("?")
    if "//" not in where and "@" in where:
        where = f"{_LEFT_OUT}@{where.rpartition('@')[2]}"
    return where + mark + "".join(_without_value(part) for part in re.split("([&;#?])", queries))


def _without_value(query: str) -> str:
    """`query`, KEY=VALUE or what stands between two, without what may be secret."""
    key, equals, value = query.partition("=")
    if query in ("", *"&;#?") or ((key in S3_KEYS or key in _FAULTS) and "@" not in unquote(value)):
        return query
    return f"{key}={_LEFT_OUT}" if equals else _LEFT_OUT


def open_provider(spec: ProviderSpec) -> Provider:
    """The provider of `spec`, without retries or deadlines (`wrappers.guard` adds them); ValueError as `parse_url`."""
    place = parse_url(spec.url)
    provider = _KINDS[place.scheme](spec, place)
    return provider if place.faults is None else Faults(provider, place.faults)


def _parse_s3(parts: SplitResult) -> Place:
    if parts.fragment:
        raise ValueError('has a "#"; remove it')
    query: dict[str, str] = {}
    for key, text in parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32):
        if key in query:
            raise ValueError(f"has the query {_shown(key)} twice; write it once")
        query[key] = text
    faults = {key: text for key, text in query.items() if key not in S3_KEYS}
    if unknown := faults.keys() - _FAULTS.keys():
        raise _unknown(min(unknown), S3_KEYS)
    place = parse_s3(parts, query)
    return Place("s3", place.path, _parse_faults(urlencode(faults)), place)


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
    values: dict[str, float] = {}
    for key, text in parse_qsl(query, keep_blank_values=True, max_num_fields=len(_FAULTS) + 1):
        if key not in _FAULTS:
            raise _unknown(key, sorted(_FAULTS))
        if key in values:
            raise ValueError(f"has the query {key!r} twice; write it once")
        try:
            values[key] = _FAULTS[key](text)
        except ValueError as error:
            raise ValueError(f"has the query {key} with no number; write {key}=1") from error
    return FaultPlan(**values)  # type: ignore[arg-type]  # seed is an int by the table above


def _unknown(key: str, known: Iterable[str]) -> ValueError:
    """What is to be said of a query that is none of `known`."""
    secret = any(word in key.lower() for word in ("key", "secret", "token", "password", "signature", "credential"))
    remedy = SECRETS_ELSEWHERE if secret else f"there are {', '.join(known)}"
    return ValueError(f"has the query {_shown(key)}, which is unknown; {remedy}")


def _shown(key: str) -> str:
    """A query's name; what cannot be one may be a secret."""
    return repr(key[:20]) if _QUERY.fullmatch(key) else f"{_LEFT_OUT!r}"


def _open_directory(spec: ProviderSpec, place: Place) -> Provider:
    return DirectoryProvider(spec.name, place.path, create=spec.create)


def _open_s3(spec: ProviderSpec, place: Place) -> Provider:
    assert place.s3 is not None
    return S3Provider(spec.name, place.s3, KeySource(spec.name, spec.credentials, spec.profile, spec.credential))


_LEFT_OUT: Final = "..."
_USER: Final = re.compile(r"//(?:(?!://).)*(?:@|%40)", re.DOTALL)
_QUERY: Final = re.compile(r"[A-Za-z_-]+")
_FAULTS: Final = {field.name: int if field.name == "seed" else float for field in dataclasses.fields(FaultPlan)}

FORMS: Final = "file:///PATH, s3://BUCKET/PREFIX?endpoint=https://HOST"

_KINDS: Final[dict[str, Callable[[ProviderSpec, Place], Provider]]] = {"file": _open_directory, "s3": _open_s3}
