"""Providers that go wrong, one after another, beside good ones: through the real command and one mount.

Of six providers that a volume needs for its shares two are buckets of a server that answers as it should, or in every
way in which one can go wrong; a seventh's certificate has expired from the beginning.  Whatever they do, writes are
published and safe with the others, reads are right, each is named with the remedy, and is asked a bounded number of
times.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from icnfs.errors import Exit
from tests.acceptance.remote import RemoteVolume
from tests.providers.hostile import HOUR_AGO, NOW, Answer, Hostile, Request, hostile, reply
from tests.providers.test_s3 import ETAG, HTML, error, listing
from tests.seaweed import certify

MIB: Final = 1 << 20
K, N, SAFE = 3, 6, 4
BASES: Final = 4
"""Files of 6 MiB that are read in turn, more than the cache keeps."""

GOOD: Final = ("amsterdam", "helsinki", "munich", "rotterdam")
BAD: Final = ("lyon", "paris")
EXPIRED: Final = "expired"

STEP_SECONDS: Final = 60.0
"""Sync has so long beside bad providers, and their state to show what is wrong."""

ASKED_MOST: Final = 30
"""Requests that one way may cost at one bucket: a share and a head or two, probes, and a look at what is there."""


@dataclass
class Bucket:
    """A bucket, which does as one should but for its `way`: what that gives no answer to is done right."""

    way: Answer | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    versioned: bool = False

    def __call__(self, asked: Request) -> bytes | None:
        if self.way is not None and (answer := self.way(asked)) != RIGHT:
            return answer
        parts = urlsplit(asked.target)
        key = unquote(parts.path).removeprefix("/bucket").lstrip("/")
        if "list-type" in parts.query:
            return self._listed({name: values[0] for name, values in parse_qs(parts.query).items()})
        if asked.method == "PUT":
            if asked.headers.get("if-none-match") == "*" and key in self.objects:
                return reply(412, error("PreconditionFailed"))
            self.objects[key] = asked.body
            return reply(200, b"", ETAG)
        if asked.method == "DELETE":
            self.objects.pop(key, None)
            return reply(204, b"", *["x-amz-delete-marker: true"][: self.versioned])
        if key not in self.objects:
            return reply(404, error("NoSuchKey"))
        return ranged(asked, self.objects[key])

    def _listed(self, asked: dict[str, str]) -> bytes:
        after, most = asked.get("start-after", ""), int(asked.get("max-keys", "1000"))
        found = sorted(key for key in self.objects if key.startswith(asked.get("prefix", "")) and key > after)
        return reply(200, listing(*found[:most], more=len(found) > most))


def ranged(asked: Request, data: bytes) -> bytes:
    """The part of `data` that is asked for."""
    if asked.method == "HEAD":
        return reply(200, b"", ETAG, length=len(data))
    if wanted := asked.headers.get("range", "").removeprefix("bytes="):
        begin, _, end = wanted.partition("-")
        first, last = int(begin), min(int(end or len(data) - 1), len(data) - 1)
        return reply(206, data[first : last + 1], ETAG, f"Content-Range: bytes {first}-{last}/{len(data)}")
    return reply(200, data, ETAG)


RIGHT: Final = b"as it should be"
"""What a way answers where the bucket is to do what it should."""


def always(answer: bytes | None) -> Answer:
    return lambda _: answer


def to_writes(answer: bytes) -> Answer:
    return lambda asked: answer if asked.method == "PUT" else RIGHT


def strangers(asked: Request) -> bytes:
    """Every object is somebody else's."""
    is_object = asked.method in ("GET", "HEAD") and "list-type" not in asked.target
    return ranged(asked, bytes(9 * MIB)) if is_object else RIGHT


def shortened(asked: Request) -> bytes:
    """Less than was asked for, and called what was asked for."""
    if "list-type" in asked.target or asked.method == "HEAD":
        return RIGHT
    return reply(206, b"ha", ETAG, "Content-Range: bytes 0-3/9")


def lied(asked: Request) -> bytes:
    return reply(200, listing("../../etc")) if "list-type" in asked.target else RIGHT


