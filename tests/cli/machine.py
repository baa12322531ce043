"""A volume over six directories, driven by the command as a user drives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from icnfs.errors import Exit

ROOT = Path(__file__).resolve().parents[2]
COUNTRIES = ("DE", "DE", "FR", "FR", "NL", "FI")


@dataclass(frozen=True)
class World:
    """One machine's folders; verbs run in it."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ICNFS_")}
        folders = {f"ICNFS_{name.upper()}_DIR": str(self.root / name) for name in ("config", "state", "runtime")}
        return kept | folders | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}

    @property
    def directory(self) -> Path:
        return self.root / "mnt"

    def run(self, *arguments: str | Path, code: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """One verb, without a terminal; it must end with `code` (None: any), and every failure must be one line."""
        command = [sys.executable, "-m", "icnfs.cli", *map(str, arguments)]
        done = subprocess.run(
            command,
            env=self.environment | more,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            start_new_session=True,
        )
        assert code in (done.returncode, None), f"{arguments}: {done.returncode} instead of {code}: {done.stderr}"
        if done.returncode:
            failures = [line for line in done.stderr.splitlines() if line.startswith("icnfs: ")]
            assert len(failures) == (0 if arguments[0] == "status" and done.returncode == Exit.NOT_MOUNTED else 1)
            assert "Traceback" not in done.stderr
        return done

    def facts(self, *arguments: str | Path, code: int = 0) -> dict[str, object]:
        """What a verb prints with --json."""
        facts = json.loads(self.run(*arguments, "--json", code=code).stdout)
        assert isinstance(facts, dict)
        return facts

    def process(self) -> int:
        """The mount's process."""
        pid = self.facts("status", "demo")["pid"]
        assert isinstance(pid, int)
        return pid


def furnish(world: World) -> None:
    """A TOML and a key file; nothing created yet."""
    for name in ("config", "state", "runtime", "providers", "mnt"):
        (world.root / name).mkdir(mode=0o700)
    write_secret(world.root / "config" / "demo.key", bytes(range(32)))
    lines = ["[volume]", 'code = "4-of-6"', "[keys]", 'keyfile = "demo.key"']
    for name, country in zip("abcdef", COUNTRIES, strict=True):
        lines += [f"[provider.{name}]", f'url = "file://{world.root}/providers/{name}"', f'owner = "Owner {name}"']
        lines += [f'parent_country = "{country}"', f'country = "{country}"']
    (world.root / "config" / "demo.toml").write_text("\n".join(lines))


def write_secret(path: Path, data: bytes) -> Path:
    """A file that its owner alone can read."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(data)
    return path
