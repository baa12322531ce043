"""`python -m tests.acceptance.names [--count N]`: a million names, listed in pages, by every kind of provider.

A directory holds them as files; memory as objects; the bucket's pages are made up by a server on loopback, since to
store a million objects one by one would take an hour.  Prints how long the listing took and what memory it needed.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import trio

from icnfs.providers.base import Provider, list_all
from icnfs.providers.directory import DirectoryProvider
from icnfs.providers.memory import MemoryProvider
from tests.providers.hostile import Request, hostile, reply
from tests.providers.test_s3 import listing, provider_of
from tests.seaweed import write_keys


def names(count: int) -> Iterator[str]:
    """Names of the shape that shares have."""
    for number in range(count):
        digest = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=26).hexdigest()
        yield f"shares/{digest[:2]}/{digest[2:]}"


async def measure(provider: Provider, wanted: list[str]) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.monotonic()
    found = await list_all(provider, "shares/")
    took = time.monotonic() - begun
    if found != wanted:
        raise SystemExit(f"{provider.name}: {len(found)} names listed, or others than the {len(wanted)} there are")
    await provider.close()
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{provider.name:<10} {len(found):>9,} names {took:8.1f} s {more / 1024:8.0f} MiB more"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    count = parser.parse_args().count
    wanted = sorted(names(count))
    root = Path(tempfile.mkdtemp(prefix="icnfs-names-"))
    try:
        print(trio.run(measure, in_directory(root, wanted), wanted), flush=True)
        print(trio.run(measure, in_memory(wanted[: count // 10]), wanted[: count // 10]), flush=True)
        with_bucket(root, wanted)
    finally:
        shutil.rmtree(root)


def in_directory(root: Path, wanted: list[str]) -> Provider:
    place = root / "place"
    for folder in sorted({name.rpartition("/")[0] for name in wanted}):
        (place / folder).mkdir(parents=True)
    for name in wanted:
        (place / name).touch(mode=0o600)
    return DirectoryProvider("directory", place)


def in_memory(wanted: list[str]) -> Provider:
    """A tenth of them: each page looks at every name, which is good enough for a provider that only tests have."""
    provider = MemoryProvider("memory")
    provider.objects.update(dict.fromkeys(wanted, b""))
    return provider


def with_bucket(root: Path, wanted: list[str]) -> None:
    starts = {name: at for at, name in enumerate(wanted[999::1000])}

    def answer(asked: Request) -> bytes:
        last = asked.target.partition("start-after=p%2F")[2].partition("&")[0].replace("%2F", "/")
        first = 1000 * (starts[last] + 1) if last else 0
        page = wanted[first : first + 1000]
        return reply(200, listing(*(f"p/{name}" for name in page), more=first + 1000 < len(wanted)))

    with hostile(answer) as server:
        print(trio.run(measure, provider_of(server.url, write_keys(root / "keys")), wanted), flush=True)


if __name__ == "__main__":
    main()
