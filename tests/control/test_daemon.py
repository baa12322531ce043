"""Daemons are real processes here: each test forks from a fresh interpreter, as the verb does."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, sys, time
from icnfs.control.daemon import in_background
from icnfs.errors import *
{body}
try:
    in_background(work)
    print(json.dumps([0, "live"]))
except IcnfsError as error:
    print(json.dumps([int(error.exit_code), str(error)]))
"""


def launch(body: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcome(body: str) -> tuple[list[object], str]:
    out, err = launch(body).communicate(timeout=60)
    return json.loads(out), err


def wait_gone(pid: int) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 20)[0])
    finally:
        os.close(handle)


def test_parent_returns_when_live_and_the_daemon_lives_on(tmp_path: Path) -> None:
    facts = tmp_path / "facts"
    body = f"""
inherited = os.dup2(0, 77)
def work(ready):
    held = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in (0, 1, 2)]
    try:
        os.fstat(inherited)
        held.append("inherited")
    except OSError:
        pass
    doc = [os.getpid(), os.getsid(0), os.getcwd(), held]
    with open({str(facts)!r}, "w") as file:
        json.dump(doc, file)
    ready.live()
    time.sleep(60)
"""
    result, err = outcome(body)
    assert (result, err) == ([0, "live"], "")
    pid, session, cwd, held = json.loads(facts.read_text())
    os.kill(pid, signal.SIGKILL)
    assert session != os.getsid(0)
    assert session != pid, "a session leader could acquire a terminal"
    assert cwd == "/"
    assert held == ["/dev/null"] * 3


def test_the_daemons_error_and_exit_code_are_relayed() -> None:
    body = """
def work(ready):
    ready.failed(SecretError("the passphrase opens no key slot"))
    return 4
"""
    assert outcome(body)[0] == [4, "the passphrase opens no key slot"]


def test_a_daemon_that_dies_unheard_is_a_failure() -> None:
    body = """
def work(ready):
    os.kill(os.getpid(), 9)
"""
    code, message = outcome(body)[0]
    assert code == 1
    assert "died before the mount was live" in str(message)


def test_a_long_error_is_cut_not_lost() -> None:
    body = """
def work(ready):
    ready.failed(ConfigError("x" * 100000))
    return 3
"""
    code, message = outcome(body)[0]
    assert code == 3
    assert str(message).startswith("xxx")


def test_ctrl_c_before_the_mount_is_live_ends_the_daemon(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    body = f"""
def work(ready):
    with open({str(tmp_path / "pid")!r}, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
"""
    parent = launch(body)
    pid = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGINT)
    out, _ = parent.communicate(timeout=60)
    assert json.loads(out)[0] == 130
    assert wait_gone(pid)
