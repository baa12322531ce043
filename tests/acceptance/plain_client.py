"""What a line and a machine can do: whole objects by several plain connections to each of several buckets at once."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.acceptance.remote import Bucket
from tests.seaweed import ACCESS_KEY, SECRET_KEY

CONNECTIONS: Final = 4
"""To each bucket: with fewer, slow starts and waits between two requests leave a line idle."""

SHARE: Final = 4 << 20
"""Bytes that are read of an object in ranges."""

_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class Carried:
    """Bytes of objects, and the seconds that they took."""

    bytes: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds


def put_all(places: Sequence[Bucket], count: int, data: bytes) -> Carried:
    """`count` objects of these bytes into each bucket."""
    return _all(places, [[f"plain/{i}" for i in range(count)] for _ in places], data)


def get_all(places: Sequence[Bucket], keys: Sequence[Sequence[str]], part: int | None = None) -> Carried:
    """Those objects of each bucket, whole, or their first SHARE bytes in whole ranges of `part` bytes."""
    return _all(places, keys, None, part)


def _all(
    places: Sequence[Bucket], keys: Sequence[Sequence[str]], data: bytes | None, part: int | None = None
) -> Carried:
    total = [0]
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(place: Bucket, left: Iterator[str]) -> None:
        connection = http.client.HTTPConnection(place.endpoint.partition("//")[2], timeout=60)
        piece = memoryview(bytearray(_PIECE))
        try:
            while True:
                with lock:
                    key = next(left, None)
                if key is None:
                    return
                count = _one(connection, place, key, data, piece, part)
                with lock:
                    total[0] += count
        except BaseException as error:  # noqa: BLE001  # raised again by whoever waits for the threads
            failures.append(error)
        finally:
            connection.close()

    threads = []
    for place, names in zip(places, keys, strict=True):
        left = iter(names)
        threads += [threading.Thread(target=work, args=(place, left)) for _ in range(CONNECTIONS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return Carried(total[0], time.monotonic() - began)


def _one(
    connection: http.client.HTTPConnection,
    place: Bucket,
    key: str,
    data: bytes | None,
    piece: memoryview,
    part: int | None,
) -> int:
    if part is None:
        return _request(connection, place, key, data, piece, {})
    return sum(
        _request(connection, place, key, data, piece, {"Range": f"bytes={at}-{at + part - 1}"})
        for at in range(0, SHARE - part + 1, part)
    )


def _request(
    connection: http.client.HTTPConnection,
    place: Bucket,
    key: str,
    data: bytes | None,
    piece: memoryview,
    headers: dict[str, str],
) -> int:
    method, path = ("GET" if data is None else "PUT"), f"/{place.bucket}/{key}"
    signed = AWSRequest(method=method, url=place.endpoint + path, data=data or b"", headers=headers)
    S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(signed)
    connection.request(method, path, body=data, headers=dict(signed.headers.items()))
    answer = connection.getresponse()
    if headers and answer.status == 416:  # the share of a run, which may be short
        answer.read()
        return 0
    if answer.status not in (200, 206):
        raise RuntimeError(f"{method} {path} at {place.endpoint}: {answer.status} {answer.read()[:200]!r}")
    count = len(data or b"")
    while step := answer.readinto(piece):
        count += step
    return count
