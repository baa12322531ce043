"""The verbs around a mount, by real processes: live on return, safe to end in every way, one clear line otherwise."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from icnfs.cli.app import icnfs
from icnfs.control import client
from icnfs.control.mounts import mounted
from icnfs.errors import NotMountedError
from tests.cli.machine import World

pytestmark = [pytest.mark.mount, pytest.mark.usefixtures("volume")]


def is_mounted(world: World) -> bool:
    return any(each.point == world.directory for each in mounted())


def wait_gone(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 60)[0]
    finally:
        os.close(handle)


def test_a_mount_is_live_when_the_verb_returns_and_gone_when_umount_does(world: World, mount: Path) -> None:
    (mount / "file").write_text("kept")
    pid = world.process()
    world.run("umount", mount)
    assert not is_mounted(world)
    assert not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    assert list((world.root / "runtime").iterdir()) == []
    world.run("mount", "demo", mount)
    assert (mount / "file").read_text() == "kept"


def test_sync_takes_name_path_or_nothing_and_publishes(world: World, mount: Path) -> None:
    (mount / "file").write_bytes(os.urandom(300_000))
    for target in ([], ["demo"], [mount], [mount / "file"]):
        assert world.facts("sync", *target)["batch"]
    status = world.facts("status", "demo")
    assert (status["pending"], status["dirty_bytes"], status["mount_point"]) == (False, 0, str(mount))
    assert status["stalls"]["count"] > 0 and 0 < status["stalls"]["p999_ms"] <= status["stalls"]["max_ms"]


def test_info_tells_where_each_share_lies(world: World, mount: Path) -> None:
    (mount / "placed").write_bytes(os.urandom(300_000))
    facts = world.facts("info", mount / "placed")
    assert (facts["chunks"], facts["survives"]) == (3, -1)
    world.run("sync")
    facts = world.facts("info", mount / "placed")
    (shares,) = facts["segments"].values()  # type: ignore[attr-defined]
    assert facts["survives"] == 2
    assert sorted(share["provider"] for share in shares) == list("abcdef")
    assert "any 2 owners" in world.run("info", mount / "placed").stdout
    world.run("info", world.root / "config", code=9)


def test_umount_drain_publishes_first(world: World, mount: Path) -> None:
    (mount / "drained").write_bytes(os.urandom(300_000))
    before = world.facts("status", "demo")["published_batch"]
    assert world.facts("umount", "--drain", mount)["batch"] > before  # type: ignore[operator]
    assert not is_mounted(world)


def test_umount_drain_says_who_keeps_it_from_being_safe(world: World, mount: Path) -> None:
    provider = world.root / "providers" / "c"
    provider.rename(world.root / "away")
    try:
        (mount / "drained").write_bytes(os.urandom(300_000))
        done = world.run("umount", "--drain", mount)
        assert "icnfs: published, but not yet safe: shares or key slots are missing at c; once" in done.stderr
        assert "batch" in done.stdout
    finally:
        (world.root / "away").rename(provider)
    world.run("mount", "demo", mount)
    world.run("sync", "--deadline", "60")
    assert world.facts("umount", "--drain", mount)["unsafe"] == []


def test_a_mount_in_use_stays_unless_detached(world: World, mount: Path) -> None:
    with open(mount / "open", "wb"):
        assert "--lazy" in world.run("umount", mount, code=8).stderr
        assert "without --drain" not in world.run("umount", "--drain", mount, code=8).stderr, (
            "being busy is the trouble"
        )
        assert is_mounted(world)
        world.run("umount", "--lazy", mount)
        assert not is_mounted(world)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace")
def test_a_mount_that_another_namespace_holds_is_told_and_ended(world: World, mount: Path) -> None:
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        pid = world.process()
        for _ in range(2):
            message = world.run("umount", mount, code=8).stderr
            assert f"another process: {holder.pid} (cat)" in message and "--lazy" in message
            assert not is_mounted(world)
            assert "not seen from here" in world.run("status", "demo").stdout
        world.run("umount", "--lazy", mount)
        wait_gone(pid)
        world.run("mount", "demo", mount)
        holder.stdin.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_cleanly(world: World, mount: Path, number: signal.Signals) -> None:
    (mount / "signal").write_text(number.name)
    pid = world.process()
    os.kill(pid, number)
    wait_gone(pid)
    assert not is_mounted(world)
    world.run("mount", "demo", mount)
    assert (mount / "signal").read_text() == number.name


def test_a_dead_mount_is_cleared_by_umount_and_by_mount(world: World, mount: Path) -> None:
    with open(mount / "synced", "w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    for clear in ("umount", "mount"):
        pid = world.process()
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        assert is_mounted(world)
        world.run("status", "demo", code=9)
        if clear == "umount":
            world.run("umount", mount)
            assert not is_mounted(world)
        world.run("mount", "demo", mount)
        assert (mount / "synced").read_text() == "kept"


def test_a_silent_process_is_told_from_a_dead_one_and_loses_its_mount_point(
    world: World, mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client, "SILENCE", 0.5)
    pid = world.process()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(NotMountedError, match="does not answer"):
            icnfs.main(["status", "demo"], standalone_mode=False)
        with pytest.raises(NotMountedError, match="is detached"):
            icnfs.main(["umount", str(mount)], standalone_mode=False)
        assert not is_mounted(world)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.kill(pid, signal.SIGCONT)
    wait_gone(pid)


def test_a_second_mount_is_refused(world: World, mount: Path) -> None:
    (world.root / "other").mkdir(exist_ok=True)
    assert "mounted here already" in world.run("mount", "demo", world.root / "other", code=7).stderr
    assert "mounted here already" in world.run("mount", "demo", mount, code=7).stderr


def test_a_volume_is_not_taken_over_from_its_own_mount(world: World, mount: Path) -> None:
    """Not even where its state was deleted beneath it: what is written there would be lost without a word."""
    state = world.root / "state" / "demo"
    state.rename(state.with_name("aside"))
    try:
        assert "is mounted here; `icnfs umount` it first" in world.run("recover", "demo", code=7).stderr
    finally:
        state.with_name("aside").rename(state)


def test_a_mount_point_is_refused_before_anything_is_asked_for(world: World) -> None:
    refused = {"config": "not empty", "no": "does not exist", "config/demo.toml": "not a directory"}
    for directory, why in refused.items():
        assert why in world.run("mount", "demo", directory, "--recovery-key", code=8).stderr


def test_the_daemons_failure_is_relayed(world: World) -> None:
    wrong = world.root / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_bytes(b"w" * 32)
    assert "does not open the volume" in world.run("mount", "demo", world.directory, "--keyfile", wrong, code=4).stderr
    assert not is_mounted(world)
    assert "unknown mount option" in world.run("mount", "demo", world.directory, "-o", "allow_othr", code=2).stderr


def test_the_daemon_holds_no_terminal_and_logs_to_a_private_file(world: World, mount: Path) -> None:
    pid = world.process()
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1)] == ["/dev/null"] * 2
    assert os.readlink(f"/proc/{pid}/fd/2").startswith("pipe:"), "stderr is logged"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    log = world.root / "state" / "demo" / "log"
    if not Path("/run/systemd/journal/socket").exists():
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert f"mounted volume=demo pid={pid}" in log.read_text()


def test_keys_change_beside_a_mount(world: World, mount: Path) -> None:
    added = world.facts("key", "add", "demo", "--new-recovery-key")
    world.run("sync")
    listed = json.loads(world.run("key", "list", "demo", "--json").stdout)
    assert {"id": added["id"], "stored": 6} in [{"id": key["id"], "stored": key["stored"]} for key in listed]
    world.run("key", "remove", "demo", str(added["id"]))
    world.run("umount", mount)
    assert str(added["id"]) not in world.run("key", "list", "demo").stdout


def test_read_only_is_read_only(world: World) -> None:
    world.run("mount", "demo", world.directory, "-o", "ro,nofail,x-systemd.automount")
    with pytest.raises(OSError, match="Read-only"):
        (world.directory / "new").touch()
    world.run("umount", world.directory)


def test_in_the_foreground_it_logs_to_stderr_and_ends_with_0_on_a_signal(world: World) -> None:
    command = [sys.executable, "-m", "icnfs.cli", "mount", "-f", "demo", str(world.directory)]
    with subprocess.Popen(command, env=world.environment, stderr=subprocess.PIPE, text=True) as front:
        assert front.stderr is not None
        lines = []
        for line in front.stderr:
            lines.append(line)
            if "mounted volume=demo" in line:
                break
        front.send_signal(signal.SIGTERM)
        lines += front.stderr.readlines()
    assert front.returncode == 0
    assert "unmounted volume=demo end=signal" in lines[-1]
    assert not is_mounted(world)


def test_mount_8_mounts_by_its_helper(world: World) -> None:
    helper = [sys.executable, "-c", "from icnfs.cli import mount_helper; mount_helper()"]
    arguments = ["demo", str(world.directory), "-n", "-o", "rw,_netdev,user"]
    subprocess.run([*helper, *arguments], env=world.environment, check=True, timeout=60)
    assert is_mounted(world)
    world.run("umount", world.directory)


def test_what_is_not_mounted_is_told_so(world: World) -> None:
    assert "nothing of icnfs is mounted there" in world.run("umount", world.directory, code=9).stderr
    assert "no volume is mounted" in world.run("sync", code=9).stderr
    world.run("sync", "demo", code=9)
    world.run("info", world.directory, code=9)
    assert "No such file" in world.run("info", world.root / "no", code=2).stderr


def test_sync_fails_as_degraded_and_says_who_is_missing(world: World, mount: Path) -> None:
    provider = world.root / "providers" / "c"
    provider.rename(world.root / "away")
    try:
        (mount / "degraded").write_bytes(os.urandom(300_000))
        assert "degraded" in world.run("sync", "--deadline", "3", code=14).stderr
        assert "2 owners" not in world.run("info", mount / "degraded").stdout
        assert world.facts("status", "demo")["degraded"] is True
    finally:
        (world.root / "away").rename(provider)
    world.run("sync", "--deadline", "60")
