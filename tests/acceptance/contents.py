"""Small trees of known contents, and the manifest that tells whether a tree came back."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path
from typing import Any


def fill(root: Path, seed: int, files: int = 12, size: int = 300_000) -> None:
    """`files` files of random contents and of sizes up to `size`, some in folders, one empty, one sparse."""
    chance = random.Random(seed)
    for number in range(files):
        folder = root / f"{seed}-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(chance.randbytes(chance.randint(1, size)))
    (root / f"{seed}-empty").touch()
    with open(root / f"{seed}-sparse", "wb") as sparse:
        sparse.seek(900_000)
        sparse.write(b"end")


def manifest(root: Path, *, times: bool = True) -> dict[str, dict[str, Any]]:
    """Every name below `root`: kind, mode, owner, size, link count, links in common, mtime, xattrs, content."""
    found: dict[str, dict[str, Any]] = {}
    first_names: dict[int, str] = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(folders + names):
            path = os.path.join(folder, name)
            st = os.lstat(path)
            relative = os.path.relpath(path, root)
            facts: dict[str, Any] = {"mode": st.st_mode, "uid": st.st_uid, "gid": st.st_gid, "nlink": st.st_nlink}
            if times and not stat.S_ISLNK(st.st_mode):
                facts["mtime"] = st.st_mtime_ns
            if stat.S_ISREG(st.st_mode):
                facts["size"] = st.st_size
                with open(path, "rb") as file:
                    facts["content"] = hashlib.file_digest(file, "blake2b").hexdigest()
            elif stat.S_ISLNK(st.st_mode):
                facts["target"] = os.readlink(path)
            elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
                facts["rdev"] = st.st_rdev
            if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
                facts["same as"] = first_names.setdefault(st.st_ino, relative)
            xattrs = os.listxattr(path, follow_symlinks=False)
            facts["xattrs"] = {x: os.getxattr(path, x, follow_symlinks=False) for x in sorted(xattrs)}
            found[relative] = facts
    return found


def differences(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each name that differs; empty when the manifests are equal."""
    lines = []
    for name in sorted(found.keys() | expected.keys()):
        one, two = found.get(name), expected.get(name)
        if one is None or two is None:
            lines.append(f"{name}: {'missing' if one is None else 'too many'}")
        elif one != two:
            lines.append(
                f"{name}: " + ", ".join(f"{k} {one.get(k)} not {two.get(k)}" for k in two if one.get(k) != two[k])
            )
    return lines
