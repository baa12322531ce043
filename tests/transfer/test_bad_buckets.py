"""A bucket that goes wrong beside five good providers: it is named with the remedy, nobody else is disturbed.

Each way in which one can go wrong, over real sockets and through the engine: what is stored and read goes on, the
provider's state shows the error and the remedy, and it is asked a bounded number of times.
"""

from __future__ import annotations

import random
import re
import ssl
from pathlib import Path

import pytest
import trio

from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.open import ProviderSpec, open_provider
from icnfs.transfer.engine import open_engine
from icnfs.transfer.messages import Order
from tests.providers.hostile import HOUR_AGO, NOW, Answer, Request, hostile, reply
from tests.providers.test_s3 import ETAG, HTML, error, listing
from tests.seaweed import certify, write_keys

K, N, SHARE = 4, 6, 100_000
SECONDS = 3.0


def _listing_or(otherwise: bytes) -> Answer:
    """A bucket that can be listed, and no more."""

    def answer(asked: Request) -> bytes:
        return reply(200, listing()) if "list-type" in asked.target else otherwise

    return answer


def _always(answer: bytes | None) -> Answer:
    return lambda _: answer


WAYS: dict[str, tuple[Answer, str, str]] = {
    "html": (_always(reply(200, HTML, "Content-Type: text/html", ETAG)), "down", "web page instead of S3"),
    "5xx": (_always(reply(500, error("InternalError"))), "down", "500 InternalError"),
    "overload": (_always(reply(503, error("SlowDown"))), "down", "503 SlowDown"),
    "403": (_always(reply(403, error("AccessDenied"), NOW)), "down", "allow these keys"),
    "clock": (_always(reply(403, error("AccessDenied"), HOUR_AGO)), "down", "set the clock"),
    "redirect": (_always(reply(307, b"", "Location: http://127.0.0.1:1/x")), "down", "points elsewhere"),
    "half a body": (_always(reply(200, listing()[:-20], length=len(listing()))), "down", "broke off|closed"),
    "wrong length": (_listing_or(reply(206, b"ha", "Content-Range: bytes 0-3/9")), "up", "does not speak S3|length"),
    "nothing": (_always(b""), "down", "closed the connection"),
    "silence": (_always(None), "down", "did not answer"),
    "lying listing": (_always(reply(200, listing("../../etc"))), "down", "out of order, or not of it"),
    "locked": (_listing_or(reply(403, error("ObjectLocked"), NOW)), "up", "use one without object lock"),
    "read-only": (_listing_or(reply(405, error("MethodNotAllowed"))), "up", "read-only or locked"),
    "full": (_listing_or(reply(507, error("XMinioStorageFull"))), "up", "free space"),
    "no puts": (_listing_or(reply(503, error("SlowDown"))), "up", "503 SlowDown"),
    "no bucket": (_always(reply(404, error("NoSuchBucket"))), "down", "make the bucket"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_bucket_disturbs_nobody_and_is_named_with_the_remedy(way: str, tmp_path: Path) -> None:
    answer, state, remedy = WAYS[way]
    with hostile(answer) as server:
        _meets(f"s3://bucket/p?endpoint={server.url}", write_keys(tmp_path / "keys"), state, remedy)
        assert len(server.requests) <= 10, "a retry storm"


def test_an_expired_certificate_disturbs_nobody(tmp_path: Path) -> None:
    ca, certificate, key = certify(tmp_path / "tls", days=-1, host="127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with hostile(_always(reply(200, listing())), tls=context) as server:
        url = f"s3://bucket/p?endpoint={server.url}&ca={ca}"
        _meets(url, write_keys(tmp_path / "keys"), "down", "has expired; ask the provider to renew it")


def _meets(url: str, keys: Path, state: str, remedy: str) -> None:
    """Segments are stored and read beside it."""
    payload = random.Random(5).randbytes(K * SHARE)
    providers = tuple(f"p{index}" for index in range(N))

    async def main() -> None:
        bad = open_provider(ProviderSpec("p0", url, credentials=str(keys)))
        good = [MemoryProvider(name) for name in providers[1:]]
        async with open_engine([bad, *good]) as engine:
            began = trio.current_time()
            number = 0
            while trio.current_time() < began + SECONDS or engine.states()["p0"].state in ("unknown", "probing"):
                names = tuple(f"shares/{number:06}/{index}" for index in range(N))
                order = Order(number.to_bytes(16, "big"), K, N, SHARE, K * SHARE, names, providers)
                result = await engine.put_segment(order, memoryview(payload), enough=N - 1, deadline=60)
                assert result.errors.keys() | result.late <= {0}
                shares = tuple(
                    ShareInfo(name, root, name != "p0") for name, root in zip(providers, result.roots, strict=True)
                )
                info = SegmentInfo(order.id, K, N, SHARE, K * SHARE, shares)
                assert b"".join(await engine.get_segment(info, names, deadline=5)) == payload
                number += 1
                await trio.sleep(0.2)
            shown = engine.states()["p0"]
            assert (shown.state in ("down", "probing")) == (state == "down"), shown
            assert re.search(remedy, shown.error), shown
            assert number > SECONDS  # more than one segment a second, whatever the bad one does
            assert all(engine.states()[name].state == "up" for name in providers[1:])

    trio.run(main)
