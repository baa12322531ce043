"""`packaging/setup` says what went wrong, and lets nobody else work while something that it began still does.

Its stand-ins for Debian's programs are scripts: nothing is installed here.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Debian:
    """A machine on which no package is installed, and whose apt-get is a script."""

    programs: Path

    def begin(self, apt_get: str) -> subprocess.Popen[str]:
        """The set-up, in a session of its own, with `apt_get` for apt-get; where tests run in a shell's background, an
        interrupt would be ignored."""
        for name, body in {"apt-get": apt_get, "dpkg-query": "exit 1", "id": "echo 0"}.items():
            (self.programs / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.programs / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{self.programs}:{os.environ['PATH']}", "ICNFS_NO_APT": "0"}
        command = ["env", "--default-signal=INT", ROOT / "packaging/setup"]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture
def debian(tmp_path: Path) -> Debian:
    return Debian(tmp_path)


def free(seconds: int) -> bool:
    """Whether another set-up can begin within `seconds`; other tests' have the lock for moments."""
    done = subprocess.run(["flock", "--timeout", str(seconds), ROOT / "packaging/setup", "true"], check=False)
    return done.returncode == 0


def test_packages_that_apt_get_left_out_are_named(debian: Debian) -> None:
    with debian.begin("exit 0") as setup:
        _, said = setup.communicate(timeout=60)
    assert setup.returncode == 1
    last = said.splitlines()[-1]
    assert "python3-venv" in last and "still missing" in last


def test_without_packages_to_be_had_the_network_is_named(debian: Debian) -> None:
    with debian.begin('case "$*" in *install*) echo "E: Unable to locate package gcc"; exit 100;; esac') as setup:
        _, said = setup.communicate(timeout=60)
    assert setup.returncode == 1
    assert "Unable to locate package" in said and "check the network" in said.splitlines()[-1]


def test_an_interrupt_takes_effect_and_frees_the_lock_once_apt_get_has_ended(debian: Debian, tmp_path: Path) -> None:
    for name in ("begun", "go on"):
        os.mkfifo(tmp_path / name)
    with debian.begin(f"trap '' INT; echo >'{tmp_path}/begun'; read -r _ <'{tmp_path}/go on'; exit 0") as setup:
        (tmp_path / "begun").read_text()
        os.killpg(setup.pid, signal.SIGINT)
        assert not free(0)
        (tmp_path / "go on").write_text("\n")
        _, said = setup.communicate(timeout=60)
    assert setup.returncode == 130
    assert said.splitlines()[-1] == "icnfs setup: interrupted; run it again to go on"
    assert free(60)


def test_what_apt_get_does_after_its_set_up_was_killed_is_waited_for(debian: Debian, tmp_path: Path) -> None:
    for name in ("begun", "go on", "done"):
        os.mkfifo(tmp_path / name)
    script = f"echo >'{tmp_path}/begun'; read -r _ <'{tmp_path}/go on'; exec 9<&-; echo >'{tmp_path}/done'"
    with debian.begin(script) as setup:
        (tmp_path / "begun").read_text()
        setup.kill()
        setup.wait()
        assert not free(0)
        (tmp_path / "go on").write_text("\n")
        (tmp_path / "done").read_text()
        assert free(60)


def test_help_of_the_tests_sets_nothing_up() -> None:
    done = subprocess.run([ROOT / "packaging/test", "--help"], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("packaging/test [PYTEST-ARGUMENT...]: ")
    assert "== " not in done.stdout
