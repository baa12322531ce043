"""Providers that come and go beneath a mount in use, by the command: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from icnfs.errors import Exit
from tests.cli.machine import World, furnish, write_secret

pytestmark = pytest.mark.mount

BOUND = 90.0
"""Seconds after which a test gives up on what it waits for."""


@pytest.fixture
def world() -> Iterator[World]:
    """A machine of its own for each test, for each leaves other providers; the volume is created and mounted."""
    with tempfile.TemporaryDirectory(prefix="icnfs-leaving-") as root:
        made = World(Path(root))
        furnish(made)
        made.run("init", "demo")
        made.run("mount", "demo", made.directory)
        try:
            yield made
        finally:
            if made.directory.is_mount():
                made.run("umount", made.directory)  # its processes have ended then, and put nothing more


def add(world: World, name: str, *more: str, country: str = "SE", code: int = 0) -> None:
    facts = ("--owner", f"Owner {name}", "--country", country, "--parent-country", country, *more)
    world.run("provider", "add", "demo", name, f"file://{world.root}/providers/{name}", *facts, code=code)


def objects(world: World, provider: str) -> list[Path]:
    return [path for path in (world.root / "providers" / provider).rglob("*") if path.is_file()]


def listed(world: World) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in json.loads(world.run("provider", "list", "demo", "--json").stdout)}


def change(world: World, old: str, new: str) -> None:
    path = world.root / "config" / "demo.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


@contextmanager
def writing(directory: Path) -> Iterator[dict[Path, str]]:
    """Files of 300 kB are written, read back and sometimes replaced, all the while; what each holds, by path."""
    written: dict[Path, str] = {}
    failures: list[BaseException] = []
    stop = threading.Event()

    def write() -> None:
        try:
            for number in range(100_000):
                if stop.is_set():
                    return
                path, data = directory / f"file{number % 40}", os.urandom(300_000)
                path.write_bytes(data)
                assert path.read_bytes() == data
                written[path] = hashlib.sha256(data).hexdigest()
        except BaseException as failure:  # noqa: BLE001 - told by the test itself
            failures.append(failure)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        stop.set()
        writer.join()
    assert failures == []


def test_a_provider_is_drained_under_a_writer_and_the_volume_lives_on_without_it(world: World) -> None:
    with writing(world.directory) as written:
        world.run("sync", "demo")
        assert "would lose" in world.run("provider", "remove", "demo", "c", code=3).stderr
        assert "6 shares" in world.run("provider", "drain", "demo", "c", code=3).stderr
        add(world, "g")
        assert objects(world, "c")
        drained = world.run("provider", "drain", "demo", "c", "--deadline", str(BOUND))
        assert drained.stdout.endswith("nothing of the volume is left at c\n")
        assert objects(world, "c") == []
        before = len(written)
    assert before > 0
    world.run("sync", "demo")
    found = listed(world)
    assert (found["c"]["shares"], found["c"]["objection"], found["c"]["draining"]) == (0, "c is being drained", True)
    assert found["g"]["shares"] and objects(world, "c") == []
    assert world.facts("policy", "check", "demo")["breaches"] == []
    world.run("provider", "remove", "demo", "c")
    assert list(listed(world)) == list("abdefg")
    assert {provider["name"] for provider in world.facts("status", "demo")["providers"]} == set("abdefg")  # type: ignore[attr-defined]
    world.run("umount", "--drain", world.directory)
    (world.root / "state" / "demo").rename(world.root / "forgotten")
    world.run("recover", "demo")
    world.run("mount", "demo", world.directory)
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in written} == written


def test_a_drain_outlives_deadline_and_mount_and_is_taken_back(world: World) -> None:
    (world.directory / "file").write_bytes(os.urandom(1_000_000))
    world.run("sync", "demo")
    add(world, "g")
    text = (world.root / "config" / "demo.toml").read_text()
    world.run("provider", "drain", "demo", "a", "--deadline", "0.001", code=14)
    world.run("umount", world.directory)
    assert "drain = true" in (world.root / "config" / "demo.toml").read_text()
    assert "not mounted" in world.run("provider", "drain", "demo", "a", code=9).stderr
    world.run("mount", "demo", world.directory)
    assert world.facts("provider", "drain", "demo", "a", "--deadline", str(BOUND))["empty"] is True
    assert objects(world, "a") == []
    world.run("provider", "drain", "demo", "a", "--cancel")
    assert (world.root / "config" / "demo.toml").read_text() == text
    (world.directory / "more").write_bytes(os.urandom(1_000_000))
    world.run("sync", "demo")
    assert listed(world)["a"]["draining"] is False


def test_a_drain_by_hand_of_one_that_nobody_can_replace_is_named_and_taken_back(world: World) -> None:
    path = world.root / "config" / "demo.toml"
    text = path.read_text()
    path.write_text(text.replace("[provider.a]\n", "[provider.a]\ndrain = true\n"))
    assert "no longer drain a" in world.run("provider", "test", "demo", code=3).stderr
    world.run("provider", "drain", "demo", "a", "--cancel")
    assert path.read_text() == text
    assert "has no [provider.z]" in world.run("provider", "drain", "demo", "z", "--cancel", code=2).stderr


def test_an_interrupted_drain_goes_on_in_the_mount(world: World) -> None:
    (world.directory / "file").write_bytes(os.urandom(2_000_000))
    world.run("sync", "demo")
    add(world, "g", "--upload", "64KiB")  # some seconds for a share
    command = [sys.executable, "-m", "icnfs.cli", "provider", "drain", "demo", "a"]
    with subprocess.Popen(command, env=world.environment, stderr=subprocess.PIPE, text=True) as drain:
        until = time.monotonic() + BOUND
        while not listed(world)["a"]["draining"]:
            assert time.monotonic() < until
        drain.send_signal(signal.SIGINT)
        _, told = drain.communicate(timeout=BOUND)
    assert (drain.returncode, told.count("icnfs: interrupted")) == (Exit.INTERRUPTED, 1)
    while listed(world)["a"]["shares"]:
        assert time.monotonic() < until
    assert world.facts("provider", "drain", "demo", "a")["empty"] is True


def test_a_provider_added_without_a_mount_is_used_by_the_next(world: World) -> None:
    world.run("umount", world.directory)
    add(world, "g")
    assert objects(world, "g") == []
    world.run("mount", "demo", world.directory)
    (world.directory / "file").write_bytes(os.urandom(300_000))
    world.run("sync", "demo")
    assert "volume" in [path.name for path in objects(world, "g")]
    assert listed(world)["g"]["state"] == "up"


def test_a_drained_provider_that_is_gone_is_told(world: World) -> None:
    (world.directory / "file").write_bytes(os.urandom(1_000_000))
    world.run("sync", "demo")
    add(world, "g")
    (world.root / "providers" / "b").rename(world.root / "away")
    message = world.run("provider", "drain", "demo", "b", "--deadline", str(BOUND), code=18).stderr
    assert "b holds no share that is needed, but what lies there is not deleted" in message
    (world.root / "away").rename(world.root / "providers" / "b")
    assert "nothing of the volume is left at b" in world.run("provider", "drain", "demo", "b").stdout
    assert objects(world, "b") == []


def test_another_policy_is_taken_over_and_what_breaks_it_moves(world: World) -> None:
    (world.directory / "file").write_bytes(os.urandom(1_000_000))
    world.run("sync", "demo")
    for name in "gh":
        add(world, name)
    change(world, "[keys]", '[policy]\nexcluded_parents = ["FR"]\n[keys]')
    assert "policy adopt" in world.run("policy", "check", "demo").stderr
    world.run("policy", "adopt", "demo")
    until = time.monotonic() + BOUND
    while world.run("policy", "check", "demo", code=None).returncode == Exit.POLICY:
        assert time.monotonic() < until
    world.run("policy", "check", "demo")
    found = listed(world)
    assert (found["c"]["shares"], found["d"]["shares"]) == (0, 0)
    assert "excluded" in str(found["c"]["objection"])
    assert found["g"]["shares"] and found["h"]["shares"]


def test_what_takes_another_mount_is_refused_and_put_back(world: World) -> None:
    change(world, "[volume]", "[volume]\nread_deadline = 5")
    text = (world.root / "config" / "demo.toml").read_text()
    add(world, "g", code=3)
    assert (world.root / "config" / "demo.toml").read_text() == text
    assert "read_deadline" in world.run("policy", "adopt", "demo", code=3).stderr
    assert "g" not in listed(world)


def test_a_place_of_another_volume_is_refused_by_the_mount(world: World) -> None:
    other = world.root / "config" / "other.toml"
    other.write_text((world.root / "config" / "demo.toml").read_text().replace("/providers/", "/providers/x-"))
    write_secret(world.root / "config" / "other.key", bytes(range(32)))
    world.run("init", "other")
    text = (world.root / "config" / "demo.toml").read_text()
    add(world, "x-a", code=11)
    assert (world.root / "config" / "demo.toml").read_text() == text
    assert {provider["name"] for provider in world.facts("status", "demo")["providers"]} == set("abcdef")  # type: ignore[attr-defined]


def test_fsync_publishes_where_it_is_to_and_fails_where_it_cannot(world: World) -> None:
    world.run("umount", world.directory)
    change(world, "[volume]", "[volume]\nsync_deadline = 4")
    world.run("mount", "demo", world.directory, "-o", "fsync=publish")
    path = world.directory / "file"

    def synced(data: bytes) -> None:
        with open(path, "wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    synced(os.urandom(300_000))
    assert world.facts("info", path)["survives"] == 2
    assert world.facts("status", "demo")["pending"] is False
    (world.root / "providers" / "c").rename(world.root / "away")
    with pytest.raises(OSError) as caught:
        synced(b"kept")
    assert caught.value.errno == errno.EIO
    assert path.read_bytes() == b"kept"
    (world.root / "away").rename(world.root / "providers" / "c")
    world.run("sync", "demo", "--deadline", str(BOUND))
    synced(b"published")
