"""`packaging/demo` does what its first lines say, and does it again.

The set-up that it shares with `packaging/test` is done when tests run, so here it only finds that out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ICNFS = ROOT / ".venv/bin/icnfs"


@dataclass(frozen=True)
class Demo:
    """One demo in folders of its own."""

    home: Path
    runtime: Path

    @property
    def mountpoint(self) -> Path:
        return self.home / "a drive"

    @property
    def recovery(self) -> Path:
        return self.home / "state/demo-recovery-key"

    def begin(self, *command: str | Path) -> subprocess.Popen[str]:
        """`command` in the demo's surroundings."""
        surroundings = {
            "ICNFS_CONFIG_DIR": str(self.home / "config"),
            "ICNFS_STATE_DIR": str(self.home / "state"),
            "ICNFS_RUNTIME_DIR": str(self.runtime),
            "ICNFS_DEMO_PROVIDERS": str(self.home / "pro viders"),
            "ICNFS_NO_APT": "1",
        }
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=os.environ | surroundings, stdout=pipe, stderr=pipe, text=True)

    def run(self, *command: str | Path, code: int = 0) -> str:
        """What `command` says, its errors where it is to fail; it must end with `code`."""
        return ended(self.begin(*command), code)

    def start(self) -> str:
        return self.run(ROOT / "packaging/demo", self.mountpoint)

    def stop(self) -> None:
        self.run(ICNFS, "umount", self.mountpoint)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    with process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    return err if code else out


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with tempfile.TemporaryDirectory(prefix="icnfs-demo-") as runtime:
        demo = Demo(tmp_path, Path(runtime))
        yield demo
        if os.path.ismount(demo.mountpoint):
            demo.stop()


def private(path: Path) -> bool:
    return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.mark.mount
def test_demo_mounts_a_volume_over_six_owners_in_four_countries(demo: Demo) -> None:
    said = demo.start()
    assert os.path.ismount(demo.mountpoint)
    assert str(demo.mountpoint) in said
    document = tomllib.loads((demo.home / "config/demo.toml").read_text())
    providers = document["provider"]
    assert len({facts["owner"] for facts in providers.values()}) == 6
    assert len({facts["country"] for facts in providers.values()}) == 4
    assert {path.name for path in (demo.home / "pro viders").iterdir()} == set(providers)


@pytest.mark.mount
def test_demo_keeps_its_secrets_from_others_and_says_where_the_recovery_key_is(demo: Demo) -> None:
    said = demo.start()
    assert str(demo.recovery) in said
    assert private(demo.recovery) and demo.recovery.stat().st_size > 0
    assert private(demo.home / "config/demo.key")


@pytest.mark.mount
def test_demo_may_be_run_again_mounted_or_not_and_changes_nothing(demo: Demo) -> None:
    demo.start()
    (demo.mountpoint / "kept").write_text("as it was")
    toml = demo.home / "config/demo.toml"
    before = toml.read_bytes(), demo.recovery.read_bytes()
    assert "mounted already" in demo.start()
    demo.stop()
    assert not os.path.ismount(demo.mountpoint)
    demo.start()
    assert (demo.mountpoint / "kept").read_text() == "as it was"
    assert (toml.read_bytes(), demo.recovery.read_bytes()) == before


@pytest.mark.mount
def test_two_demos_at_once_wait_for_each_other_and_keep_the_recovery_key(demo: Demo) -> None:
    both = [demo.begin(ROOT / "packaging/demo", demo.mountpoint) for _ in range(2)]
    said = [ended(process) for process in both]
    assert sum("mounted already" in each for each in said) == 1
    assert demo.recovery.stat().st_size > 0
    assert not list(demo.home.rglob("*.new"))


@pytest.mark.mount
@pytest.mark.parametrize("mounted", [True, False])
def test_a_recovery_key_that_a_demo_was_ended_over_is_kept_by_the_next(demo: Demo, mounted: bool) -> None:
    demo.start()
    key = demo.recovery.read_bytes()
    demo.recovery.rename(f"{demo.recovery}.new")
    if not mounted:
        demo.stop()
    assert f"recovery key   {demo.recovery} " in demo.start()
    assert demo.recovery.read_bytes() == key


@pytest.mark.mount
def test_a_recovery_key_of_a_volume_before_is_not_overwritten(demo: Demo) -> None:
    demo.recovery.parent.mkdir()
    demo.recovery.write_text("of another volume")
    demo.start()
    assert demo.recovery.read_text() != "of another volume"
    assert Path(f"{demo.recovery}.~1~").read_text() == "of another volume"


