"""An S3-compatible bucket as a provider: an object is a key below the prefix.

Promises beyond `base.py`: one call is one request, or two where an answer leaves open what it means, and none is tried
again; no redirect is followed, for where objects lie is the owner's choice; a listing that is not one, or that does
not move on, is an error and never an empty list; keys are read by this process alone, and no error, log or repr holds
them.  Buckets are made by their owner, never here.  It knows nothing of what the objects mean.

The client: botocore signs (`S3SigV4Auth`, 60 us a request), `http` carries.  Measured against the whole clients with
SeaweedFS 4.48 over TLS on loopback, which sets the rates (put 100 to 190 MB/s, get 510 to 730, but httpx 230), on 2
cores, 8 requests at once: the client's own processor seconds per GB of 4 MiB objects put and got, and us per range of
128 KiB.  And each was given to a server that misbehaves:

                      put   get  range  HTML for a listing  redirect to another host  an authority for one provider
    obstore 0.12     0.56  1.27    717  an empty list       reads follow it           beside the system's
    opendal 0.47     0.54  1.19    749  an empty list       reads follow it           for the whole process
    boto3 1.43       2.08  1.76   1818  an empty list       81 requests               yes
    minio 7.2        2.40  1.56   1083  an error            an error                  yes
    httpx on trio    2.08  4.25   2263  ours to parse       an error                  yes
    this             1.06  1.25   1090  an error            an error                  yes

A list of heads that is empty because a proxy asked for a password would end a fence, and a redirect lets whomever it
names answer reads; in obstore and opendal neither can be switched off (of theirs, puts are not redirected).  opendal's
plain calls keep the interpreter lock while they wait, its and obstore's others need an asyncio loop beside trio's (with
which they can be cancelled; boto3 and minio in threads cannot), and their errors are prose to be parsed; minio's maker
has given up the server that it was written for.  obstore is MIT, the others are Apache-2.0, httpx BSD.  botocore is
Apache-2.0, pure Python, and released several times a week.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import logging
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import trio

from icnfs.errors import ObjectMissingError, ProviderError, ProviderLiesError, ProviderRefusedError, SecretError
from icnfs.limits import KIB, LIST_PAGE, MIB, OBJECT_MAX
from icnfs.providers import s3listing
from icnfs.providers.base import (
    Capacity,
    Data,
    Names,
    Pieces,
    Provider,
    check_name,
    check_prefix,
    check_range,
    check_size,
    disordered,
    exact_length,
    is_name,
)
from icnfs.providers.http import Answer, AuthoritiesError, HttpClient, Origin, Question
from icnfs.providers.s3errors import (
    ENDPOINT,
    KEYS_REFUSED,
    answer_error,
    code_of,
    failure,
    html_error,
    is_html,
    lacking,
)
from icnfs.providers.s3keys import KeySource
from icnfs.providers.s3place import S3Place

log = logging.getLogger(__name__)

ERROR_MAX: Final = 64 * KIB
"""Bytes read of a body that is not the object: an error's has some hundreds."""

LISTING_MAX: Final = 4 * MIB
"""Bytes of one page of a listing: a thousand keys of the longest kind need 2 MiB."""

DIGEST_WANTED: Final = ("InvalidRequest", "MissingContentMD5")
"""Codes of those that want Content-MD5: Amazon's, which says it of more than that, and MinIO's."""

STRAY_PAGES: Final = 100
"""Pages read for one of ours: past it the bucket is full of objects that are not icnfs's."""

SHORT: Final = LIST_PAGE // 20
SHORT_PAGES: Final = 20
"""Pages of fewer keys than SHORT, with more to come, that are read for one of ours.  Servers that give no more than a
hundred at once are known, but not such whose every page costs a request and says next to nothing."""

_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_UNSIGNED: Final = types.SimpleNamespace(s3={"payload_signing_enabled": False})


