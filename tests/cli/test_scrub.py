"""`icnfs scrub` on a mounted volume, by real processes: it finds what is bad, tells the truth, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from icnfs.cli.output import size
from icnfs.format import share as share_format
from tests.cli.machine import World

pytestmark = pytest.mark.mount

SIZE = 20_000_000


@pytest.fixture(scope="module")
def mount(world: World) -> Iterator[Path]:
    """The volume, mounted, with files of three publishes, safe."""
    world.run("init", "demo")
    world.run("mount", "demo", world.directory)
    for number in range(3):
        (world.directory / f"file-{number}").write_bytes(os.urandom(SIZE >> 4 * number))
        world.run("sync", "demo")
    yield world.directory
    world.run("umount", "--lazy", world.directory)


def shares(world: World, provider: str) -> list[Path]:
    """A provider's shares, the largest first."""
    found = (world.root / "providers" / provider / "shares").rglob("*")
    return sorted((path for path in found if path.is_file()), key=lambda path: (-path.stat().st_size, path))


def scrubbed(world: World, *options: str, code: int = 0) -> dict[str, Any]:
    return world.facts("scrub", "demo", *options, code=code)


@pytest.mark.parametrize("options", [(), ("--full",), ("--full", "--rate", "100")])
def test_a_sound_volume_is_good_and_nothing_but_facts_is_said(
    world: World, mount: Path, options: tuple[str, ...]
) -> None:
    facts = scrubbed(world, *options)
    stored = {provider: len(shares(world, provider)) for provider in "abcdef"}
    assert facts["good"] is True and facts["full"] == ("--full" in options)
    for provider, count in stored.items():
        present = facts["counts"][provider]
        assert present.keys() == {"present"} and 0 < present["present"] <= count
    assert (facts["read_bytes"] > SIZE * 6 / 4) == ("--full" in options)
    done = world.run("scrub", "demo", *options)
    assert done.stderr == "" and "are what was stored" in done.stdout


def test_a_flipped_and_a_removed_share_are_named_and_restored(world: World, mount: Path) -> None:
    altered, removed = shares(world, "b")[0], shares(world, "e")[1]
    kept = {altered: altered.read_bytes(), removed: removed.read_bytes()}
    altered.write_bytes(kept[altered][:-1] + bytes([kept[altered][-1] ^ 1]))
    removed.unlink()
    done = world.run("scrub", "demo", "--full", code=15)
    assert "2 shares are missing or altered; they are restored by the mount" in done.stderr
    rows = {row[0]: row for row in (line.split("\t") for line in done.stdout.splitlines()) if len(row) == 7}
    head = rows.pop("provider")
    found = {name: dict(zip(head, row, strict=True)) for name, row in rows.items()}
    assert found["b"]["altered"] == "1" and found["e"]["missing"] == "1"
    assert sum(int(row["altered"]) + int(row["missing"]) for row in found.values()) == 2
    world.run("sync", "demo")
    assert {path: path.read_bytes() for path in kept} == kept
    assert scrubbed(world, "--full")["good"] is True


def test_a_provider_that_is_down_is_not_counted_as_verified(world: World, mount: Path) -> None:
    place = world.root / "providers" / "c"
    place.rename(place.with_name("gone"))
    try:
        done = world.run("scrub", "demo", code=14)
        assert "c did not answer: call it again when they are back" in done.stderr
    finally:
        place.with_name("gone").rename(place)
    world.run("sync", "demo")
    assert scrubbed(world)["good"] is True


def slow_one(world: World) -> subprocess.Popen[str]:
    """One that is under way and takes long: another is refused, which had better not be so early that it is not."""
    command = [sys.executable, "-m", "icnfs.cli", "scrub", "demo", "--full", "--rate", "0.2"]
    while True:
        process = subprocess.Popen(
            command, env=world.environment, cwd=world.root, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while process.poll() is None:
            if "already" in world.run("scrub", "demo", code=None).stderr:
                return process
        assert "already" in process.communicate()[1]


def test_orphans_and_foreign_objects_are_told_and_not_deleted_at_once(world: World, mount: Path) -> None:
    place = world.root / "providers" / "d"
    orphan, foreign = place / "shares" / "zz" / ("q" * 50), place / "shares" / "zz" / ("r" * 50)
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(share_format.pack(b"x" * 100_000)[0])
    foreign.write_bytes(b"no share, though it is called like one")
    (place / "holiday.jpg").write_bytes(b"x" * 1000)
    done = world.run("scrub", "demo")
    sizes = f"1\t{size(orphan.stat().st_size)}\t2\t{size(1000 + foreign.stat().st_size)}"
    assert f"d\t{sizes}\tholiday.jpg, shares/zz/{'r' * 50}" in done.stdout
    assert "`icnfs scrub --orphans demo` deletes" in done.stderr
    done = world.run("scrub", "--orphans", "demo")
    assert sizes in done.stdout and "deleted: 0 orphans" in done.stdout
    assert "1 more may go once a run has found them 24 h after another" in done.stderr
    facts = world.facts("scrub", "demo", "--orphans")["providers"]
    assert isinstance(facts, dict)
    assert {name: (there["orphans"], there["foreign"], there["waiting"]) for name, there in facts.items()} == {
        name: (1, 2, 1) if name == "d" else (0, 0, 0) for name in "abcdef"
    }
    assert orphan.exists() and foreign.exists()
    assert "leave out --full" in world.run("scrub", "demo", "--orphans", "--full", code=2).stderr
    for path in (orphan, foreign, place / "holiday.jpg"):
        path.unlink()
    assert "orphans" not in world.run("scrub", "demo").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_one_goes_on_and_only_one_runs_at_a_time(
    world: World, mount: Path, number: signal.Signals
) -> None:
    with slow_one(world) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "icnfs: interrupted; what was verified is kept, call it again to go on\n"
    while (done := world.run("scrub", "demo", "--full", "--json", code=None)).returncode == 2:
        pass  # the mount has not noticed yet that nobody waits for the first
    assert '"resumed": true' in done.stdout and '"good": true' in done.stdout
    assert scrubbed(world, "--full", "--restart")["resumed"] is False


def test_it_takes_a_mount(world: World, mount: Path) -> None:
    """The last: it unmounts."""
    world.run("umount", "--drain", world.directory)
    assert "only a mount scrubs" in world.run("scrub", "demo", code=9).stderr
    world.run("mount", "demo", world.directory)
