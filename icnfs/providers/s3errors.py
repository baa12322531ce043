"""What an S3 answer that is no success means, as tables: by its code, else by its status.

No body is ever quoted: a provider could write anything into our messages.  What may pass (an overload, a cut
connection) is `ProviderAwayError`; whatever another try will not change is not.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Final

from icnfs.errors import (
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderFullError,
    ProviderLiesError,
    ProviderRefusedError,
)
from icnfs.providers.http import Answer

SKEW_SECONDS: Final = 300.0
"""A refusal from a provider whose clock differs by more from ours is blamed on the clocks; S3 allows 900."""

KEYS_REFUSED: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)

_AGAIN: Final = "it is tried again; where that lasts, ask the provider"
_BUSY: Final = "it is asked for more than it allows, and tried again; where that lasts, ask the provider for its limits"

_CODES: Final[dict[str, tuple[type[ProviderError], str]]] = {
    "NoSuchKey": (ObjectMissingError, ""),
    "NoSuchBucket": (ProviderRefusedError, "make the bucket, or correct the url"),
    "InvalidBucketName": (ProviderRefusedError, "correct the bucket's name in the url"),
    "AccessDenied": (ProviderRefusedError, "allow these keys to get, put, delete and list there"),
    "AllAccessDisabled": (ProviderRefusedError, "ask the provider why the bucket is closed"),
    "AccountProblem": (ProviderRefusedError, "ask the provider what is wrong with the account"),
    "InvalidAccessKeyId": (ProviderRefusedError, "the access key is not known there; correct or renew it"),
    "SignatureDoesNotMatch": (ProviderRefusedError, "correct the secret key, or the region in the url"),
    "ExpiredToken": (ProviderRefusedError, "the session token has expired; renew it"),
    "InvalidToken": (ProviderRefusedError, "renew the session token"),
    "TokenRefreshRequired": (ProviderRefusedError, "renew the session token"),
    "RequestTimeTooSkewed": (ProviderRefusedError, "set this machine's clock"),
    "AuthorizationHeaderMalformed": (ProviderRefusedError, "correct the region in the url"),
    "PermanentRedirect": (ProviderRefusedError, "the bucket is elsewhere; correct endpoint and region in the url"),
    "TemporaryRedirect": (ProviderRefusedError, "the bucket is elsewhere; correct endpoint and region in the url"),
    "IllegalLocationConstraintException": (ProviderRefusedError, "correct the region in the url"),
    "MethodNotAllowed": (ProviderRefusedError, "the bucket is read-only or locked; use another"),
    "ObjectLocked": (ProviderRefusedError, "the bucket is locked; use one without object lock"),
    "InvalidObjectState": (ProviderRefusedError, "the object is archived; take archiving rules off the bucket"),
    "NotImplemented": (ProviderRefusedError, "the endpoint does not speak enough of S3"),
    "QuotaExceeded": (ProviderFullError, "raise the quota or free space there"),
    "XMinioStorageFull": (ProviderFullError, "free space there"),
    "XMinioAdminBucketQuotaExceeded": (ProviderFullError, "raise the bucket's quota or free space there"),
    "InsufficientStorage": (ProviderFullError, "free space there"),
    "InsufficientCapacity": (ProviderFullError, "free space there"),
    "StorageFull": (ProviderFullError, "free space there"),
    "SlowDown": (ProviderAwayError, _BUSY),
    "RequestTimeout": (ProviderAwayError, _AGAIN),
    "OperationAborted": (ProviderAwayError, _AGAIN),
    "ConditionalRequestConflict": (ProviderAwayError, _AGAIN),
}

_STATUSES: Final[dict[int, tuple[type[ProviderError], str]]] = {
    401: (ProviderRefusedError, "correct the keys"),
    403: (ProviderRefusedError, "allow these keys to get, put, delete and list there"),
    404: (ProviderLiesError, "it does not speak S3 there; correct the endpoint"),
    405: (ProviderRefusedError, "the bucket is read-only, or the endpoint does not speak S3"),
    408: (ProviderAwayError, _AGAIN),
    409: (ProviderAwayError, _AGAIN),
    411: (ProviderRefusedError, "the endpoint does not speak S3 as others do"),
    413: (ProviderFullError, "the provider takes no objects of that size"),
    425: (ProviderAwayError, _AGAIN),
    429: (ProviderAwayError, _BUSY),
    507: (ProviderFullError, "free space there"),
}

ENDPOINT: Final = "correct the endpoint, see what lies in between, or leave the provider"
"""What to do about one that answers, and not as S3 does."""

_CODE: Final = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,60})\s*</Code>")
_REGION: Final = re.compile(rb"<Region>\s*([a-z0-9-]{1,40})\s*</Region>")
_PLAIN: Final = re.compile(r"[a-z0-9-]{1,40}")

_UNKNOWN: Final = (
    "its certificate comes from an authority that is not known here; name that with ca= in the url, or correct ca="
)

_CERTIFICATES: Final[dict[int, str]] = {
    7: _UNKNOWN,
    9: "its certificate is not valid yet; check this machine's clock",
    10: "its certificate has expired; ask the provider to renew it, and check this machine's clock",
    18: "its certificate is signed by itself; name it with ca= in the url if it is the right one",
    19: _UNKNOWN,
    20: _UNKNOWN,
    21: _UNKNOWN,
    62: "its certificate is another host's; correct the endpoint",
    64: "its certificate is another host's; correct the endpoint",
}
"""By OpenSSL's X509_V_ERR_ numbers."""


