"""A volume over six directory providers in one folder, driven through the `icnfs` command as a user drives it.

Promises: everything lies under one root (TOML, state, providers, mount point, logs), but for the sockets, whose paths
must be short; a process is ended by its own id only; `close` unmounts whatever happened before.  Knows nothing of the
product but its command line, its TOML and the names of its providers' objects.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

REPO: Final = Path(__file__).resolve().parents[2]
ICNFS: Final = Path(sys.executable).with_name("icnfs")

PROVIDERS: Final = {
    "amsterdam": ("Polder Storage BV", "NL", "NL", "Amsterdam"),
    "helsinki": ("Suomi Levy Oy", "FI", "FI", "Helsinki"),
    "lyon": ("Rhone Stockage SA", "FR", "FR", "Lyon"),
    "munich": ("Isar Speicher GmbH", "DE", "DE", "Munich"),
    "paris": ("Seine Objets SAS", "FR", "FR", "Paris"),
    "rotterdam": ("Maas Data BV", "NL", "NL", "Rotterdam"),
}
"""name -> owner, parent_country, country, site."""

Settings = Mapping[str, Mapping[str, str | int | float]]

EVERYTHING: Final = "allow_other,suid,dev"
"""Mount options under which nothing is withheld that a local file system would allow."""

_POLL_SECONDS: Final = 0.01
_LOG_TAIL: Final = 4000


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Returns once `condition()` is true; fails the test with `what` when it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)


def is_mounted(path: Path) -> bool:
    """Whether a living file system is mounted at `path`: of a dead one the kernel may still know attributes."""
    try:
        os.statvfs(path)
        return os.stat(path).st_dev != os.stat(path.parent).st_dev
    except OSError:
        return False


def in_mount_table(path: Path) -> bool:
    """Whether the kernel lists anything, dead or alive, at `path`."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return any(line.split(" ")[4] == str(path) for line in table)


class Failed(AssertionError):
    """A verb ended with another code than the test asked for."""


