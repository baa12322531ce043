"""A volume over buckets: the same machine as `harness.Volume`, its providers named by url."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from tests.acceptance.harness import PROVIDERS, Settings, Volume
from tests.seaweed import ACCESS_KEY, SECRET_KEY, write_keys

SEVENTH: Final = "vilnius"
FACTS: Final = PROVIDERS | {SEVENTH: ("Neris Duomenys UAB", "LT", "LT", "Vilnius")}


@dataclass(frozen=True)
class Bucket:
    """One provider's place: a bucket at an endpoint, and the prefix in it; `ca` for TLS."""

    endpoint: str
    bucket: str
    prefix: str = ""
    ca: Path | None = None

    @property
    def url(self) -> str:
        ca = f"&ca={self.ca}" if self.ca else ""
        return f"s3://{self.bucket}/{self.prefix}?endpoint={self.endpoint}{ca}"

    def listed(self) -> list[str]:
        """What boto3 lists of the bucket, all of it, whatever the prefix."""
        with self.client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
            return [str(found["Key"]) for page in pages for found in page.get("Contents", [])]

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """boto3, another client than the product's."""
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            verify=str(self.ca) if self.ca else None,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, proxies={}, retries={"max_attempts": 3}),
        )
        try:
            yield client
        finally:
            client.close()


class RemoteVolume(Volume):
    """One machine's view of one volume over urls."""

    def __init__(self, root: Path, urls: Mapping[str, str], *, settings: Settings | None = None) -> None:
        self.urls = dict(urls)
        self.more: dict[str, dict[str, str | int | float | bool]] = {}
        """Keys of single providers' tables beside those that all have; `write_toml` writes them."""
        super().__init__(root, settings=settings, providers={name: Path(name) for name in urls})
        write_keys(self.config_dir / "s3.keys")

    def provider_facts(self, provider: str) -> dict[str, str | int | float]:
        owner, parent, country, site = FACTS[provider]
        facts: dict[str, str | int | float] = {"url": self.urls[provider], "owner": owner, "parent_country": parent}
        facts |= {"country": country, "site": site, "eur_per_tb_month": 6.0}
        if self.urls[provider].startswith("s3:"):
            facts["credentials"] = "s3.keys"
        return facts | self.more.get(provider, {})

    def make_places(self) -> None:
        """Buckets are there already; directories are made."""
        for url in self.urls.values():
            if url.startswith("file:"):
                Path(urlsplit(url).path).mkdir(parents=True, exist_ok=True)


class Processor:
    """Processor seconds that processes have used since it was made, under names of ours."""

    def __init__(self, pids: Mapping[str, list[int] | int | None]) -> None:
        self._pids = {name: [pid] if isinstance(pid, int) else pid or [] for name, pid in pids.items()}
        self._before = self._now()

    def used(self) -> dict[str, float]:
        return {name: now - self._before[name] for name, now in self._now().items()}

    def _now(self) -> dict[str, float]:
        return {name: sum(map(_seconds, pids)) for name, pids in self._pids.items()}


def _seconds(pid: int) -> float:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / float(os.sysconf("SC_CLK_TCK"))


def resident(pid: int | None) -> int:
    """Bytes of memory of a process that no file backs: what it has taken for itself; 0 where there is none."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    wanted = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(wanted))


Say = Callable[[str], None]


def say(line: str) -> None:
    print(line, flush=True)