WAYS: Final[dict[str, tuple[Answer, str]]] = {
    "html": (always(reply(200, HTML, "Content-Type: text/html", ETAG)), "web page instead of S3; correct the endpoint"),
    "5xx": (always(reply(500, error("InternalError"))), "500 InternalError; .*ask the provider"),
    "403": (always(reply(403, error("AccessDenied"), NOW)), "allow these keys"),
    "clock": (always(reply(403, error("AccessDenied"), HOUR_AGO)), "set the clock"),
    "redirect": (always(reply(307, b"", "Location: http://127.0.0.1:1/x")), "points elsewhere"),
    "half a body": (
        always(reply(200, listing()[:-20], length=len(listing()))),
        "broke off .*; check the endpoint|closed",
    ),
    "nothing": (always(b""), "closed the connection .*; check the endpoint"),
    "no bucket": (always(reply(404, error("NoSuchBucket"))), "make the bucket"),
    "lying listing": (lied, "out of order, or not of it; ask the provider"),
    "silence": (always(None), "did not answer .*; check the endpoint"),
    "wrong length": (shortened, "does not speak S3|length"),
    "locked": (to_writes(reply(403, error("ObjectLocked"), NOW)), "use one without object lock"),
    "read-only": (to_writes(reply(405, error("MethodNotAllowed"))), "read-only or locked"),
    "full": (to_writes(reply(507, error("XMinioStorageFull"))), "free space"),
}

TURNS: Final = (
    ("locked", "silence"),
    ("html", "5xx"),
    ("403", "clock"),
    ("redirect", "half a body"),
    ("nothing", "no bucket"),
    ("lying listing", "wrong length"),
    ("read-only", "full"),
)
"""The ways of both buckets in turn.  What refuses writes alone is tried again after a gap, so such come first and last.
"""


class Bench(RemoteVolume):
    """A volume whose providers all have an owner of their own."""

    def provider_facts(self, provider: str) -> dict[str, str | int | float]:
        facts: dict[str, str | int | float] = {"url": self.urls[provider], "owner": f"{provider} inc", "site": provider}
        facts |= {"parent_country": "DE", "country": "DE", "eur_per_tb_month": 6.0}
        facts["eur_per_tb_read"] = 0.0 if provider in BAD else 5.0  # read there first
        if self.urls[provider].startswith("s3:"):
            facts["credentials"] = "s3.keys"
        return facts

    def shown(self, provider: str) -> dict[str, object]:
        providers = self.status()["providers"]
        assert isinstance(providers, list)
        found: dict[str, object] = {one["name"]: one for one in providers}[provider]
        return found