class S3Provider(Provider):
    """Objects below one prefix of one bucket."""

    def __init__(self, name: str, place: S3Place, keys: KeySource) -> None:
        super().__init__(name)
        self.place = place
        self._keys = keys
        host = f"{place.bucket}.{place.host}" if place.virtual else place.host
        self._http = HttpClient(Origin(place.secure, host, place.port, place.ca))
        self._url = place.origin.replace("://", f"://{place.bucket}.") if place.virtual else place.origin
        self._root = "" if place.virtual else f"/{place.bucket}"
        self._prefix = f"{place.prefix}/" if place.prefix else ""
        self._warned = False
        self._conditional = True
        """False once the server said that it knows no conditional writes."""
        self._digested = False
        """True once the server said that it takes no object without Content-MD5, as where a bucket's object lock has a
        default retention.  Others are spared its time: 780 MB/s, as long as all else of a put."""

    async def put(self, name: str, data: Data) -> None:
        check_name(name)
        check_size(data)
        await self._put(f"storing {name}", name, data, {})

    async def put_new(self, name: str, data: Data) -> bool:
        """As in `base`; a server that knows no conditional writes says so once, or replaces in silence."""
        check_name(name)
        check_size(data)
        doing = f"storing {name}"
        if self._conditional:
            answer = await self._put(doing, name, data, {"If-None-Match": "*"}, also=(409, 412, 501))
            if answer.status != 501:
                return answer.status == 200
            self._conditional = False
            log.warning("provider %s: its server knows no conditional writes: who writes last wins there", self.name)
        await self._put(doing, name, data, {})
        return True

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        check_range(offset, length)
        doing = f"reading {name}"
        if length == 0:
            exact_length(self.name, name, await self.size(name), offset, length)
            return b""
        headers = {}
        if offset or length is not None:
            headers["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))

        def most(status: int, got: Mapping[str, str]) -> int:
            return self._body_of(name, offset, length, status, got) if status in (200, 206) else ERROR_MAX

        answer = await self._ask(doing, "GET", self._key(name), headers=headers, most=most)
        if answer.status == 416:
            exact_length(self.name, name, await self.size(name), offset, length)
            if length is None:  # from the very end
                return b""
            raise ProviderLiesError(self.name, f"{doing}: it has no such range, and says that it is longer; {ENDPOINT}")
        if answer.status not in (200, 206):
            raise self._error(doing, answer)
        return self._exact(doing, name, offset, length, answer)

    async def size(self, name: str) -> int:
        check_name(name)
        doing = f"looking up {name}"
        answer = await self._ask(doing, "HEAD", self._key(name))
        if answer.status != 200:  # without a body it does not say what is missing: the object, the bucket, or all of S3
            answer = await self._ask(doing, "GET", self._key(name), headers={"Range": "bytes=0-0"})
            if answer.status not in (200, 206, 416):
                raise self._error(doing, answer)
            raise ProviderLiesError(self.name, f"{doing}: it has the object and has it not; {ENDPOINT}")
        if is_html(answer.headers):
            raise html_error(self.name, doing)
        if not _length(answer.headers):
            raise lacking(self.name, doing, "the object's length")
        return int(_length(answer.headers))

    async def delete(self, name: str) -> bool:
        check_name(name)
        doing = f"deleting {name}"
        answer = await self._ask(doing, "DELETE", self._key(name))
        if answer.status == 404 and code_of(answer) == "NoSuchKey":
            return False
        if answer.status not in (200, 204) or is_html(answer.headers):
            raise self._error(doing, answer)
        version = answer.headers.get("x-amz-version-id", "")  # of the marker that hides it: none was asked for
        if answer.headers.get("x-amz-delete-marker") != "true" and version in ("", "null"):
            return False
        if not self._warned:
            self._warned = True
            log.warning(
                "provider %s: its bucket keeps what is deleted, and charges for it; turn versioning off, or let a"
                " lifecycle rule expire old versions",
                self.name,
            )
        return True

    async def list(self, prefix: str, after: str = "") -> Names:
        check_prefix(prefix)
        names: Names = []
        last = self._prefix + after if after else ""
        short = 0
        for _ in range(STRAY_PAGES):
            keys, more = await self._page(prefix, last)
            names += (name for key in keys if is_name(name := key.removeprefix(self._prefix)))
            if not more or len(names) >= LIST_PAGE:
                return names[:LIST_PAGE]
            last = keys[-1]
            short += len(keys) < SHORT
            if short >= SHORT_PAGES:
                what = f"its listing of {prefix!r} comes in pages of a few names without end"
                raise ProviderLiesError(self.name, f"{what}; {ENDPOINT}")
        raise ProviderLiesError(
            self.name, f"listing: thousands of objects there are not icnfs's; give it a prefix of its own ({prefix!r})"
        )

    async def probe(self) -> Capacity:
        """One key's listing.  S3 does not tell what room there is; the pool is the endpoint."""
        await self._page("", "", most=1)
        return Capacity(None, None, f"s3:{self.place.origin}")

    async def close(self) -> None:
        await self._http.close()

    def moved(self) -> bool:
        return self._http.moved()

    async def _put(
        self, doing: str, name: str, data: Data, headers: dict[str, str], also: tuple[int, ...] = ()
    ) -> Answer:
        # A cancelled call's thread may outlive it by a moment, and the caller use its buffer again: hence the copy.
        parts = data.parts if isinstance(data, Pieces) else (bytes(data),)
        headers |= {"Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}
        answer = await self._ask(doing, "PUT", self._key(name), headers=headers, body=parts)
        if answer.status == 400 and code_of(answer) in DIGEST_WANTED and not self._digested:
            self._digested = True
            answer = await self._ask(doing, "PUT", self._key(name), headers=headers, body=parts)
            self._digested = answer.status != 400
        if answer.status in also:
            return answer
        if answer.status != 200:
            raise self._error(doing, answer)
        if is_html(answer.headers):
            raise html_error(self.name, doing)
        if "etag" not in answer.headers:
            raise lacking(self.name, doing, "the ETag of what it stored")
        return answer

    async def _page(self, prefix: str, last: str, most: int = LIST_PAGE) -> tuple[Names, bool]:
        """The keys of one page, in order and all of them ours to see, and whether there are more."""
        asked = {"list-type": "2", "max-keys": str(most), "prefix": self._prefix + prefix}
        if last:
            asked["start-after"] = last
        query = "&".join(f"{key}={quote(value, safe='')}" for key, value in sorted(asked.items()))
        answer = await self._ask(
            "listing", "GET", f"{self._root}?{query}" if self._root else f"/?{query}", most=lambda *_: LISTING_MAX
        )
        if answer.status != 200:
            raise self._error("listing", answer)
        if is_html(answer.headers):
            raise html_error(self.name, "listing")
        keys, more = await trio.to_thread.run_sync(self._parsed, answer)
        beginning = self._prefix + prefix
        for key in keys:
            if not key.startswith(beginning) or key <= last:
                raise disordered(self.name, prefix)
            last = key
        if more and not keys:
            raise ProviderLiesError(self.name, f"its listing of {prefix!r} does not move on; {ENDPOINT}")
        return keys, more

    def _parsed(self, answer: Answer) -> tuple[Names, bool]:
        """In a thread: the keys of a page, and whether there are more."""
        try:
            if answer.whole:
                return s3listing.parse(answer.body)
        except ValueError:
            pass  # it quotes nothing of the body, and nor must we
        raise ProviderLiesError(self.name, "listing: what it answered is no listing of S3's; correct the endpoint")

    def _body_of(self, name: str, offset: int, length: int | None, status: int, got: Mapping[str, str]) -> int:
        """How many bytes the body of a get must have, by what its headers say; `ProviderLiesError` where they lie."""
        if is_html(got):
            raise html_error(self.name, f"reading {name}")
        if status == 200:
            if offset or length is not None:
                raise _other_range(self.name, name)
            text = _length(got)
            return exact_length(self.name, name, int(text), 0, None) if text else OBJECT_MAX
        found = _RANGE.fullmatch(got.get("content-range", "").strip())
        if found is None or int(found[1]) != offset:
            raise _other_range(self.name, name)
        first, last, size = map(int, found.groups())
        count = exact_length(self.name, name, size, offset, length)
        if last + 1 - first != count:
            raise _other_range(self.name, name)
        return count

    def _exact(self, doing: str, name: str, offset: int, length: int | None, answer: Answer) -> bytes:
        """The body, which is as long as the headers said."""
        count = self._body_of(name, offset, length, answer.status, answer.headers)
        known = answer.status == 206 or bool(_length(answer.headers))
        if not answer.whole or (known and len(answer.body) != count):
            raise ProviderLiesError(self.name, f"{doing}: its body has another length than it says; {ENDPOINT}")
        return answer.body

    def _key(self, name: str) -> str:
        return f"{self._root}/{self._prefix}{name}"

    async def _ask(
        self,
        doing: str,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: tuple[bytes | memoryview, ...] = (),
        most: Callable[[int, Mapping[str, str]], int] = lambda *_: ERROR_MAX,
    ) -> Answer:
        """The answer, whatever it is; one of the closed list where there is none."""
        where = f"{doing} in {self.place.bucket} at {self.place.host}"
        try:
            return await self._http.ask(lambda: self._signed(method, target, headers or {}, body), most)
        except SecretError as error:
            raise ProviderRefusedError(self.name, str(error)) from None
        except AuthoritiesError as error:
            raise ProviderRefusedError(self.name, f"{self.place.ca}: {error}; correct ca= in the url") from None
        except (OSError, http.client.HTTPException) as error:
            raise failure(self.name, where, error) from error

    def _signed(
        self, method: str, target: str, headers: Mapping[str, str], body: tuple[bytes | memoryview, ...]
    ) -> Question:
        """The request with its signature; the body's hash is part of it where no TLS protects the body."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        keys = self._keys.get()
        request: Any = AWSRequest(method=method, url=self._url + target, headers=dict(headers))
        if self._digested and method == "PUT":
            md5 = hashlib.md5(usedforsecurity=False)
            for part in body:
                md5.update(part)
            request.headers["Content-MD5"] = base64.b64encode(md5.digest()).decode()
        credentials = Credentials(keys.access_key, keys.secret_key, keys.session_token)
        signer: Any = S3SigV4Auth(credentials, "s3", self.place.region)
        if self.place.secure:
            request.context["client_config"] = _UNSIGNED
        else:
            hashed = hashlib.sha256()
            for part in body:
                hashed.update(part)
            signer.payload = lambda _: hashed.hexdigest()  # its own wants the parts joined: another share in memory
        signer.add_auth(request)
        return Question(method, target, dict(request.headers.items()), body)

    def _error(self, doing: str, answer: Answer) -> ProviderError:
        if code_of(answer) in KEYS_REFUSED or answer.status in (401, 403):
            self._keys.forget()  # they may have been renewed
        if answer.status == 404 and code_of(answer) == "NoSuchKey":
            return ObjectMissingError(self.name, f"{doing}: no such object")
        return answer_error(self.name, f"{doing} in {self.place.bucket} at {self.place.host}", answer)


def _other_range(provider: str, name: str) -> ProviderLiesError:
    return ProviderLiesError(provider, f"reading {name}: it answers another range than was asked for; {ENDPOINT}")


def _length(headers: Mapping[str, str]) -> str:
    """The digits of Content-Length, or ""."""
    text = headers.get("content-length", "")
    return text if text.isascii() and text.isdigit() and len(text) < 16 else ""
