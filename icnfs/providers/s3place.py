"""What an `s3:` url says: a bucket, a prefix in it, and whom to ask for it.

    s3://BUCKET/PREFIX?endpoint=https://HOST[:PORT]&region=REGION&style=path|virtual&ca=/FILE

Pure: nothing is opened or resolved.  Secrets have no place in a url, and none is taken from one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

SECRETS_ELSEWHERE: Final = "write the keys into a file of their own: credentials = FILE"

PREFIX_MAX: Final = 200
"""Characters of the prefix: with an object's name it stays far below the 1,024 bytes of a key."""

KEYS: Final = ("endpoint", "region", "style", "ca")

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class S3Place:
    """One prefix of one bucket at one endpoint."""

    bucket: str
    prefix: str
    """Without slashes around it; may be empty: the whole bucket."""
    secure: bool
    host: str
    port: int
    region: str
    virtual: bool
    """The bucket is part of the host's name, not of the path."""
    ca: Path | None
    """The only authorities whose certificates count (PEM); None: those of the system."""

    @property
    def origin(self) -> str:
        """The endpoint as a url, with its port: the same string for one endpoint however it was written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"

    @property
    def path(self) -> Path:
        return Path("/", self.bucket, self.prefix)


def parse(parts: SplitResult, query: Mapping[str, str]) -> S3Place:
    """The place of a split `s3:` url, of whose query only KEYS are looked at; ValueError as `open.parse_url`."""
    if "@" in parts.netloc:
        raise ValueError(f"holds a name or a password; {SECRETS_ELSEWHERE}")
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if _BUCKET.fullmatch(bucket) is None or ".." in bucket:
        raise ValueError(
            "names no bucket (3 to 63 of a-z, 0-9, . and -); write s3://BUCKET/PREFIX?endpoint=https://HOST"
        )
    if prefix and (_PREFIX.fullmatch(prefix) is None or ".." in prefix or len(prefix) > PREFIX_MAX):
        raise ValueError("has a prefix that is none; use a-z, A-Z, 0-9, ., - and _, parted by single slashes")
    region = query.get("region", "")
    if "region" in query and _REGION.fullmatch(region) is None:
        raise ValueError("names no region; write it as the provider does, as in region=eu-central-1")
    if "endpoint" not in query and not region:
        raise ValueError("names neither endpoint nor region; add endpoint=https://HOST, or region=REGION for Amazon's")
    secure, host, port = _endpoint(query.get("endpoint", f"https://s3.{region}.amazonaws.com"))
    virtual = _virtual(query.get("style", "path" if "endpoint" in query or "." in bucket else "virtual"), bucket, host)
    return S3Place(bucket, prefix, secure, host, port, region or "us-east-1", virtual, _ca(query.get("ca"), secure))


def _endpoint(text: str) -> tuple[bool, str, int]:
    form = "write endpoint=https://HOST or endpoint=https://HOST:PORT"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"has an endpoint that is no url; {form}") from error
    if "@" in parts.netloc:
        raise ValueError("holds a name or a password; write the keys into a file of their own: credentials = FILE")
    if parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"has an endpoint that is more, or less, than a host; {form}")
    if port == 0:
        raise ValueError(f"has an endpoint with port 0; {form}")
    address = _address(host)
    if address is None and _HOST.fullmatch(host) is None:
        raise ValueError(f"has an endpoint without a host; {form}")
    if parts.scheme == "http" and not _near(host, address):
        raise ValueError("would send all unprotected; write endpoint=https://HOST, for http is for private addresses")
    return parts.scheme == "https", host, port or (443 if parts.scheme == "https" else 80)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _near(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """True for this machine, and for addresses that no internet routes."""
    return host == "localhost" or (address is not None and (address.is_private or address.is_loopback))


def _virtual(style: str, bucket: str, host: str) -> bool:
    if style not in ("path", "virtual"):
        raise ValueError("has a style that is none; write style=path or style=virtual")
    if style == "virtual" and ("." in bucket or _address(host) is not None):
        raise ValueError("cannot have its bucket in the host's name; write style=path")
    return style == "virtual"


def _ca(text: str | None, secure: bool) -> Path | None:
    if text is None:
        return None
    if not text.startswith("/") or not text.isprintable():
        raise ValueError("has a ca that is no absolute path; write ca=/etc/ssl/NAME.pem")
    if not secure:
        raise ValueError("has a ca and no TLS to use it for; write endpoint=https://")
    return Path(text)
