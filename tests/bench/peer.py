"""Mounts a fresh volume below $ICNFS_BENCH_DIR, and unmounts it: for a comparison that knows only a mount point.

    ICNFS_MOUNT="PYTHON -m tests.bench.peer mount"   ICNFS_UMOUNT="PYTHON -m tests.bench.peer umount"

A mount point is appended to either.  Configuration, state and sockets are folders below $ICNFS_BENCH_DIR.  It may run
in any directory when named by its path.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.acceptance.harness import ICNFS, PROVIDERS


def environment(root: Path) -> dict[str, str]:
    return os.environ | {
        "ICNFS_CONFIG_DIR": str(root / "config"),
        "ICNFS_STATE_DIR": str(root / "state"),
        "ICNFS_RUNTIME_DIR": str(root / "run"),
    }


def configure(root: Path) -> None:
    """The TOML of a volume of default settings over six directories, and its key file."""
    config = root / "config"
    config.mkdir(mode=0o700, parents=True)
    (root / "run").mkdir(mode=0o700)
    lines = ["[keys]", 'keyfile = "bench.key"']
    for name, (owner, parent, country, site) in PROVIDERS.items():
        (root / "providers" / name).mkdir(parents=True)
        lines += [
            f"[provider.{name}]",
            f'url = "file://{root / "providers" / name}"',
            f'owner = "{owner}"',
            f'parent_country = "{parent}"',
            f'country = "{country}"',
            f'site = "{site}"',
        ]
    (config / "bench.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    key = config / "bench.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(64))


def main(verb: str, mountpoint: str) -> int:
    root = Path(os.environ["ICNFS_BENCH_DIR"]).resolve()
    run = environment(root)
    if verb == "umount":
        return subprocess.run([str(ICNFS), "umount", mountpoint], env=run, check=False).returncode
    if not (root / "config").exists():
        configure(root)
        subprocess.run([str(ICNFS), "init", "bench"], env=run, check=True, stdout=subprocess.DEVNULL)
    return subprocess.run([str(ICNFS), "mount", "bench", mountpoint], env=run, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
