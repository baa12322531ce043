"""What a bucket, or something that poses as one, can answer: each becomes the one right error, soon, asked once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from icnfs.errors import (
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderFullError,
    ProviderLiesError,
    ProviderRefusedError,
    SecretError,
)
from icnfs.limits import KIB, MIB, OBJECT_MAX
from icnfs.providers import breaker, http
from icnfs.providers.base import Data, Pieces, list_all
from icnfs.providers.guard import guard
from icnfs.providers.open import ProviderSpec, open_provider, parse_url
from icnfs.providers.s3 import S3Provider
from icnfs.providers.s3keys import KeySource
from tests import plain_s3
from tests.providers.hostile import HOUR_AGO, NOW, Answer, Hostile, Request, hostile, reply
from tests.seaweed import ACCESS_KEY, READER_KEY, SECRET_KEY, Seaweed, certify, request, write_keys

Calls = dict[str, Callable[[S3Provider], Awaitable[object]]]

CALLS: Calls = {
    "put": lambda p: p.put("a/b", b"data"),
    "get": lambda p: p.get("a/b", 0, 4),
    "whole": lambda p: p.get("a/b"),
    "size": lambda p: p.size("a/b"),
    "delete": lambda p: p.delete("a/b"),
    "list": lambda p: p.list("a/"),
    "probe": lambda p: p.probe(),
}

HTML = b"<html><body>Please log in</body></html>"
ETAG = 'ETag: "e"'


FOUR_KEPT = reply(206, b"", ETAG, "Content-Range: bytes 0-3/4", length=4).replace(b"Connection: close\r\n", b"")
"""Begins an answer of four bytes, after which the connection is kept."""


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[tuple[int, list[int]]]:
    """The port of a server that does `serve` with each connection, in a thread; and the ports that connected."""
    taken: list[int] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, (_, number) = listener.accept()
                taken.append(number)
                threading.Thread(target=serve, args=(peer,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listener.getsockname()[1], taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{SECRET_KEY}</Message></Error>'.encode()


def listing(*keys: str, more: bool = False, extra: str = "") -> bytes:
    contents = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
    space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
    return f'<?xml version="1.0"?>{extra}<ListBucketResult {space}>{truncated}{contents}</ListBucketResult>'.encode()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys")


def provider_of(url: str, keys: Path, more: str = "", bucket: str = "bucket") -> S3Provider:
    made = open_provider(ProviderSpec("alpha", f"s3://{bucket}/p?endpoint={url}{more}", credentials=str(keys)))
    assert isinstance(made, S3Provider)
    return made


def ask(provider: S3Provider, call: Callable[[S3Provider], Awaitable[object]], seconds: float = 5.0) -> object:
    async def main() -> object:
        with trio.fail_after(seconds):
            try:
                return await call(provider)
            finally:
                await provider.close()

    return trio.run(main)


def meets(answer: Answer, keys: Path, call: str, kind: type[ProviderError], match: str, most: int = 1) -> None:
    """`call` ends in `kind`, after `most` requests at most, in words that hold no secret."""
    with hostile(answer) as server:
        with pytest.raises(kind, match=match) as caught:
            ask(provider_of(server.url, keys), CALLS[call])
        assert type(caught.value) is kind
        assert str(caught.value).startswith("provider alpha: ")
        assert SECRET_KEY not in str(caught.value) and "\n" not in str(caught.value)
        assert "; " in str(caught.value) or " object" in str(caught.value), "what to do"
        assert len(server.requests) <= most


EVERY = list(CALLS)
ANSWERS: list[tuple[bytes, list[str], type[ProviderError], str]] = [
    (reply(500, error("InternalError")), EVERY, ProviderAwayError, "500"),
    (reply(502, HTML, "Content-Type: text/html"), EVERY, ProviderAwayError, "502"),
    (reply(503, error("SlowDown")), EVERY, ProviderAwayError, "503 SlowDown; .* ask the provider"),
    (reply(429, b""), EVERY, ProviderAwayError, "429; .* ask the provider"),
    (reply(409, error("OperationAborted")), EVERY, ProviderAwayError, "409 OperationAborted; .* ask the provider"),
    (reply(409, b""), EVERY, ProviderAwayError, "409; .* ask the provider"),
    (
        reply(200, b""),
        ["put"],
        ProviderLiesError,
        "its answer lacks the ETag of what it stored, .* correct the endpoint",
    ),
    (
        b"HTTP/1.1 200 OK\r\nETag: e\r\nConnection: close\r\n\r\n",
        ["size"],
        ProviderLiesError,
        "its answer lacks the object's length, .* correct the endpoint",
    ),
    (reply(403, error("AccessDenied"), NOW), EVERY, ProviderRefusedError, "allow these keys"),
    (reply(403, error("AccessDenied"), HOUR_AGO), EVERY, ProviderRefusedError, "36[0-9]{2} s ahead"),
    (reply(403, error("RequestTimeTooSkewed")), ["put", "list"], ProviderRefusedError, "clock"),
    (reply(403, error("InvalidAccessKeyId")), ["put", "list"], ProviderRefusedError, "not known there"),
    (reply(403, error("SignatureDoesNotMatch")), ["put", "get"], ProviderRefusedError, "correct the secret key"),
    (reply(400, error("ExpiredToken")), ["put", "get"], ProviderRefusedError, "token has expired"),
    (reply(403, error("QuotaExceeded")), ["put"], ProviderFullError, "raise the quota"),
    (reply(507, error("XMinioStorageFull")), ["put"], ProviderFullError, "free space"),
    (reply(405, error("MethodNotAllowed")), ["put", "delete"], ProviderRefusedError, "read-only or locked"),
    (reply(400, error("InvalidArgument")), ["put"], ProviderRefusedError, "400 InvalidArgument"),
    (reply(404, error("NoSuchBucket")), EVERY, ProviderRefusedError, "make the bucket"),
    (reply(404, error("NoSuchKey")), ["get", "whole", "size"], ObjectMissingError, "no such object"),
    (reply(404, HTML, "Content-Type: text/html"), EVERY, ProviderLiesError, "web page"),
    (reply(404, b"nothing here"), EVERY, ProviderLiesError, "does not speak S3"),
    (reply(200, HTML, "Content-Type: text/html; charset=utf-8"), EVERY, ProviderLiesError, "web page"),
    (reply(200, HTML, "Content-Type: text/html", ETAG), EVERY, ProviderLiesError, "web page"),
    (reply(200, HTML), ["put", "list", "probe", "get"], ProviderLiesError, "S3|range"),
    (reply(301, error("PermanentRedirect"), "x-amz-bucket-region: eu-9"), EVERY, ProviderRefusedError, "region eu-9"),
    (reply(307, b"", "Location: http://127.0.0.1:1/x"), EVERY, ProviderRefusedError, "points elsewhere"),
    (reply(302, b"", "Location: file:///etc/passwd"), EVERY, ProviderRefusedError, "points elsewhere"),
    (
        reply(400, error("AuthorizationHeaderMalformed")[:-8] + b"<Region>eu-7</Region></Error>"),
        ["put", "list"],
        ProviderRefusedError,
        "correct the region in the url .to region eu-7.",
    ),
    (b"", EVERY, ProviderAwayError, "closed the connection"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", EVERY, ProviderLiesError, "not HTTP"),
    (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", EVERY, ProviderLiesError, "not HTTP"),
    (reply(200, listing()[:-20], length=len(listing())), ["list", "probe"], ProviderAwayError, "broke off"),
    (reply(200, b"ha", ETAG, length=4), ["whole"], ProviderAwayError, "broke off"),
    (reply(206, b"ha", "Content-Range: bytes 0-3/9", length=4), ["get"], ProviderAwayError, "broke off"),
    (reply(206, b"ha", "Content-Range: bytes 0-3/9"), ["get"], ProviderLiesError, "another length"),
    (reply(206, b"halves", "Content-Range: bytes 0-3/9"), ["get"], ProviderLiesError, "another length"),
    (reply(206, b"half", "Content-Range: bytes 1-4/9"), ["get"], ProviderLiesError, "another range"),
    (reply(206, b"hal", "Content-Range: bytes 0-2/9"), ["get"], ProviderLiesError, "another range"),
    (reply(206, b"hal", "Content-Range: bytes 0-2/3"), ["get"], ProviderLiesError, "cut short: it ends at 3"),
    (reply(206, b"half"), ["get"], ProviderLiesError, "another range"),
    (reply(200, b"whole object", ETAG), ["get"], ProviderLiesError, "another range"),
    (reply(200, b"", ETAG, length=OBJECT_MAX + 1), ["whole"], ProviderLiesError, "longer than any object"),
    (reply(204, b""), ["whole", "put", "list"], ProviderLiesError, "does not speak S3"),
]


@pytest.mark.parametrize(
    ("answer", "call", "kind", "match"),
    [(answer, call, kind, match) for answer, calls, kind, match in ANSWERS for call in calls],
)
def test_bad_answer_is_the_right_error_and_asked_for_once(
    answer: bytes, call: str, kind: type[ProviderError], match: str, keys: Path
) -> None:
    meets(lambda _: answer, keys, call, kind, match, most=2 if call == "size" else 1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff\xfe garbage",
        HTML,
        error("InternalError"),
        b"<ListBucketResult/>",
        listing().replace(b"false", b"perhaps"),
        listing("p/a/b").replace(b"Key>", b"Name>"),
        listing(extra='<!DOCTYPE l [<!ENTITY a "b">]>'),
        listing("p/a/b").decode().replace("?>", ' encoding="UTF-16"?>', 1).encode("utf-16"),
        listing("p/a/b").replace(b"p/a/b", b"p/a/\xff"),
        listing("p/a/2", "p/a/1"),
        listing("p/a/1", "p/a/1"),
        listing("p/x/1"),
        listing("other/a/1"),
        listing("../../etc"),
        listing(more=True),
    ],
)
def test_listing_that_is_none_is_a_lie_and_never_empty(body: bytes, keys: Path) -> None:
    meets(lambda _: reply(200, body, "Content-Type: application/xml"), keys, "list", ProviderLiesError, "listing")


def test_listing_that_never_ends_ends(keys: Path) -> None:
    def answer(asked: Request) -> bytes:
        last = asked.target.partition("start-after=p%2Fa%2F")[2].partition("&")[0]
        return reply(200, listing(f"p/a/{int(last or 0) + 1:09}", more=True))

    meets(answer, keys, "list", ProviderLiesError, "pages of a few names without end; .* leave", most=20)

    def strange(asked: Request) -> bytes:
        last = int(asked.target.partition("start-after=p%2Fa%2FX")[2].partition("&")[0] or 0)
        return reply(200, listing(*(f"p/a/X{last + more:09}" for more in range(1, 101)), more=True))

    meets(strange, keys, "list", ProviderLiesError, "a prefix of its own", most=100)


@pytest.mark.parametrize("count", [50, 100])
def test_server_that_gives_few_names_at_once_is_listed_all_the_same(count: int, keys: Path) -> None:
    def answer(asked: Request) -> bytes:
        last = int(asked.target.partition("start-after=p%2Fa%2F")[2].partition("&")[0] or 0)
        return reply(200, listing(*(f"p/a/{last + more:09}" for more in range(1, count + 1)), more=last < 1900))

    with hostile(answer) as server:
        got = ask(provider_of(server.url, keys), lambda p: list_all(p, "a/"), 30.0)
    assert isinstance(got, list) and len(got) >= 1900


def in_chunks(body: bytes, size: int, *headers: str) -> bytes:
    """An answer in chunks of `size` bytes."""
    head = "\r\n".join(("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Connection: close", *headers)).encode()
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return head + b"\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 700, 100_000])
def test_answer_in_chunks_is_read_whole(size: int, keys: Path) -> None:
    whole = listing(*(f"p/a/{number:03}" for number in range(10))) if size == 1 else b"d" * 300_000
    call = CALLS["list" if size == 1 else "whole"]
    with hostile(lambda _: in_chunks(whole, size, ETAG)) as server:
        got = ask(provider_of(server.url, keys), call)
    assert got == ([f"a/{number:03}" for number in range(10)] if size == 1 else whole)


def test_answer_in_the_tiniest_chunks_is_given_up(keys: Path) -> None:
    """Each takes memory and time of its own: 64 MiB of them would take gigabytes."""
    answer = in_chunks(bytes(200_000), 2, ETAG)
    for call in ("whole", "list"):
        meets(lambda _: answer, keys, call, ProviderLiesError, "not HTTP")


def test_what_is_not_ours_is_not_listed(keys: Path) -> None:
    body = listing("p/a/.hidden", "p/a/B", "p/a/a b", "p/a/b", "p/a/c/")
    with hostile(lambda _: reply(200, body)) as server:
        assert ask(provider_of(server.url, keys), CALLS["list"]) == ["a/b"]


def test_nobody_answers(keys: Path) -> None:
    with hostile(lambda _: b"") as server:
        url = server.url
    with pytest.raises(ProviderAwayError, match="refused; check the endpoint"):
        ask(provider_of(url, keys), CALLS["probe"])


@pytest.mark.parametrize("call", EVERY)
def test_request_says_how_long_its_body_is_or_has_none(call: str, keys: Path) -> None:
    with hostile(lambda _: reply(500)) as server, pytest.raises(ProviderAwayError):
        ask(provider_of(server.url, keys), CALLS[call])
    assert "transfer-encoding" not in server.requests[0].headers
    assert (server.requests[0].headers.get("content-length"), server.requests[0].body) == (
        ("4", b"data") if call == "put" else (None, b"")
    )


@pytest.mark.parametrize("call", EVERY)
def test_cancelled_call_lets_go_of_a_server_that_hangs(call: str, keys: Path) -> None:
    async def main(server: Hostile) -> None:
        provider = provider_of(server.url, keys)
        begun = trio.current_time()
        with trio.move_on_after(0.2) as scope:
            await CALLS[call](provider)
        assert scope.cancelled_caught and trio.current_time() < begun + 1
        with trio.fail_after(2):  # its thread ends, and so does the connection
            while provider._http._limiter.borrowed_tokens:
                await trio.sleep(0.01)

    with hostile(lambda _: None) as server:
        trio.run(main, server)


def test_cancelled_read_stops_a_body_that_drips(keys: Path) -> None:
    head = reply(200, b"", ETAG, length=1 << 20)

    async def main(server: Hostile) -> None:
        provider = provider_of(server.url, keys)
        with trio.move_on_after(0.3) as scope:
            await provider.get("a/b")
        assert scope.cancelled_caught
        with trio.fail_after(2):
            while provider._http._limiter.borrowed_tokens:
                await trio.sleep(0.01)

    with hostile(lambda _: head, drip=True) as server:
        trio.run(main, server)


def test_a_read_that_is_cancelled_while_its_answer_comes_leaves_its_connection(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "ENDING_SECONDS", 60.0)
    begun, go_on = threading.Event(), threading.Event()

    def answer(peer: socket.socket) -> None:
        with peer:
            while peer.recv(65536):
                peer.sendall(FOUR_KEPT + b"da")
                begun.set()
                go_on.wait(30)
                peer.sendall(b"ta")

    async def main(provider: S3Provider) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(CALLS["get"], provider)
            await trio.to_thread.run_sync(begun.wait, 30)
            while not any(call.ending for call in provider._http._calls):
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert provider._http._limiter.borrowed_tokens == 1
        go_on.set()
        with trio.fail_after(10):
            while provider._http._limiter.borrowed_tokens:
                await trio.sleep(0.01)
        assert await CALLS["get"](provider) == b"data"
        await provider.close()

    with listening(answer) as (port, peers):
        trio.run(main, provider_of(f"http://127.0.0.1:{port}", keys))
    assert len(peers) == 1


def test_a_read_whose_answer_breaks_off_on_a_kept_connection_is_not_sent_again(keys: Path) -> None:
    asked = 0

    def answer(peer: socket.socket) -> None:
        nonlocal asked
        with peer:
            while peer.recv(65536):
                asked += 1
                if asked == 2:
                    peer.sendall(FOUR_KEPT + b"da")
                    time.sleep(0.1)  # a reset at once would take what was sent with it
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                peer.sendall(FOUR_KEPT + b"data")

    async def main(provider: S3Provider) -> None:
        assert await CALLS["get"](provider) == b"data"
        with pytest.raises(ProviderAwayError):
            await CALLS["get"](provider)
        await provider.close()

    with listening(answer) as (port, peers):
        trio.run(main, provider_of(f"http://127.0.0.1:{port}", keys))
    assert (asked, len(peers)) == (2, 1)


def test_server_that_stalls_ends_by_itself(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALL_SECONDS", 0.2)
    meets(lambda _: None, keys, "get", ProviderAwayError, "does not answer")


def test_connection_that_was_closed_while_idle_is_replaced(keys: Path) -> None:
    """An answer that promises to keep the connection, and a server that closes it all the same."""
    kept = reply(200, listing(), ETAG).replace(b"Connection: close\r\n", b"")

    async def main(server: Hostile) -> None:
        provider = provider_of(server.url, keys)
        for _ in range(3):
            assert await provider.list("a/") == []
            await trio.sleep(0.05)
        assert len(server.requests) == 3
        await provider.close()

    with hostile(lambda _: kept) as server:
        trio.run(main, server)


def test_server_that_knows_no_conditional_writes_is_asked_for_none_any_more(keys: Path) -> None:
    def answer(asked: Request) -> bytes:
        return reply(501, error("NotImplemented")) if "if-none-match" in asked.headers else reply(200, b"", ETAG)

    async def main(provider: S3Provider) -> None:
        assert await provider.put_new("a", b"data") and await provider.put_new("b", b"data")
        await provider.close()

    with hostile(answer) as server:
        trio.run(main, provider_of(server.url, keys))
        assert ["if-none-match" in asked.headers for asked in server.requests] == [True, False, False]


def test_many_names_are_listed_in_pages(keys: Path) -> None:
    """Also by somebody who makes them up; past the most that are taken it is a lie."""

    def answer(asked: Request) -> bytes:
        last = asked.target.partition("start-after=p%2Fa%2F")[2].partition("&")[0]
        first = int(last or 0) + 1
        numbers = range(first, min(first + 1000, 100_001))
        return reply(200, listing(*(f"p/a/{number:08}" for number in numbers), more=first < 99_001))

    async def main(provider: S3Provider) -> None:
        names = await list_all(provider, "a/")
        assert len(names) == 100_000 and names[-1] == "a/00100000"
        with pytest.raises(ProviderLiesError, match="does not end within 16500 bytes"):
            await list_all(provider, "a/", most=1500 * len("a/00000001 "))
        await provider.close()

    with hostile(answer) as server:
        trio.run(main, provider_of(server.url, keys))
        assert len(server.requests) == 100 + 1 + 2


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        ("access_key = 'a'", "no secret_key"),
        ("[x\naccess_key", "neither TOML nor an ini file"),
        ("[a]\naccess_key=a\n[b]\naccess_key=b", "more than one section"),
        ("[a]\naccess_key='a'\n[b]\naccess_key='b'", "more than one section"),
        ('access_key = "hush"\nsecret_key = "hush', "line 1: its access_key begins or ends with a quote"),
        ('access_key = hush\nsecret_key = "hush', "line 2: its secret_key begins or ends with a quote"),
        ("[default]\naccess_key = hush\n[default]\nsecret_key = hush", "line 3: a section or a key that is there"),
        ("access_key = hush\nsecret_key = hush\naccess_key = hush", "line 3: a section or a key that is there"),
        ("access_key = 'hush'\nsecret_key = 'hush'\nacess_key = 'hush'", "line 3: no such key; there are access_key"),
        ("[x]\naccess_key = hush\nsecret_key = hush\nregion = hush", "line 4: no such key"),
        ("access_key = 'hush'\nsecret_key = 'hu sh'", "line 2: its secret_key holds blanks"),
        ("access_key = hush\nsecret_key = hush # hush", "line 2: its secret_key holds blanks"),
        ("access_key = 3\nsecret_key = 'x'", "is no key"),
        ("access_key = 'a'\nsecret_key = 'ü'", "is no key"),
        ("access_key = 'a'\nsecret_key = \"x\\ny\"", "control characters"),
    ],
)
def test_keys_that_cannot_be_read_are_refused(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text(text)
    with hostile(lambda _: b"") as server, pytest.raises(ProviderRefusedError, match=match) as caught:
        ask(provider_of(server.url, path), CALLS["probe"])
    assert "hush" not in str(caught.value)
    assert "provider.alpha.credentials" in str(caught.value) and not server.requests


def test_a_section_that_tools_share_may_say_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shared"
    path.touch(mode=0o600)
    path.write_text(
        "[other]\naws_access_key_id = x\n[mine]\nregion = eu\naws_access_key_id = a\naws_secret_access_key = b c"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    with pytest.raises(SecretError, match="line 6: its secret_key holds blanks"):
        KeySource("alpha", profile="mine").get()
    path.write_text(path.read_text().replace("b c", "bc"))
    assert KeySource("alpha", profile="mine").get().access_key == "a"


def test_keys_that_others_can_read_are_refused(keys: Path) -> None:
    keys.chmod(0o640)
    with hostile(lambda _: b"") as server, pytest.raises(ProviderRefusedError, match="run chmod 600"):
        ask(provider_of(server.url, keys), CALLS["probe"])


FORMS = [
    f"access_key = '{ACCESS_KEY}'\nsecret_key = '{SECRET_KEY}'\nsession_token = 'tok'",
    f"# mine\n[s3]\naccess_key = '{ACCESS_KEY}'\nsecret_key = '{SECRET_KEY}'\nsession_token = 'tok'",
    f"access_key={ACCESS_KEY}\nsecret_key = {SECRET_KEY}\nsession_token: tok\n",
    f"[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\naws_session_token=tok",
]


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("way", ["credentials", "profile", "credential"])
def test_keys_come_from_a_file_a_profile_or_systemd(
    way: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if way == "profile" and "aws_" not in text:
        return
    path = tmp_path / "named"
    path.touch(mode=0o600)
    path.write_text(text)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    named = {"credentials": str(path), "profile": "default", "credential": "named"}[way]
    caplog.set_level(logging.INFO)
    with hostile(lambda _: reply(200, listing())) as server:
        spec = ProviderSpec("alpha", f"s3://bucket?endpoint={server.url}", **{way: named})  # type: ignore[arg-type]
        provider = open_provider(spec)
        assert isinstance(provider, S3Provider)
        ask(provider, CALLS["probe"])
        headers = server.requests[0].headers
    assert f"Credential={ACCESS_KEY}/" in headers["authorization"] and headers["x-amz-security-token"] == "tok"
    shown = repr(provider._keys.get()) + repr(provider) + repr(spec) + caplog.text + str(headers)
    assert SECRET_KEY not in shown


def test_refused_keys_are_read_again(keys: Path) -> None:
    def answer(asked: Request) -> bytes:
        fresh = "Credential=NEW/" in asked.headers["authorization"]
        return reply(200, listing()) if fresh else reply(403, error("ExpiredToken"))

    async def main(provider: S3Provider) -> None:
        with pytest.raises(ProviderRefusedError):
            await provider.probe()
        write_keys(keys, "NEW")
        await provider.probe()

    with hostile(answer) as server:
        trio.run(main, provider_of(server.url, keys))


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "host", "ours", "match"),
    [
        (2, "127.0.0.1", False, "not known here; name that with ca="),
        (-1, "127.0.0.1", True, "has expired"),
        (40, "127.0.0.1", True, "not valid yet"),
        (2, "elsewhere.example", True, "another host's"),
    ],
)
def test_certificate_that_does_not_hold_is_refused(
    days: int, host: str, ours: bool, match: str, tmp_path: Path, keys: Path
) -> None:
    ca, certificate, key = certify(tmp_path / "tls", days=days, host=host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with hostile(lambda _: reply(200, listing()), tls=context) as server:
        with pytest.raises(ProviderRefusedError, match=match):
            ask(provider_of(server.url, keys, f"&ca={ca}" if ours else ""), CALLS["probe"])
        assert not server.requests


def test_a_watched_connection_is_kept_and_what_is_read_after_an_idle_time_uses_it(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The times of `http` and `breaker`, a hundred times faster; their proportion is what counts."""
    assert breaker.WATCH_SECONDS + 2 * breaker.TICK_SECONDS < http.IDLE_SECONDS
    monkeypatch.setattr(http, "IDLE_SECONDS", http.IDLE_SECONDS / 20)
    monkeypatch.setattr(breaker, "WATCH_SECONDS", breaker.WATCH_SECONDS / 20)
    monkeypatch.setattr(breaker, "TICK_SECONDS", breaker.TICK_SECONDS / 20)
    ca, certificate, key = certify(tmp_path / "tls", days=2, host="127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    (tmp_path / "bucket").mkdir()

    def serve(peer: socket.socket) -> None:
        plain_s3._Connection(context.wrap_socket(peer, server_side=True), tmp_path).serve()

    async def main(provider: S3Provider) -> None:
        watched = breaker.Breaker(provider, breaker.Switch())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched.watch)
            await watched.put("a", b"data")
            for _ in range(2):
                await trio.sleep(1.5 * http.IDLE_SECONDS)
                assert await watched.get("a", 1, 2) == b"at"
            nursery.cancel_scope.cancel()
        await provider.close()

    with listening(serve) as (port, taken):
        trio.run(main, provider_of(f"https://127.0.0.1:{port}", keys, f"&ca={ca}"))
    assert len(taken) <= 2  # the put beside the first probe may have needed another


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no", "No such file or directory"),
        ("", "Is a directory"),
        ("empty", "no certificate is in that file"),
        ("garbage", "no certificate is in that file"),
        ("key", "no certificate is in that file"),
        ("/dev/null", "no certificate is in that file"),
    ],
)
def test_file_of_authorities_that_is_none_is_named(name: str, why: str, tmp_path: Path, keys: Path) -> None:
    _, _, key = certify(tmp_path / "tls", days=2, host="127.0.0.1")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "garbage").write_bytes(b"\x00\xff" * 999)
    (tmp_path / "key").write_bytes(Path(key).read_bytes())
    ca = tmp_path / name
    with pytest.raises(ProviderRefusedError, match=f"^provider alpha: {ca}: {why}; correct ca= in the url$"):
        ask(provider_of("https://localhost:1", keys, f"&ca={ca}"), CALLS["probe"])