@dataclass
class Mounted:
    volume: Bench
    buckets: dict[str, Bucket]
    servers: dict[str, Hostile]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    root = tmp_path_factory.mktemp("bad")
    ca, certificate, key = certify(root / "tls", days=-1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ExitStack() as stack:
        buckets = {name: Bucket() for name in BAD}
        servers = {name: stack.enter_context(hostile(bucket)) for name, bucket in buckets.items()}
        old = stack.enter_context(hostile(always(reply(200, listing())), tls=context))
        urls = {name: f"file://{root}/providers/{name}" for name in GOOD}
        urls |= {name: f"s3://bucket/p?endpoint={server.url}" for name, server in servers.items()}
        settings = {
            "volume": {"code": f"{K}-of-{N}", "safe": SAFE, "publish_seconds": 1000, "sync_deadline": STEP_SECONDS},
            "cache": {"clean": "16MiB"},
        }
        volume = stack.enter_context(Bench(root, urls, settings=settings))
        volume.init()
        volume.urls[EXPIRED] = f"s3://bucket/p?endpoint={old.url}&ca={ca}"
        volume.providers[EXPIRED] = Path(EXPIRED)
        volume.write_toml()
        volume.mount()
        yield Mounted(volume, buckets, servers | {EXPIRED: old})
        volume.umount()


@pytest.mark.mount
def test_bad_providers_are_named_with_the_remedy_and_disturb_nobody(mounted: Mounted) -> None:
    volume = mounted.volume
    bases = [os.urandom(6 * MIB) for _ in range(BASES)]
    for index, data in enumerate(bases):
        (volume.mountpoint / f"base{index}").write_bytes(data)
    volume.sync()
    for turn, pair in enumerate(TURNS):
        before = {name: len(mounted.servers[name].requests) for name in BAD}
        logged = len(volume.log.read_text())
        for name, way in zip(BAD, pair, strict=True):
            mounted.buckets[name].way = WAYS[way][0]
        data = os.urandom(200_000)
        begun = time.monotonic()
        (volume.mountpoint / f"new{turn}").write_bytes(data)
        volume.sync()
        took = time.monotonic() - begun
        assert (volume.mountpoint / f"base{turn % BASES}").read_bytes() == bases[turn % BASES]
        for name, way in zip(BAD, pair, strict=True):
            told = _told(volume, name, WAYS[way][1])
            if not turn:  # it was up before
                assert re.search(
                    f"provider {name} (is down|refuses).*({WAYS[way][1]})", volume.log.read_text()[logged:]
                )
            asked = len(mounted.servers[name].requests) - before[name]
            shown = time.monotonic() - begun
            print(f"{way:<14} {asked:>3} requests  sync {took:4.1f} s  shown {shown:4.1f} s  {told}")
            assert asked <= ASKED_MOST, "a retry storm"
    for turn in range(BASES):
        assert (volume.mountpoint / f"base{turn}").read_bytes() == bases[turn]


def _told(volume: Bench, provider: str, remedy: str) -> str:
    """What status says of a provider, once it has the remedy."""
    end = time.monotonic() + STEP_SECONDS
    while True:
        shown = volume.shown(provider)
        text = str(shown["error"])
        if re.search(remedy, text) and shown["state"] in ("down", "probing", "refusing"):
            return f"{shown['state']}: {text}"
        assert time.monotonic() < end, shown
        time.sleep(0.2)


@pytest.mark.mount
def test_an_expired_certificate_is_named_with_the_remedy(mounted: Mounted) -> None:
    assert _told(mounted.volume, EXPIRED, "has expired; ask the provider to renew it").startswith("down")
    assert len(mounted.servers[EXPIRED].requests) == 0


@pytest.mark.mount
def test_a_bucket_that_a_provider_has_already_is_not_added_under_a_second_name(mounted: Mounted) -> None:
    volume = mounted.volume
    mounted.buckets[BAD[0]].way = None
    before = (volume.config_dir / "vol.toml").read_text()
    facts = ("--owner", "Twice", "--country", "DE", "--parent-country", "DE", "--credentials")
    for host, code, says in (
        ("127.0.0.1", Exit.CONFIG, f"provider.twice.url: the same place as provider.{BAD[0]}.url"),
        ("localhost", Exit.FOREIGN_PROVIDER, "provider twice: its place is that of provider lyon too, by another name"),
    ):
        url = volume.urls[BAD[0]].replace("127.0.0.1", host)
        added = volume.icnfs("provider", "add", "vol", "twice", url, *facts, volume.config_dir / "s3.keys", code=code)
        assert says in added.stderr
        assert (volume.config_dir / "vol.toml").read_text() == before


def test_each_is_named_with_the_remedy_where_it_is_tried_out(tmp_path: Path) -> None:
    """Also what shows only there: that a bucket keeps what is deleted."""
    quick = {way: answer for way, answer in WAYS.items() if way != "silence"}
    quick["strangers"] = (strangers, "get: it answered something else than was stored")
    quick["versioned"] = (always(RIGHT), "")
    with ExitStack() as stack:
        buckets = {way: Bucket(answer, versioned=way == "versioned") for way, (answer, _) in quick.items()}
        servers = {way: stack.enter_context(hostile(bucket)) for way, bucket in buckets.items()}
        names = {way: re.sub(r"[^a-z0-9]", "-", f"p-{way}") for way in quick}
        urls = {names[way]: f"s3://bucket/p?endpoint={server.url}" for way, server in servers.items()}
        volume = stack.enter_context(Bench(tmp_path, urls, settings={"volume": {"code": f"{K}-of-{N}"}}))
        tried = volume.icnfs("provider", "test", "vol", "--json", code=Exit.PROVIDER)
        reports = {report["provider"]: report for report in json.loads(tried.stdout)}
        for way, (_, remedy) in quick.items():
            assert re.search(remedy, reports[names[way]]["error"]), reports[names[way]]
            assert bool(reports[names[way]]["error"]) == bool(remedy)
            assert len(servers[way].requests) <= 20, "a retry storm"
        assert re.search(f"provider {names['html']}: .*correct the endpoint.* more of {len(quick)} fail", tried.stderr)
        assert "turn versioning off" in tried.stderr
