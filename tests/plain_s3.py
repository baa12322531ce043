"""The least server that speaks S3, for measurements in which a real one's own processor time would be the limit.

    python -m tests.plain_s3 HOST PORT FOLDER

It checks no signature, and keeps each object as a file whose name is the quoted key: put (also If-None-Match: *), get
with ranges, head, delete, and listings of version 2.  A put and a get of a body cost the kernel's copies and no more.
The bucket LOCKED is as one with an object lock's default retention: it takes what comes with Content-MD5 alone, and
says that what is deleted is only hidden.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

LOCKED: Final = "locked"

_PIECE: Final = 1 << 20
_HEAD_MAX: Final = 64 * 1024

Headers = dict[str, str]


class _Connection:
    """Requests of one connection, one after the other."""

    def __init__(self, peer: socket.socket, folder: Path) -> None:
        self._peer, self._folder = peer, folder
        self._buffer = b""
        self._piece = memoryview(bytearray(_PIECE))

    def serve(self) -> None:
        with self._peer, contextlib.suppress(OSError):
            self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._one():
                pass

    def _one(self) -> bool:
        head = self._head()
        if head is None:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        length = int(headers.get("content-length", "0"))
        parts = urlsplit(target)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        if method == "PUT":
            self._put(bucket, key, headers, length)
        elif not key:
            self._list(bucket, {name: values[0] for name, values in parse_qs(parts.query).items()})
        elif method == "DELETE":
            self._path(bucket, key).unlink(missing_ok=True)
            self._answer("204 No Content", {"x-amz-delete-marker": "true"} if bucket == LOCKED else {})
        else:
            self._get(bucket, key, headers, whole=method == "GET")
        return True

    def _head(self) -> bytes | None:
        while b"\r\n\r\n" not in self._buffer:
            more = self._peer.recv(_HEAD_MAX)
            if not more or len(self._buffer) > _HEAD_MAX:
                return None
            self._buffer += more
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head

    def _path(self, bucket: str, key: str) -> Path:
        return self._folder / bucket / quote(key, safe="")

    def _put(self, bucket: str, key: str, headers: Headers, length: int) -> None:
        if headers.get("expect", "").lower() == "100-continue":
            self._peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        place = self._folder / bucket
        place.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            left = length - len(self._buffer[:length])
            file.write(self._buffer[:length])
            self._buffer = self._buffer[length:]
            while left:
                count = self._peer.recv_into(self._piece, min(left, _PIECE))
                if not count:
                    raise ConnectionResetError
                file.write(self._piece[:count])
                left -= count
        if bucket == LOCKED and key and (wrong := _wrong(Path(file.name), headers)):
            os.unlink(file.name)
            self._error("400 Bad Request", wrong)
            return
        if not key:
            os.unlink(file.name)
        elif headers.get("if-none-match") == "*":
            try:
                os.link(file.name, self._path(bucket, key))
            except FileExistsError:
                self._error("412 Precondition Failed", "PreconditionFailed")
                return
            finally:
                os.unlink(file.name)
        else:
            os.rename(file.name, self._path(bucket, key))
        self._answer("200 OK", {"ETag": '"0"'})

    def _get(self, bucket: str, key: str, headers: Headers, *, whole: bool) -> None:
        try:
            file = self._path(bucket, key).open("rb")
        except FileNotFoundError:
            self._error("404 Not Found", "NoSuchKey")
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            first, last, status, more = 0, size - 1, "200 OK", {"ETag": '"0"'}
            if asked := headers.get("range", "").removeprefix("bytes="):
                begin, _, end = asked.partition("-")
                first, last = int(begin), min(int(end or size - 1), size - 1)
                if first >= size:
                    self._error("416 Range Not Satisfiable", "InvalidRange")
                    return
                status, more = "206 Partial Content", more | {"Content-Range": f"bytes {first}-{last}/{size}"}
            self._answer(status, more, length=last + 1 - first)
            if whole:
                self._peer.sendfile(file, first, last + 1 - first)

    def _list(self, bucket: str, asked: Headers) -> None:
        with contextlib.suppress(FileNotFoundError):
            keys = sorted(unquote(name) for name in os.listdir(self._folder / bucket))
            prefix, after = asked.get("prefix", ""), asked.get("start-after", "")
            keys = [key for key in keys if key.startswith(prefix) and key > after]
            most = int(asked.get("max-keys", "1000"))
            found = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in keys[:most])
            more = str(len(keys) > most).lower()
            body = f"<ListBucketResult><IsTruncated>{more}</IsTruncated>{found}</ListBucketResult>".encode()
            self._answer("200 OK", {"Content-Type": "application/xml"}, body)
            return
        self._error("404 Not Found", "NoSuchBucket")

    def _error(self, status: str, code: str) -> None:
        self._answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())

    def _answer(self, status: str, headers: Headers, body: bytes = b"", *, length: int | None = None) -> None:
        headers = headers | {"Content-Length": str(len(body) if length is None else length)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._peer.sendall(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body)


def _wrong(file: Path, headers: Headers) -> str:
    """The error of an object whose digest is missing or another, or ""."""
    if "content-md5" not in headers:
        return "InvalidRequest"
    right = base64.b64encode(hashlib.md5(file.read_bytes(), usedforsecurity=False).digest()).decode()
    return "" if headers["content-md5"] == right else "BadDigest"


def serve(host: str, port: int, folder: Path) -> None:
    listener = socket.create_server((host, port), backlog=128)
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=_Connection(peer, folder).serve, daemon=True).start()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
