"""A real S3 server for the tests: SeaweedFS on loopback, with a certificate of its own, ended with the process.

`serving()` starts one; `tests/conftest.py` keeps one for each worker's session.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ACCESS_KEY, SECRET_KEY = "ICNFSTESTKEY", "a-secret-that-must-never-show"
READER_KEY, READER_SECRET = "ICNFSREADER", "another-secret-that-must-never-show"
BUCKETS = ("alpha", "beta", "gamma")
START_SECONDS = 30.0
PORTS = 13
"""Ports that one server listens at."""

_IDENTITIES = {
    "identities": [
        {
            "name": "icnfs",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER_KEY, "secretKey": READER_SECRET}],
            "actions": ["Read", "List"],
        },
    ]
}


@dataclass(frozen=True)
class Seaweed:
    """One server: its endpoints, its authority, and files with keys."""

    root: Path
    http: str
    https: str
    ca: Path
    pid: int

    def url(self, bucket: str, prefix: str = "", *, tls: bool = False) -> str:
        more = f"endpoint={self.https}&ca={self.ca}" if tls else f"endpoint={self.http}"
        return f"s3://{bucket}/{prefix}?{more}"

    @property
    def keys(self) -> Path:
        return self.root / "keys"


def write_keys(path: Path, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Path:
    path.touch(mode=0o600)
    path.write_text(f'access_key = "{access_key}"\nsecret_key = "{secret_key}"\n')
    return path


def certify(folder: Path, *, days: int = 2, host: str = "127.0.0.1") -> tuple[Path, Path, Path]:
    """Files of an authority, and of a certificate and its key for `host`, which end in `days` (may be past)."""
    folder.mkdir(parents=True, exist_ok=True)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    begin = end - datetime.timedelta(days=30)

    def build(name: str, issuer: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        def called(text: str) -> x509.Name:
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

        made = x509.CertificateBuilder(called(issuer), called(name), key.public_key(), x509.random_serial_number())
        return made.not_valid_before(begin).not_valid_after(end)

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = build("test authority", "test authority", ca_key)
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    names: list[x509.GeneralName] = (
        [x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")]
        if host[0].isdigit()
        else [x509.DNSName(host)]
    )
    leaf = build("test server", "test authority", key).add_extension(x509.SubjectAlternativeName(names), critical=False)
    files = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    files[0].write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    files[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


_PORTS = range(12_000, 32_000)
"""Below those that the kernel gives to whoever connects (ip_local_port_range): a server that is killed finds its own
ports free again."""

_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, and that this process has not been given before; others may be, the next moment."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        if port in _given:
            continue
        _given.add(port)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
    return found


class Server:
    """One server process over a folder, which may be killed and started again over the same data."""

    def __init__(self, root: Path, ports: list[int], *, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        """`ports` are PORTS free ones at `host`; `prefix` is what the command is started by, as nsenter(1)."""
        self.root, self.ports, self.host = root, ports, host
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        self._ca, self._certificate, self._key = certify(root / "tls", host=host)
        (root / "s3.json").write_text(json.dumps(_IDENTITIES))
        write_keys(root / "keys")
        write_keys(root / "reader-keys", READER_KEY, READER_SECRET)

    @property
    def facts(self) -> Seaweed:
        """Of the process that runs now."""
        assert self._process is not None
        http, https = f"http://{self.host}:{self.ports[0]}", f"https://{self.host}:{self.ports[1]}"
        return Seaweed(self.root, http, https, self._ca, self._process.pid)

    def start(self) -> bool:
        """Returns once its BUCKETS are there; False where it ended, or took too long."""
        data = self.root / "data"
        data.mkdir(exist_ok=True)
        command = [*self._prefix, "setpriv", "--pdeathsig", "KILL", str(Path(sys.executable).parent / "weed"), "mini"]
        options = _options(data, self.ports, self.host, self.root / "s3.json", self._certificate, self._key)
        with (self.root / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                command + [f"-{name}={value}" for name, value in options.items()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=data,
                env=os.environ | {"GOMAXPROCS": "2", "HOME": str(data)},
            )
        return _ready(self._process, self.facts.http)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Seaweed]:
    """A server with its data in `root`, an empty folder, until the end of the block; its BUCKETS are empty."""
    for _ in range(3):
        server = Server(root, free_ports(PORTS))
        try:
            if server.start():
                yield server.facts
                return
        finally:
            server.kill()
        shutil.rmtree(root / "data")
    raise RuntimeError(f"SeaweedFS does not start; see {root}/weed.log")


def _options(data: Path, ports: list[int], host: str, keys: Path, certificate: Path, key: Path) -> dict[str, str]:
    names = ("s3.port", "s3.port.https", "s3.port.grpc", "s3.port.iceberg", "s3.port.lance", "master.port")
    names += ("master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "admin.port")
    return {name: str(port) for name, port in zip((*names, "admin.port.grpc"), ports, strict=True)} | {
        "dir": str(data),
        "ip": host,
        "ip.bind": host,
        "s3.config": str(keys),
        "s3.cert.file": str(certificate),
        "s3.key.file": str(key),
        "s3.iam": "false",
        "webdav": "false",
        "admin.ui": "false",
        "metricsPort": "0",
        "master.volumeSizeLimitMB": "64",
        "filer.localSocket": str(data / "filer.sock"),
        "s3.localSocket": str(data / "s3.sock"),
    }


def _ready(process: subprocess.Popen[bytes], endpoint: str) -> bool:
    """True once all buckets are made; False where the process has ended, or takes too long."""
    until = time.monotonic() + START_SECONDS
    wanted = list(BUCKETS)
    while wanted and process.poll() is None and time.monotonic() < until:
        try:
            status = request(endpoint, "PUT", f"/{wanted[0]}")[0]
        except OSError:
            status = 0
        if status in (200, 409):
            del wanted[0]
        else:
            time.sleep(0.05)
    return not wanted


def request(endpoint: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One signed request: status and body."""
    signed = AWSRequest(method=method, url=endpoint + path, data=body)
    S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(signed)
    with contextlib.closing(http.client.HTTPConnection(endpoint.partition("//")[2], timeout=10)) as connection:
        connection.request(method, path, body=body, headers=dict(signed.headers.items()))
        answer = connection.getresponse()
        return answer.status, answer.read()
