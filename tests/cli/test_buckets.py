"""The whole over six buckets at three real servers, one of them over TLS: by the command, as a user drives it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from icnfs.errors import Exit
from tests.cli.machine import COUNTRIES, World, write_secret
from tests.seaweed import ACCESS_KEY, SECRET_KEY, Seaweed, serving, write_keys

pytestmark = pytest.mark.mount

PREFIXES = {"a": "one", "b": "one", "c": "", "d": "deep/er", "e": "volume", "f": "x"}
"""Of each provider; a and b share a server and lie in different buckets, as c and d, e and f do."""


@pytest.fixture(scope="module")
def servers(seaweed: Seaweed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Seaweed]]:
    with ExitStack() as stack:
        others = [stack.enter_context(serving(tmp_path_factory.mktemp("seaweed"))) for _ in range(2)]
        yield [*others, seaweed]


def places(servers: list[Seaweed]) -> dict[str, tuple[Seaweed, str, str, bool]]:
    """Provider -> server, bucket, prefix, and whether over TLS."""
    return {
        name: (servers[i // 2], ("beta", "gamma")[i % 2], f"{prefix}", i < 2)
        for i, (name, prefix) in enumerate(PREFIXES.items())
    }


def furnish_buckets(world: World, servers: list[Seaweed]) -> None:
    write_keys(world.root / "config" / "s3.keys")
    lines = ["[volume]", 'code = "4-of-6"', "[keys]", 'keyfile = "demo.key"']
    for (name, place), country in zip(places(servers).items(), COUNTRIES, strict=True):
        server, bucket, prefix, tls = place
        lines += [f"[provider.{name}]", f'url = "{server.url(bucket, prefix, tls=tls)}"', f'owner = "Owner {name}"']
        lines += ['credentials = "s3.keys"', f'parent_country = "{country}"', f'country = "{country}"']
    (world.root / "config" / "demo.toml").write_text("\n".join(lines))


def digests(tree: Path) -> dict[str, str]:
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }


def shares_at(place: tuple[Seaweed, str, str, bool]) -> list[str]:
    """What another client of S3 lists there."""
    server, bucket, prefix, tls = place
    client = boto3.client(
        "s3",
        endpoint_url=server.https if tls else server.http,
        verify=str(server.ca) if tls else None,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}, proxies={}),
    )
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [found["Key"].removeprefix(f"{prefix}/") for page in pages for found in page.get("Contents", [])]
    finally:
        client.close()


def test_volume_lives_in_buckets_and_comes_back_from_them(world: World, servers: list[Seaweed]) -> None:
    furnish_buckets(world, servers)
    key = world.facts("init", "demo")["recovery_key"]
    world.run("mount", "demo", world.directory)
    tree = world.directory / "tree"
    (tree / "sub").mkdir(parents=True)
    for i, size in enumerate((0, 1, 5_000, 300_000, 9_000_000)):
        (tree / "sub" / f"{i}").write_bytes(os.urandom(size))
    for i in range(200):
        (tree / f"small{i}").write_bytes(os.urandom(i))
    before = digests(tree)
    world.run("sync", "demo")
    _try_providers(world)
    states = world.facts("status", "demo")["providers"]
    assert isinstance(states, list) and all(state["state"] == "up" for state in states)
    transfer = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"icnfs.transfer" in _bytes(path)]
    assert transfer and not any(SECRET_KEY.encode() in _bytes(path.parent / "environ") for path in transfer)
    world.run("umount", world.directory)

    for place in places(servers).values():
        listed = shares_at(place)
        assert (
            "volume" in listed
            and not any(name.startswith("trial/") for name in listed)
            and any(name.startswith("shares/") for name in listed)
        )
    shutil.rmtree(world.root / "state")
    (world.root / "state").mkdir(mode=0o700)
    secret = write_secret(world.root / "recovery", str(key).encode())
    world.run("recover", "demo", "--recovery-key-file", secret)
    world.run("mount", "demo", world.directory)
    os.kill(servers[0].pid, signal.SIGSTOP)  # two of the six providers hang
    try:
        assert digests(tree) == before
    finally:
        os.kill(servers[0].pid, signal.SIGCONT)
    _replace_a_bucket(world, servers)
    assert digests(tree) == before
    world.run("umount", world.directory)


def _replace_a_bucket(world: World, servers: list[Seaweed]) -> None:
    """One of the buckets is drained into a new one, tried out and added beside the mount."""
    facts = ("--owner", "Owner g", "--country", "SE", "--parent-country", "SE")
    keys = ("--credentials", "config/s3.keys", "--upload", "200MB")
    added = world.facts("provider", "add", "demo", "g", servers[2].url("beta", "seventh", tls=False), *facts, *keys)
    assert (added["mounted"], added["trial"]["conditional_writes"]) == (True, True)  # type: ignore[index]
    assert "nothing of the volume is left at a" in world.run("provider", "drain", "demo", "a").stdout
    assert shares_at(places(servers)["a"]) == []
    assert any(name.startswith("shares/") for name in shares_at((servers[2], "beta", "seventh", False)))
    world.run("provider", "remove", "demo", "a")


def _try_providers(world: World) -> None:
    """The trial beside the mount: all are well and know conditional writes; nothing of it stays."""
    reports = json.loads(world.run("provider", "test", "demo", "--json").stdout)
    assert [report["provider"] for report in reports] == list(PREFIXES)
    for report in reports:
        assert report["error"] == "" and report["conditional_writes"] is True
        assert report["latency_s"] > 0 and report["write_rate"] > 0 and report["read_rate"] > 0
    assert "conditional writes" in world.run("provider", "test", "demo", "c").stdout
    keys = world.root / "config" / "s3.keys"
    keys.chmod(0o644)
    failed = world.run("provider", "test", "demo", "a", "b", code=Exit.PROVIDER)
    assert "chmod 600" in failed.stderr and "1 more of 2 fail" in failed.stderr
    keys.chmod(0o600)
    world.run("provider", "test", "demo", "nobody", code=Exit.USAGE)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