def test_other_authority_of_the_same_name_is_named(tmp_path: Path, keys: Path) -> None:
    _, certificate, key = certify(tmp_path / "tls", days=2, host="127.0.0.1")
    other, _, _ = certify(tmp_path / "other", days=2, host="127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with (
        hostile(lambda _: reply(200, listing()), tls=context) as server,
        pytest.raises(ProviderRefusedError, match="or correct ca="),
    ):
        ask(provider_of(server.url, keys, f"&ca={other}"), CALLS["probe"])


def test_authorities_that_are_renewed_in_place_are_read_anew(tmp_path: Path, keys: Path) -> None:
    first, _, _ = certify(tmp_path / "first", days=2, host="127.0.0.1")
    second, certificate, key = certify(tmp_path / "second", days=2, host="127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    used = tmp_path / "used.pem"
    used.write_bytes(Path(first).read_bytes())

    async def main(provider: S3Provider) -> None:
        with pytest.raises(ProviderRefusedError, match="or correct ca="):
            await provider.probe()
        used.write_bytes(Path(second).read_bytes())
        await provider.probe()
        used.unlink()
        await provider.probe()
        used.write_bytes(Path(first).read_bytes())
        with pytest.raises(ProviderRefusedError, match="or correct ca="):
            await provider.probe()
        await provider.close()

    with hostile(lambda _: reply(200, listing()), tls=context) as server:
        trio.run(main, provider_of(server.url, keys, f"&ca={used}"))


def test_https_where_http_is_spoken(seaweed: Seaweed, keys: Path) -> None:
    with pytest.raises(ProviderAwayError, match="is it https that the endpoint speaks"):
        ask(provider_of(seaweed.http.replace("http:", "https:"), keys), CALLS["probe"])


# --- the real server ------------------------------------------------------------------------------------------------


def real(server: Seaweed, keys: Path | None = None, bucket: str = "beta", prefix: str = "s3") -> S3Provider:
    made = open_provider(ProviderSpec("alpha", server.url(bucket, prefix), credentials=str(keys or server.keys)))
    assert isinstance(made, S3Provider)
    return made


def test_pieces_are_stored_as_they_lie(seaweed: Seaweed) -> None:
    async def main() -> None:
        provider = real(seaweed)
        await provider.put("pieces", Pieces(b"one", memoryview(b"-two-"), b"", b"three"))
        assert await provider.get("pieces") == b"one-two-three"
        assert request(seaweed.http, "GET", "/beta/s3/pieces") == (200, b"one-two-three")
        await provider.close()

    trio.run(main)


def test_keys_that_may_only_read(seaweed: Seaweed) -> None:
    reader = real(seaweed, seaweed.root / "reader-keys")
    with pytest.raises(ProviderRefusedError, match="403 AccessDenied; allow these keys"):
        ask(reader, CALLS["put"])
    assert READER_KEY


@pytest.mark.parametrize(
    ("access", "secret", "match"),
    [("NOBODY", SECRET_KEY, "access key is not known"), (ACCESS_KEY, "wrong", "correct the secret key")],
)
def test_wrong_keys(seaweed: Seaweed, access: str, secret: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ProviderRefusedError, match=match):
        ask(real(seaweed, write_keys(tmp_path / "wrong", access, secret)), CALLS["probe"])


@pytest.mark.parametrize("call", EVERY)
def test_missing_bucket_is_not_a_missing_object(seaweed: Seaweed, call: str) -> None:
    if call == "put":
        return  # SeaweedFS makes the bucket for an admin
    with pytest.raises(ProviderRefusedError, match="make the bucket"):
        ask(real(seaweed, bucket="nowhere"), CALLS[call])


@pytest.mark.parametrize("data", [b"data", Pieces(b"da", memoryview(b"ta"))])
def test_a_bucket_with_a_default_retention_gets_the_digest_that_it_wants(
    data: Data, tmp_path: Path, keys: Path
) -> None:
    (tmp_path / plain_s3.LOCKED).mkdir()

    async def main(provider: S3Provider) -> None:
        await provider.put("a", data)
        assert await provider.get("a") == bytes(data)
        assert await provider.put_new("b", data)
        assert not await provider.put_new("b", b"other")
        await provider.close()

    with listening(lambda peer: plain_s3._Connection(peer, tmp_path).serve()) as (port, _):
        trio.run(main, provider_of(f"http://127.0.0.1:{port}", keys, bucket=plain_s3.LOCKED))


def test_who_refuses_a_put_in_spite_of_its_digest_is_asked_no_more(keys: Path) -> None:
    with hostile(lambda _: reply(400, error("InvalidRequest"))) as server:
        with pytest.raises(ProviderRefusedError, match="400 InvalidRequest"):
            ask(provider_of(server.url, keys), CALLS["put"])
        assert len(server.requests) == 2


def test_versioned_bucket_is_warned_of_once(keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(provider: S3Provider) -> None:
        assert await provider.delete("a")
        assert await provider.delete("b")

    for header in ("x-amz-delete-marker: true", "x-amz-version-id: 3HL4kqtJlcpXroDTDmJ"):
        with hostile(lambda _, header=header: reply(204, b"", header)) as server:
            trio.run(main, provider_of(server.url, keys))
    assert caplog.text.count("keeps what is deleted") == 2


def test_bucket_without_versions_deletes(keys: Path) -> None:
    with hostile(lambda _: reply(204, b"", "x-amz-version-id: null")) as server:
        assert ask(provider_of(server.url, keys), CALLS["delete"]) is False


def test_more_names_than_two_pages(seaweed: Seaweed) -> None:
    async def main() -> None:
        provider = real(seaweed, prefix="many")
        names = [f"shares/{i % 7:02x}/{i:06}" for i in range(2100)]
        async with trio.open_nursery() as nursery:
            for part in range(16):
                nursery.start_soon(put_all, provider, names[part::16])
        assert await list_all(provider, "shares/") == sorted(names)
        assert await provider.list("shares/03/0020") == [n for n in sorted(names) if n.startswith("shares/03/0020")]
        await provider.close()

    trio.run(main)


async def put_all(provider: S3Provider, names: list[str]) -> None:
    for name in names:
        await provider.put(name, b"")


def test_bucket_in_the_hosts_name(keys: Path) -> None:
    place = parse_url("s3://bucket/p?region=eu-north-1").s3
    assert place is not None and place.virtual and place.host == "s3.eu-north-1.amazonaws.com"
    made = open_provider(ProviderSpec("alpha", "s3://bucket/p?region=eu-north-1", credentials=str(keys)))
    assert isinstance(made, S3Provider)
    question = made._signed("GET", made._key("a/b"), {}, ())
    assert made._http.origin.host == "bucket.s3.eu-north-1.amazonaws.com" and question.target == "/p/a/b"
    assert question.headers["X-Amz-Content-SHA256"] == "UNSIGNED-PAYLOAD"
    assert "/eu-north-1/s3/aws4_request" in question.headers["Authorization"]


def test_without_tls_the_signature_covers_the_parts_and_joins_nothing(keys: Path) -> None:
    part, count = os.urandom(4 * MIB), 8
    made = open_provider(ProviderSpec("alpha", "s3://bucket/p?endpoint=http://127.0.0.1:1", credentials=str(keys)))
    assert isinstance(made, S3Provider)
    made._signed("PUT", made._key("a/b"), {}, (b"",))  # imports, and reads the keys
    tracemalloc.start()
    try:
        question = made._signed("PUT", made._key("a/b"), {}, (part, memoryview(part)) * (count // 2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert question.headers["X-Amz-Content-SHA256"] == hashlib.sha256(part * count).hexdigest()
    assert peak < MIB


def test_nothing_of_the_keys_is_in_the_environment() -> None:
    assert not any(SECRET_KEY in value for value in os.environ.values())


def test_a_full_line_is_not_taken_for_a_dead_provider(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a body is taken slowly, whatever else is asked waits behind it, probes among it."""
    monkeypatch.setattr(breaker, "STUCK_SECONDS", 0.3)
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(breaker, "TICK_SECONDS", 0.1)
    slow, over = b"x" * (8 * MIB), threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            data = connection.recv(65536)
            if not data.startswith(b"PUT"):
                over.wait(30)
                return
            body = len(data.partition(b"\r\n\r\n")[2])
            while body < len(slow):
                time.sleep(0.02)
                body += len(connection.recv(65536))
            connection.sendall(reply(200, b"", ETAG))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    async def main() -> None:
        switch = breaker.Switch()
        guarded = guard(provider_of(f"http://127.0.0.1:{listener.getsockname()[1]}", keys), switch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guarded.breaker.watch)
            began = trio.current_time()
            with trio.fail_after(60):
                await guarded.once.put("shares/aa/bb", slow)
            assert trio.current_time() - began > 2 and switch.state == "up"
            with trio.fail_after(60):  # and one that takes nothing is
                with pytest.raises(ProviderAwayError):
                    await guarded.once.get("shares/aa/bb")
            nursery.cancel_scope.cancel()
        over.set()
        await guarded.bare.close()

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KIB)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        trio.run(main)
