"""A real tree in six buckets at three real servers, one of them over TLS: written, lost here, recovered, the same.

    python -m tests.acceptance.buckets [--short] [--work FOLDER]

The tree is `realtree`'s: this Python's standard library, /usr/share/doc, and every kind of metadata.  Another client of
S3, boto3, lists what lies in the buckets: at each as many shares, under names that say nothing and that no two buckets
have in common, and nothing outside the providers' prefixes.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.acceptance.contents import differences, manifest
from tests.acceptance.harness import EVERYTHING, PROVIDERS, regular_files
from tests.acceptance.realtree import check_copy, compare, make_sources
from tests.acceptance.remote import Bucket, RemoteVolume, Say, say
from tests.seaweed import BUCKETS, Seaweed, serving

SERVERS: Final = 3
PREFIXES: Final = ("", "one", "deep/er", "volume", "x", "shares")
"""Of each provider in its bucket, awkward ones among them."""

NAMES: Final = re.compile(r"volume|slots/[0-9a-z]+|heads/[0-9a-f-]+|shares/[a-z2-7]{2}/[a-z2-7]{50}")
"""All that a provider may be asked to hold."""

ASKED: Final = 40
"""Files of which `info` is asked: the largest, and some in between."""


def place_buckets(servers: list[Seaweed]) -> dict[str, Bucket]:
    """Provider -> bucket: two at each server, those of the first over TLS."""
    found = {}
    for number, (name, prefix) in enumerate(zip(PROVIDERS, PREFIXES, strict=True)):
        server, bucket = servers[number // 2], BUCKETS[number % 2]
        if number < 2:
            found[name] = Bucket(server.https, bucket, prefix, server.ca)
        else:
            found[name] = Bucket(server.http, bucket, prefix)
    return found


def listed(place: Bucket) -> set[str]:
    """The provider's names, as boto3 lists them; fails on whatever else lies in the bucket."""
    prefix = f"{place.prefix}/" if place.prefix else ""
    keys = place.listed()
    names = {key.removeprefix(prefix) for key in keys if key.startswith(prefix)}
    assert len(names) == len(keys), f"outside its prefix: {[key for key in keys if not key.startswith(prefix)][:5]}"
    strange = [name for name in names if not NAMES.fullmatch(name)]
    assert not strange, strange[:5]
    assert "volume" in names
    return names


def segments_of(volume: RemoteVolume) -> dict[str, list[dict[str, Any]]]:
    """Segments of some of the mount's files, by id: where each share is said to be."""
    files = sorted(regular_files(volume.mountpoint), key=lambda path: path.stat().st_size, reverse=True)
    segments: dict[str, list[dict[str, Any]]] = {}
    for path in files[:: max(1, len(files) // ASKED)]:
        segments |= json.loads(volume.icnfs("info", "--json", path).stdout)["segments"]
    return segments


def check_listings(places: dict[str, Bucket], segments: dict[str, list[dict[str, Any]]]) -> int:
    """How many shares lie at each provider: one of every segment and run."""
    assert segments
    for shares in segments.values():
        assert {share["provider"] for share in shares if share["stored"]} == set(places), shares
    names = {provider: listed(place) for provider, place in places.items()}
    shares = {provider: {name for name in held if name.startswith("shares/")} for provider, held in names.items()}
    counts = {provider: len(held) for provider, held in shares.items()}
    assert len(set(counts.values())) == 1, f"not one share of each segment everywhere: {counts}"
    count = next(iter(counts.values()))
    assert count > len(segments), f"{count} shares at each, and {len(segments)} segments besides the runs"
    assert len(set().union(*shares.values())) == count * len(places), "two buckets have a share's name in common"
    heads = {provider: {name for name in held if name.startswith("heads/")} for provider, held in names.items()}
    numbers = {provider: {head[: head.rindex("-")] for head in held} for provider, held in heads.items()}
    assert all(held == numbers["paris"] and held for held in numbers.values()), heads
    assert len(set().union(*heads.values())) == sum(map(len, heads.values())), "two buckets name a head alike"
    return count


def check(work: Path, *, full: bool, say: Say) -> None:
    """Everything that the module promises, in `work`, which is left empty of processes and mounts."""
    with ExitStack() as stack:
        servers = []
        for number in range(SERVERS):
            root = work / f"server-{number}"
            root.mkdir(parents=True)
            servers.append(stack.enter_context(serving(root)))
        places = place_buckets(servers)
        urls = {name: place.url for name, place in places.items()}
        volume = stack.enter_context(RemoteVolume(work / "machine", urls))
        volume.init()
        volume.mount()
        source = make_sources(work, full=full)
        began = time.monotonic()
        check_copy(source, volume.mountpoint)
        say(f"copied and compared: {time.monotonic() - began:.1f} s")
        expected = manifest(volume.mountpoint)
        began = time.monotonic()
        volume.sync(seconds=900)
        say(f"published: {time.monotonic() - began:.1f} s")
        facts = volume.status()
        assert facts["missing_shares"] == facts["lost_shares"] == 0, facts
        segments = segments_of(volume)
        volume.umount(seconds=900)
        count = check_listings(places, segments)
        say(f"listed by boto3: {count} shares in each of {len(places)} buckets")
        _lose_and_recover(volume, work, say)
        compare(source, volume.mountpoint)
        found = differences(manifest(volume.mountpoint), expected)
        assert not found, found[:10]
        say(f"local state lost and recovered: {len(expected)} names are the same")
        volume.umount()


def _lose_and_recover(volume: RemoteVolume, work: Path, say: Say) -> None:
    """Nothing is left on this machine but the TOML and the recovery key."""
    volume.drop_state()
    volume.keyfile.unlink()
    volume.settings["keys"] = {}
    volume.write_toml()
    key = work / "recovery-key"
    key.write_text(volume.recovery_key + "\n")
    key.chmod(0o600)
    began = time.monotonic()
    volume.recover("--recovery-key-file", key, seconds=900)
    say(f"recovered: {time.monotonic() - began:.1f} s")
    volume.mount(EVERYTHING, "--recovery-key-file", key)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a part of the tree")
    parser.add_argument("--work", type=Path, default=None, help="an empty folder; default: one below /tmp")
    chosen = parser.parse_args()
    work = chosen.work or Path(tempfile.mkdtemp(prefix="icnfs-buckets-"))
    check(work, full=not chosen.short, say=say)
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