class Volume:
    """One machine's view of one volume: its TOML, its local state, its mount point, its front process."""

    def __init__(
        self,
        root: Path,
        *,
        name: str = "vol",
        settings: Settings | None = None,
        providers: Mapping[str, Path] | None = None,
        state: Path | None = None,
    ) -> None:
        """`settings` are TOML sections laid over the defaults; `providers` lets two machines share directories."""
        self.root = root
        self.name = name
        self.mountpoint = root / "mnt"
        self.config_dir = root / "config"
        self.state_dir = state or root / "state"
        self.runtime_dir = Path(tempfile.mkdtemp(prefix="icnfs-run-"))
        self.log = root / "front.log"
        self.keyfile = self.config_dir / f"{name}.key"
        self.providers = dict(providers or {p: root / "providers" / p for p in PROVIDERS})
        self.settings: dict[str, dict[str, str | int | float]] = {
            "volume": {"code": "4-of-6"},
            "keys": {"keyfile": self.keyfile.name},
        }
        self.recovery_key = ""
        self.front: subprocess.Popen[bytes] | None = None
        for section, values in (settings or {}).items():
            self.settings.setdefault(section, {}).update(values)
        for directory in (self.config_dir, self.state_dir, self.mountpoint):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o755)
        self.mountpoint.chmod(0o755)
        self.write_toml()
        atexit.register(self.close)

    # --- configuration ---------------------------------------------------------------------------------------------

    def write_toml(self) -> None:
        """Writes the TOML from `settings` and `providers`, and the key file if there is none."""
        if not self.keyfile.exists():
            self.keyfile.write_bytes(os.urandom(64))
            self.keyfile.chmod(0o600)
        lines: list[str] = []
        for section, values in self.settings.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
        for provider in self.providers:
            facts = self.provider_facts(provider)
            lines += [f"[provider.{provider}]", *(f"{k} = {json.dumps(v)}" for k, v in facts.items()), ""]
        (self.config_dir / f"{self.name}.toml").write_text("\n".join(lines), encoding="utf-8")

    def provider_facts(self, provider: str) -> dict[str, str | int | float]:
        """The keys of the provider's table."""
        owner, parent, country, site = PROVIDERS[provider]
        return {
            "url": f"file://{self.providers[provider]}",
            "owner": owner,
            "parent_country": parent,
            "country": country,
            "site": site,
            "eur_per_tb_month": 6.0,
            "eur_per_tb_read": 0.0,
        }

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ICNFS_") or k == "ICNFS_REQUIRE_FUSE"}
        return kept | {
            "ICNFS_CONFIG_DIR": str(self.config_dir),
            "ICNFS_STATE_DIR": str(self.state_dir),
            "ICNFS_RUNTIME_DIR": str(self.runtime_dir),
            "NO_COLOR": "1",
        }

    def elsewhere(self, root: Path, providers: Mapping[str, Path] | None = None) -> Volume:
        """Another machine: the same TOML and key file, an empty state directory."""
        root.mkdir(parents=True, exist_ok=True)
        other = Volume(root, name=self.name, settings=self.settings, providers=providers or self.providers)
        shutil.copy2(self.keyfile, other.keyfile)
        other.recovery_key = self.recovery_key
        return other

    # --- verbs -----------------------------------------------------------------------------------------------------

    def icnfs(
        self, *argv: str | Path, code: int | None = 0, stdin: str | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs one verb; `Failed` unless it ends with `code` (None: any)."""
        done = subprocess.run(
            [str(ICNFS), *map(str, argv)],
            env=self.env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if code is not None and done.returncode != code:
            raise Failed(
                f"icnfs {' '.join(map(str, argv))} ended with {done.returncode}, not {code}\n"
                f"{done.stdout}{done.stderr}\n--- front\n{self.log_tail()}"
            )
        return done

    def init(self, *argv: str | Path) -> str:
        """Creates the volume; returns what `init` printed, and keeps the recovery key that it shows once."""
        self.make_places()
        printed = self.icnfs("init", self.name, *argv).stdout
        self.recovery_key = find_recovery_key(printed)
        return printed

    def make_places(self) -> None:
        """What the owner of a place does before `init`."""
        for place in self.providers.values():
            place.mkdir(parents=True, exist_ok=True)

    def mount(self, options: str = EVERYTHING, *argv: str | Path, seconds: float = 60) -> None:
        """Mounts in a process of ours (`-f`), so that its id is known and its log is kept; `argv` may name a secret.

        Returns once it says that it is mounted: requests are answered a little before, and the kernel then still reads
        128 KiB at a time.
        """
        with open(self.log, "ab") as log:
            self.front = subprocess.Popen(
                [str(ICNFS), "mount", "-f", "-o", options, *map(str, argv), self.name, str(self.mountpoint)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        front = self.front

        def ready() -> bool:
            if front.poll() is not None:
                raise Failed(f"icnfs mount ended with {front.returncode}\n{self.log_tail()}")
            return f"pid={front.pid}\n" in self.log_tail() and is_mounted(self.mountpoint)

        wait_for(ready, seconds, f"a mount at {self.mountpoint}\n{self.log_tail()}")

    def umount(self, *argv: str, seconds: float = 120) -> None:
        self.icnfs("umount", *argv, self.mountpoint, seconds=seconds)
        if self.front is not None:
            self.front.wait(30)
            self.front = None

    def sync(self, *argv: str, code: int | None = 0, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return self.icnfs("sync", *argv, self.mountpoint, code=code, seconds=seconds)

    def status(self) -> dict[str, object]:
        """What `status --json` prints of this volume."""
        facts = json.loads(self.icnfs("status", "--json", self.name).stdout)
        if isinstance(facts, list):
            facts = facts[0]
        assert isinstance(facts, dict)
        return facts

    def recover(self, *argv: str | Path, code: int = 0, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        return self.icnfs("recover", self.name, *argv, code=code, seconds=seconds)

    def drop_state(self) -> None:
        """The loss of this machine's state: the folder is left empty."""
        for entry in self.state_dir.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    # --- processes -------------------------------------------------------------------------------------------------

    def transfer_pid(self) -> int | None:
        """The id of the transfer process of our front, if there is one now."""
        if self.front is None:
            return None
        for pid in _descendants(self.front.pid):
            with contextlib.suppress(OSError):
                if b"icnfs.transfer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None

    def kill_front(self) -> None:
        """SIGKILL; returns when the process is gone.  The dead mount stays for the next mount to clear."""
        assert self.front is not None
        self.front.kill()
        self.front.wait(30)
        self.front = None

    def kill_transfer(self) -> bool:
        """SIGKILL to the transfer process; False when there was none."""
        pid = self.transfer_pid()
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Front and transfer stand still inside; nothing of it where neither runs."""
        pids = [] if self.front is None else [self.front.pid, *_descendants(self.front.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def log_tail(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text[-_LOG_TAIL:]

    def close(self) -> None:
        """Unmounts and ends what is ours; safe to call twice, and after any failure."""
        atexit.unregister(self.close)
        front, self.front = self.front, None
        if front is not None and front.poll() is None:
            front.terminate()
            try:
                front.wait(20)
            except subprocess.TimeoutExpired:
                front.kill()
                front.wait(20)
        while in_mount_table(self.mountpoint):
            if subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, capture_output=True).returncode:
                break
        shutil.rmtree(self.runtime_dir, ignore_errors=True)

    def __enter__(self) -> Volume:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


@contextlib.contextmanager
def mounted_volume(root: Path, *, settings: Settings | None = None, options: str = EVERYTHING) -> Iterator[Volume]:
    """A new volume under `root`, mounted; unmounted at the end."""
    with Volume(root, settings=settings) as volume:
        volume.init()
        volume.mount(options)
        yield volume


def find_recovery_key(printed: str) -> str:
    """The recovery key in what `init` printed: the longest run of dash-joined upper-case groups."""
    words = [w.strip("'\".,") for line in printed.splitlines() for w in line.split()]
    keys = [w for w in words if w.count("-") >= 4 and w.replace("-", "").isalnum() and w == w.upper()]
    return max(keys, key=len, default="")


def regular_files(root: Path) -> Iterator[Path]:
    """Every regular file below `root`, in order of name; symlinks are not followed."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                yield path


def share_files(provider: Path) -> list[Path]:
    """A provider's share objects."""
    return list(regular_files(provider / "shares"))


def _descendants(pid: int) -> Iterator[int]:
    """Ids of children, grandchildren and so on, as the kernel lists them now."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(after_name[1])
    family = {pid}
    while grown := {p for p, parent in parents.items() if parent in family} - family:
        family |= grown
    yield from sorted(family - {pid})
