"""A hardened process dumps no core and keeps no secret in its environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from icnfs.crypto.hardening import OVER_FILES

CANARY = "canary-in-environment"


def run_hardened(script: str, **environment: str) -> str:
    """Run a script in a process of its own: hardening cannot be undone in this one."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


def test_a_hardened_process_is_not_dumpable() -> None:
    script = """
import ctypes, resource
from icnfs.crypto.hardening import forbid_core_dumps
forbid_core_dumps()
PR_GET_DUMPABLE = 3
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))
"""
    assert run_hardened(script) == "(0, 0) 0"


def test_secrets_vanish_from_the_environment_and_from_proc() -> None:
    script = """
import os
from icnfs.crypto.hardening import drop_secrets_from_environment
before = open("/proc/self/environ").read()
drop_secrets_from_environment()
after = open("/proc/self/environ").read()
print("canary" in before, "canary" in after, "ICNFS_PASSPHRASE" in os.environ, os.environ["ICNFS_KEPT"])
"""
    shown = run_hardened(script, ICNFS_PASSPHRASE=CANARY, ICNFS_RECOVERY_KEY=CANARY, ICNFS_KEPT="kept")
    assert shown == "True False False kept"


def test_a_secret_set_by_the_process_itself_is_dropped_from_what_children_get() -> None:
    script = """
import os, subprocess
from icnfs.crypto.hardening import drop_secrets_from_environment
os.environ["OTHER_SECRET"] = "canary"
drop_secrets_from_environment(["OTHER_SECRET", "NOT_SET"])
print("canary" in subprocess.run(["/usr/bin/env"], capture_output=True, text=True).stdout)
"""
    assert run_hardened(script) == "False"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
def test_who_gave_up_privileges_cannot_trace_who_dumps_no_core_nor_get_them_back() -> None:
    script = """
import os, subprocess, sys
from icnfs.crypto.hardening import forbid_core_dumps, give_up_privileges
reader, writer = os.pipe()
again, end = os.pipe()
secretive = os.fork()
if not secretive:
    forbid_core_dumps()
    os.write(writer, b"x")
    os.read(again, 1)
    os._exit(0)
os.read(reader, 1)
def memory():
    try:
        open(f"/proc/{secretive}/mem", "rb").close()
        return "open"
    except PermissionError:
        return "denied"
before = memory()
give_up_privileges()
executed = subprocess.run(["grep", "CapEff", "/proc/self/status"], capture_output=True, text=True).stdout.split()[1]
print(before, memory(), executed)
os.write(end, b'x')
"""
    before, after, executed = run_hardened(script).split()
    assert (before, after, int(executed, 16) & ~OVER_FILES) == ("open", "denied", 0)
