"""Verbs that need no mount: init, recover, keys, status; what they refuse, and that they refuse it whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icnfs.volume.keyring import Keyring
from tests.cli.machine import World, write_secret

KEY = re.compile(r"([0-9A-Z]{6}-){5}[0-9A-Z]{6}\n")


@pytest.fixture(scope="module")
def recovery(world: World) -> Path:
    """The volume, created; a file with its recovery key."""
    done = world.run("init", "demo")
    assert KEY.fullmatch(done.stdout), "the recovery key alone goes to stdout"
    return write_secret(world.root / "recovery", done.stdout.encode())


def keys(world: World) -> list[list[str]]:
    lines = world.run("key", "list", "demo").stdout.splitlines()
    return [line.split("\t") for line in lines[1:]]


def test_init_makes_a_state_and_slots_for_it_alone(world: World, recovery: Path) -> None:
    state = world.root / "state" / "demo"
    assert state.stat().st_mode & 0o077 == 0
    assert [(row[1], row[4]) for row in keys(world)] == [("recovery", "6 of 6"), ("keyfile", "6 of 6")]


def test_a_second_init_changes_nothing(world: World, recovery: Path) -> None:
    assert "overwrite" in world.run("init", "demo", code=6).stderr


def test_a_volume_without_a_toml_is_told_so(world: World) -> None:
    for verb in (("init",), ("status",), ("recover",), ("key", "list")):
        assert "icnfs.toml(5)" in world.run(*verb, "nobody", code=5).stderr
    assert "nobody.toml" in world.run("mount", "nobody", world.directory, code=5).stderr


def test_a_typo_in_the_toml_names_file_key_and_remedy(world: World) -> None:
    typo = world.root / "config" / "typo.toml"
    typo.write_text((world.root / "config" / "demo.toml").read_text().replace("code =", "cod ="))
    for arguments in (("init", "typo"), ("mount", "typo", str(world.directory)), ("recover", "typo")):
        message = world.run(*arguments, code=3).stderr
        assert f"{typo}: volume.cod: unknown key; did you mean code?" in message
    typo.unlink()


def test_status_of_a_volume_that_is_not_mounted_says_where_it_is(world: World, recovery: Path) -> None:
    assert world.facts("status", "demo", code=9) == {"name": "demo", "mounted": False, "here": True}
    assert "not mounted" not in world.run("status").stdout
    assert "mounted: no (on this machine)" in world.run("status").stdout


def test_status_names_a_toml_that_cannot_be_used(world: World, recovery: Path) -> None:
    broken = world.root / "config" / "broken.toml"
    broken.write_text("[volume")
    done = world.run("status", code=3)
    assert f"icnfs: {broken}: not TOML" in done.stderr and "volume: demo" in done.stdout
    assert str(broken) in world.run("status", "broken", code=3).stderr
    broken.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's place")
def test_status_over_folders_that_this_user_may_not_see_is_one_line(world: World, recovery: Path) -> None:
    script = "import os, sys; os.setuid(65534); from icnfs.cli import app; app.main(sys.argv[1:])"

    def status(closed: Path) -> subprocess.CompletedProcess[str]:
        closed.chmod(0o700)
        command = [sys.executable, "-c", script, "status"]
        return subprocess.run(command, env=world.environment, capture_output=True, text=True, check=False)

    world.root.chmod(0o755)
    (world.root / "config").chmod(0o755)
    done = status(world.root / "state")
    assert (done.returncode, done.stderr) == (0, "")
    assert "this user may not see" in done.stdout
    done = status(world.root / "config")
    assert done.returncode == 3 and "Permission denied; name a folder" in done.stderr
    world.root.chmod(0o700)


def test_keys_are_added_listed_and_removed(world: World, recovery: Path) -> None:
    passphrase = write_secret(world.root / "pw", b"another way in\n")
    world.run("key", "add", "demo", "--new-passphrase-file", passphrase, "--label", "on paper")
    identifier = next(row[0] for row in keys(world) if row[1:3] == ["passphrase", "on paper"])
    world.run("key", "remove", "demo", identifier)
    assert identifier not in [row[0] for row in keys(world)]
    assert "has no key" in world.run("key", "remove", "demo", identifier, code=2).stderr


def test_the_last_key_that_providers_hold_goes_only_with_yes_and_the_last_of_all_never(
    world: World, recovery: Path
) -> None:
    ring = world.root / "state" / "demo" / "slots"
    whole = ring.read_bytes()
    passphrase = write_secret(world.root / "here", b"on this machine only\n")
    world.run("key", "add", "demo", "--new-passphrase-file", passphrase)
    for row in keys(world):
        if row[1] == "keyfile":
            world.run("key", "remove", "demo", row[0])
    last = next(row[0] for row in keys(world) if row[1] == "recovery")
    refused = world.run("key", "remove", "demo", last, code=2).stderr
    assert "only one that providers hold" in refused
    assert "--yes" in refused
    world.run("key", "remove", "demo", last, "--yes")
    (left,) = keys(world)
    assert "is the last that opens the volume" in world.run("key", "remove", "demo", left[0], "--yes", code=2).stderr
    ring.write_bytes(whole)


def test_slots_at_providers_that_left_the_toml_count_for_nothing(world: World, recovery: Path) -> None:
    """So the last key that others hold is told as such, though a copy of another is remembered."""
    ring = world.root / "state" / "demo" / "slots"
    keyring = Keyring.load(ring.parent)
    there, elsewhere = keyring.entries()
    for name in list(elsewhere.copies):
        elsewhere.copies[f"old-{name}"] = elsewhere.copies.pop(name)
    before = ring.read_bytes()
    keyring.save()
    try:
        rows = {row[0]: row[4] for row in keys(world)}
        assert rows == {there.id: "6 of 6", elsewhere.id: "0 of 6"}
        assert "only one that providers hold" in world.run("key", "remove", "demo", there.id, code=2).stderr
    finally:
        ring.write_bytes(before)


def test_a_new_recovery_key_is_printed_once_and_opens(world: World, recovery: Path) -> None:
    done = world.run("key", "add", "demo", "--new-recovery-key", "--recovery-key-file", recovery)
    assert KEY.fullmatch(done.stdout)
    path = write_secret(world.root / "second", done.stdout.encode())
    world.run("key", "add", "demo", "--new-recovery-key", "--recovery-key-file", path)


def test_a_recovery_key_that_stdout_does_not_take_is_said_to_be_lost(world: World, recovery: Path) -> None:
    before = keys(world)
    for options in ((), ("--json",)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "icnfs.cli", "key", "add", "demo", "--new-recovery-key", *options],
                check=False,
                env=world.environment,
                stdin=subprocess.DEVNULL,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert done.returncode == 1
        (added,) = [row[0] for row in keys(world) if row not in before]
        assert f"No space left on device): nobody knows key {added}; remove it by" in done.stderr
        world.run("key", "remove", "demo", added)
    assert keys(world) == before


def test_adding_a_key_takes_one_that_opens(world: World, recovery: Path) -> None:
    wrong = write_secret(world.root / "wrong", b"w" * 32)
    before = keys(world)
    done = world.run("key", "add", "demo", "--new-recovery-key", "--keyfile", wrong, code=4)
    assert done.stdout == ""
    assert keys(world) == before


def test_two_new_keys_at_once_are_refused(world: World, recovery: Path) -> None:
    done = world.run("key", "add", "demo", "--new-recovery-key", "--new-keyfile", recovery, code=2)
    assert "one key at a time" in done.stderr


def test_recover_needs_nothing_but_toml_and_recovery_key(world: World, recovery: Path) -> None:
    shutil.rmtree(world.root / "state" / "demo")
    for name in "ab":
        (world.root / "providers" / name).rename(world.root / f"away-{name}")
    facts = world.facts("recover", "demo", "--recovery-key-file", recovery)
    assert facts["epoch"] == 1
    assert "overwrite" in world.run("recover", "demo", code=6).stderr
    for name in "ab":
        (world.root / f"away-{name}").rename(world.root / "providers" / name)


def test_recover_refuses_whole_and_says_why(world: World, recovery: Path) -> None:
    shutil.rmtree(world.root / "state" / "demo")
    assert "--at-least" in world.run("recover", "demo", "--at-least", "99", code=16).stderr
    wrong = write_secret(world.root / "wrong", b"w" * 32)
    world.run("recover", "demo", "--keyfile", wrong, code=4)
    for name in "abc":
        (world.root / "providers" / name).rename(world.root / f"away-{name}")
    message = world.run("recover", "demo", code=10).stderr
    assert all(name in message for name in ("missing", "a", "b", "c"))
    for name in "abc":
        (world.root / f"away-{name}").rename(world.root / "providers" / name)
    assert not (world.root / "state" / "demo").exists()
    world.run("recover", "demo")
