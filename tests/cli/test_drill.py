"""`icnfs drill` on a mounted volume, by real processes: it tells the truth in its exit code, and leaves no trace."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from icnfs.cli.verb_drill import LINES_MOST
from tests.cli.machine import World, write_secret

pytestmark = pytest.mark.mount

FILES = 60


@pytest.fixture(scope="module")
def mount(world: World) -> Iterator[Path]:
    """The volume, mounted, with files of all sizes, published and safe."""
    world.run("init", "demo")
    world.run("mount", "demo", world.directory)
    (world.directory / "folder").mkdir()
    for i in range(FILES):
        (world.directory / "folder" / f"file-{i:02d}").write_bytes(os.urandom(i * 2_000))
    (world.directory / "large").write_bytes(os.urandom(40_000_000))
    world.run("sync", "demo")
    yield world.directory
    world.run("umount", "--lazy", world.directory)


def objects(world: World) -> dict[str, tuple[int, bytes]]:
    """All that providers hold, with the times when it was written."""
    found = (world.root / "providers").rglob("*")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found if path.is_file()}


def states(world: World) -> list[str]:
    return sorted(path.name for path in (world.root / "state").iterdir())


def test_nothing_would_be_lost_and_nothing_is_written(world: World, mount: Path) -> None:
    before, kept, epoch = objects(world), states(world), world.facts("status", "demo")["epoch"]
    done = world.run("drill", "demo", "--without", "a,f", "--all")
    assert done.stderr == ""
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert (lines["without"], lines["lost"]) == ("a, f", "nothing")
    assert lines["read"].startswith(f"{FILES} files, 41.5 MiB in "), "the empty one has nothing to read"
    assert "looked at" in lines and "about" in lines["recovery"]
    assert objects(world) == before
    assert states(world) == kept
    (mount / "after").write_text("the mount goes on")
    world.run("sync", "demo")
    assert world.facts("status", "demo")["epoch"] == epoch


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ((), []),
        (("--without", "b", "--without", "c"), ["b", "c"]),
        (("--country", "fr"), ["c", "d"]),
        (("--country", "NL", "--country", "FI"), ["e", "f"]),
        (("--owner", "Owner a", "--without", "f"), ["a", "f"]),
    ],
)
def test_providers_are_named_one_by_one_by_country_and_by_owner(
    world: World, mount: Path, options: tuple[str, ...], without: list[str]
) -> None:
    facts = world.facts("drill", "demo", *options, "--sample", "5", "--seed", "7")
    assert facts["without"] == without and facts["lossless"] is True and facts["read_files"] == 5
    assert facts["seed"] == 7 and facts["fetched_bytes"] > facts["read_bytes"] > 0  # type: ignore[operator]


def test_every_pair_is_tried(world: World, mount: Path) -> None:
    facts = world.facts("drill", "demo", "--any", "2", "--sample", "5")
    assert len(facts["trials"]) == 15 and facts["lossless"] is True  # type: ignore[arg-type]
    assert "15 tried, 0 of them" in world.run("drill", "demo", "--any", "2", "--sample", "0").stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--without", "a,z"), "--without z: no such provider; there are a, b, c"),
        (("--country", "XX"), "--country XX: no provider of the volume is there; there are DE, FI, FR, NL"),
        (("--owner", "Nobody"), "--owner Nobody: no provider of the volume is theirs; there are Owner a"),
        (("--all", "--sample", "3"), "--all reads every file"),
        (("--any", "7"), "--any 7: there are only 6 providers to choose from"),
    ],
)
def test_what_does_not_exist_is_refused(world: World, mount: Path, options: tuple[str, ...], said: str) -> None:
    assert said in world.run("drill", "demo", *options, code=2).stderr


def test_too_many_lost_are_another_failure_than_lost_files(world: World, mount: Path) -> None:
    assert "4 providers are needed" in world.run("drill", "demo", "--country", "FR", "--without", "a", code=10).stderr
    assert "20 tried, 20 of them" in world.run("drill", "demo", "--any", "3", code=10).stdout


def test_a_wrong_secret_opens_nothing(world: World, mount: Path) -> None:
    wrong = write_secret(world.root / "wrong", b"w" * 32)
    assert "does not open" in world.run("drill", "demo", "--keyfile", wrong, code=4).stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_and_leaves_nothing(world: World, mount: Path, number: signal.Signals) -> None:
    before, kept = objects(world), states(world)
    command = [sys.executable, "-m", "icnfs.cli", "drill", "demo", "--all", "--any", "2"]
    with subprocess.Popen(
        command, env=world.environment, cwd=world.root, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        scratch = world.root / "state" / "demo.drill"
        handle = os.pidfd_open(process.pid)
        while not scratch.exists():
            assert not select.select([handle], [], [], 0.01)[0], "it ended before it could be interrupted"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        os.close(handle)
    assert process.returncode == 130
    assert said == "icnfs: interrupted; the drill left nothing behind, call it again\n"
    assert states(world) == kept and objects(world) == before


def test_lost_files_are_listed_up_to_a_point(world: World, mount: Path) -> None:
    """The last: it harms the volume for good."""
    for name in "abc":
        for path in (world.root / "providers" / name / "shares").rglob("*"):
            if path.is_file() and path.stat().st_size > 200_000:
                path.unlink()
    done = world.run("drill", "demo", "--all", code=15)
    lost = [line for line in done.stdout.splitlines() if line.startswith("lost: /")]
    assert 0 < len(lost) <= LINES_MOST
    facts = world.facts("drill", "demo", "--all", code=15)
    paths = [file["path"] for file in facts["lost_files"]]  # type: ignore[attr-defined]
    assert "/large" in paths and len(paths) >= len(lost)
    assert f"{len(paths)} files of volume demo would be lost" in done.stderr
    assert all(Path(path).parent.as_posix() in ("/", "/folder") for path in paths)
    assert {line.split()[1].rstrip(":") for line in facts["wrong_shares"]} == {"a", "b", "c"}  # type: ignore[attr-defined]