_BETWEEN: Final = "check the endpoint, and what lies in between"
_NETWORK: Final = "check the endpoint (http or https, host and port) and the network"


def code_of(answer: Answer) -> str:
    """The code that the answer's body names, or ""."""
    found = _CODE.search(answer.body)
    return found[1].decode() if found else ""


def is_html(headers: Mapping[str, str]) -> bool:
    """Nothing of ours, and nothing that S3 says, is HTML: a proxy's page, or a wrong endpoint."""
    return headers.get("content-type", "").strip().lower().startswith(("text/html", "application/xhtml"))


def answer_error(provider: str, doing: str, answer: Answer) -> ProviderError:
    """What `answer`, which is none that `doing` hoped for, means."""
    code, status = code_of(answer), answer.status
    said = f"{doing}: {status} {code}".rstrip()
    if is_html(answer.headers) and not code and (status < 300 or status == 404):
        return html_error(provider, doing)
    if 300 <= status < 400:
        remedy = _CODES["PermanentRedirect"][1]
        return ProviderRefusedError(provider, f"{said}: it points elsewhere{_region(answer)}; {remedy}")
    if status in (401, 403) and (skew := _skew(answer)):
        return ProviderRefusedError(provider, f"{said}: {skew}")
    kind, remedy = _CODES.get(code) or _STATUSES.get(status) or _otherwise(status)
    if code == "AuthorizationHeaderMalformed":
        remedy += _region(answer)
    return kind(provider, f"{said}; {remedy}" if remedy else said)


def html_error(provider: str, doing: str) -> ProviderError:
    return ProviderLiesError(
        provider, f"{doing}: it answered a web page instead of S3; correct the endpoint, or see what lies in between"
    )


def lacking(provider: str, doing: str, what: str) -> ProviderError:
    """A success without `what` it cannot be one."""
    return ProviderLiesError(provider, f"{doing}: its answer lacks {what}, which S3 gives; {ENDPOINT}")


def failure(provider: str, doing: str, error: OSError | http.client.HTTPException) -> ProviderError:
    """What it means that there was no answer, or half of one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        unsure = "its certificate cannot be trusted; check ca= in the url, or ask the provider about it"
        remedy = _CERTIFICATES.get(error.verify_code, unsure)
        return ProviderRefusedError(provider, f"{doing}: {remedy}")
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "no TLS").replace("_", " ").lower()
        return ProviderAwayError(provider, f"{doing}: {reason}; is it https that the endpoint speaks?")
    if isinstance(error, http.client.IncompleteRead):
        return ProviderAwayError(provider, f"{doing}: it broke off in the middle of its answer; {_BETWEEN}")
    if isinstance(error, ConnectionResetError | BrokenPipeError):  # RemoteDisconnected among them
        return ProviderAwayError(provider, f"{doing}: it closed the connection without an answer; {_BETWEEN}")
    if isinstance(error, http.client.HTTPException):
        return ProviderLiesError(provider, f"{doing}: what it answered is not HTTP; correct the endpoint")
    if isinstance(error, socket.gaierror):
        return ProviderAwayError(provider, f"{doing}: its name has no address; check the endpoint and the network")
    if isinstance(error, TimeoutError):
        return ProviderAwayError(provider, f"{doing}: it does not answer; {_NETWORK}")
    return ProviderAwayError(provider, f"{doing}: {error.strerror or type(error).__name__}; {_NETWORK}")


def _otherwise(status: int) -> tuple[type[ProviderError], str]:
    if status >= 500:
        return ProviderAwayError, _AGAIN
    if status >= 400:
        return ProviderRefusedError, "the provider's manual says what that code means"
    return ProviderLiesError, "it does not speak S3 there; correct the endpoint"


def _region(answer: Answer) -> str:
    """Where the answer says that the bucket is, as far as it does."""
    header = answer.headers.get("x-amz-bucket-region", "")
    if _PLAIN.fullmatch(header):
        return f" (to region {header})"
    found = _REGION.search(answer.body)
    return f" (to region {found[1].decode()})" if found else ""


def _skew(answer: Answer) -> str:
    """By how much the clocks differ, in words, where it is too much."""
    try:
        theirs = email.utils.parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return ""
    skew = time.time() - theirs
    if abs(skew) < SKEW_SECONDS:
        return ""
    return f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} its own; set the clock"