@pytest.mark.mount
def test_demo_names_no_recovery_key_that_is_not_there(demo: Demo) -> None:
    demo.start()
    demo.recovery.unlink()
    assert "icnfs key add --new-recovery-key demo" in demo.start()


@pytest.mark.mount
def test_demo_mounts_again_where_the_process_died(demo: Demo) -> None:
    demo.start()
    document = json.loads(demo.run(ICNFS, "status", "--json", "demo"))
    demo.run("stat", demo.mountpoint)  # the kernel remembers the answer
    os.kill(document["pid"], signal.SIGKILL)
    with pytest.raises(OSError, match=r"not connected|abort"):
        while True:
            os.statvfs(demo.mountpoint)
    assert "mounted already" not in demo.start()
    assert list(demo.mountpoint.iterdir()) == []


@pytest.mark.mount
def test_what_to_try_next_can_be_pasted_whatever_the_mount_point_is_called(demo: Demo) -> None:
    (copy,) = [line for line in demo.start().splitlines() if "cp -a" in line]
    assert shlex.split(copy, comments=True) == ["cp", "-a", "/usr/share/doc", f"{demo.mountpoint}/"]


@pytest.mark.mount
def test_demo_beside_a_mount_elsewhere_is_refused_and_leaves_no_folder(demo: Demo) -> None:
    demo.start()
    other = demo.home / "other"
    assert "icnfs demo: the volume demo is mounted elsewhere" in demo.run(ROOT / "packaging/demo", other, code=1)
    assert not other.exists()


def test_a_mount_point_that_cannot_be_made_is_told_before_the_set_up(demo: Demo) -> None:
    (demo.home / "file").touch()
    said = demo.run(ROOT / "packaging/demo", demo.home / "file/a/drive", code=1)
    assert said.startswith("icnfs demo: ") and f"{demo.home}/file is no directory" in said
    assert not (demo.home / "config").exists()


def tour() -> str:
    """The README's console commands in turn, without those that only show a form."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return "\n".join(c for c in commands if not re.search(r"\b(NAME|SRC)\b", c) and c != "packaging/test")


@pytest.mark.mount
def test_the_tour_of_the_readme_works_as_written(demo: Demo) -> None:
    script = tour()
    here = {
        "/mnt/icn": demo.mountpoint,
        "/srv/icnfs-demo": demo.home / "pro viders",
        "/var/lib/icnfs": demo.home / "state",
    }
    for there, place in here.items():
        assert there in script
        script = re.sub(rf"{there}([\w/-]*)", lambda match, place=place: shlex.quote(f"{place}{match[1]}"), script)
    demo.run("bash", "-euc", f"cd {shlex.quote(str(ROOT))}\n{script}")
    for lost in ("falkenstein", "helsinki"):
        assert list((demo.home / "pro viders" / lost).glob("shares/*/*")), "what it held is stored there again"
    assert (demo.mountpoint / "bash/copyright").read_bytes() == Path("/usr/share/doc/bash/copyright").read_bytes()


def test_demo_without_a_mount_point_says_how_it_is_used(demo: Demo) -> None:
    done = subprocess.run([ROOT / "packaging/demo"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "icnfs demo: usage: packaging/demo MOUNTPOINT\n")


@pytest.mark.mount
def test_the_cron_line_of_the_readme_drills_the_demo_volume(demo: Demo) -> None:
    (table,) = re.findall(r"```crontab\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path, line = table.splitlines()
    assert path.startswith("PATH=")
    fields = line.split(maxsplit=5)
    assert re.fullmatch(r"\d+ \d+ \* \* \*", " ".join(fields[:5])), "once a day"
    command = f"export {shlex.quote(path.replace('/opt/icnfs', str(ROOT)))}; {fields[5]}"
    demo.start()
    for i in range(20):
        (demo.mountpoint / f"file {i}").write_bytes(os.urandom(40_000 * i))
    demo.run(ICNFS, "sync", "demo")
    assert demo.run("/bin/sh", "-c", f"({command}) 2>&1") == "", "cron has nothing to mail"
    large = [path for path in (demo.home / "pro viders").glob("*/shares/*/*") if path.stat().st_size > 100_000]
    for path in large:
        if any(name in str(path) for name in ("amsterdam", "karlsruhe", "helsinki")):
            path.unlink()
    assert "would be lost" in demo.run("/bin/sh", "-c", command, code=15)
