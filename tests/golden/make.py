"""Makes a golden volume: what this release's icnfs writes, kept for ever so that every later one must read it.

    python -m tests.golden.make NAME        writes tests/golden/NAME.tar.xz; an existing one is never replaced

The archive holds the six providers' directories, the local state, the key file, the recovery key, and a manifest of the
tree.  A new one is made when a format changes; the old ones stay.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from tests.acceptance.contents import manifest
from tests.acceptance.harness import Volume

HERE: Final = Path(__file__).parent


def make_tree(root: Path) -> None:
    """Something of everything that a record can say."""
    (root / "dir").mkdir()
    (root / "dir" / "hello").write_bytes(b"hello, reader of later days\n")
    (root / "dir" / ("n" * 255)).write_bytes(b"a long name")
    (root / os.fsdecode(b"bytes-\xff\x01\n")).write_bytes(b"any byte but two")
    (root / "two-chunks").write_bytes(bytes(range(256)) * 700)
    with open(root / "holes", "wb") as file:
        file.seek(3 << 20)
        file.write(b"after a hole")
    (root / "linked").write_bytes(b"two names")
    os.link(root / "linked", root / "dir" / "again")
    os.symlink("dir/hello", root / "symlink")
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "device", 0o020600, os.makedev(1, 3))
    os.setxattr(root / "two-chunks", "user.note", b"\x00kept")
    os.chmod(root / "two-chunks", 0o4711)
    os.chown(root / "linked", 12, 34)
    os.utime(root / "dir" / "hello", ns=(1_000_000_001, -5_000_000_007))
    # A change after the first publish: a second run, and a patched chunk.
    with open(root / "two-chunks", "r+b") as file:
        file.seek(1000)
        file.write(b"patched")
        os.fsync(file.fileno())


def main(name: str) -> None:
    archive = HERE / f"{name}.tar.xz"
    if archive.exists():
        raise SystemExit(f"{archive}: a golden volume is never replaced; give the new one another name")
    with tempfile.TemporaryDirectory(prefix="icnfs-golden-") as folder, Volume(Path(folder)) as volume:
        volume.init()
        volume.mount()
        (volume.mountpoint / "first").write_bytes(b"in the first run")
        volume.sync()
        make_tree(volume.mountpoint)
        (volume.root / "manifest.json").write_text(json.dumps(manifest(volume.mountpoint), default=bytes.hex))
        (volume.root / "recovery-key").write_text(volume.recovery_key + "\n")
        (volume.root / "recovery-key").chmod(0o600)
        volume.sync()
        volume.umount()
        for reserve in volume.state_dir.rglob("reserve"):
            reserve.unlink()
        with tarfile.open(archive, "w:xz") as tar:
            for part in ("providers", "state", "manifest.json", "recovery-key", f"config/{volume.keyfile.name}"):
                tar.add(volume.root / part, part)


if __name__ == "__main__":
    main(sys.argv[1])
