"""Real trees and real programs on a mount: what they leave there is what they leave anywhere.

    python -m tests.acceptance.realtree [MOUNTPOINT]

Without a mount point it makes a volume, and at the end loses this machine's state and two providers, recovers by the
recovery key, compares again, and then sees recovery refused with three providers gone.  It works on the whole of this
Python's standard library and of /usr/share/doc; the test takes a part of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.acceptance.contents import differences, manifest
from tests.acceptance.harness import EVERYTHING, Volume

TOO_FEW_PROVIDERS: Final = 10
"""The exit code of icnfs(1) for it."""

SQLITE_WRITERS: Final = 4
SQLITE_ROWS: Final = 40

_GIT: Final = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}

_SQLITE: Final = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=100)
for i in range(int(sys.argv[3])):
    with database:
        database.execute("insert into t values (?, ?)", (int(sys.argv[2]), i))
"""

_PROGRAM: Final = """#include <stdio.h>
int part(void);
int main(void) { printf("%d\\n", part()); return 0; }
"""


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """A command's output; AssertionError with all that it said unless it succeeds."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=os.environ | _GIT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, (
        f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    )
    return done.stdout


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def make_sources(folder: Path, *, full: bool) -> Path:
    """A tree to copy: real files, and every kind of metadata beside them."""
    source = folder / "source"
    source.mkdir()
    library = standard_library()
    if full:
        run("rsync", "-a", "--exclude", "site-packages", "--exclude", "__pycache__", f"{library}/", source / "library")
        run("cp", "-a", "/usr/share/doc", source / "doc")
    else:
        for part in ("json", "email", "asyncio", "xml"):
            run("cp", "-a", library / part, source / part)
        for folder_of_docs in sorted(Path("/usr/share/doc").iterdir())[:60]:
            run("cp", "-a", folder_of_docs, source / f"doc-{folder_of_docs.name}")
    _make_oddities(source / "oddities")
    return source


def _make_oddities(folder: Path) -> None:
    folder.mkdir()
    for name, mode in (("plain", 0o644), ("secret", 0o600), ("setid", 0o6755), ("none", 0o000)):
        (folder / name).write_text(name)
        (folder / name).chmod(mode)
    os.chown(folder / "plain", 1000, 1000)
    os.link(folder / "plain", folder / "hard link")
    os.symlink("plain", folder / "soft link")
    os.symlink("/nowhere/" + "x" * 3000, folder / "long dangling link")
    os.mkfifo(folder / "fifo")
    os.setxattr(folder / "plain", "user.note", b"\x00\x01binary")
    os.setxattr(folder, "user.of the folder", b"too")
    with open(folder / "sparse", "wb") as sparse:
        sparse.truncate(50_000_000)
        sparse.seek(30_000_000)
        sparse.write(b"island")
    (folder / ("n" * 255)).write_text("long name")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe not UTF-8")).write_text("raw name")
    (folder / "sticky").mkdir()
    (folder / "sticky").chmod(0o1777)
    for number, path in enumerate([*folder.iterdir(), folder]):
        os.utime(path, ns=(10**18 + number, 10**18 + 123 + number), follow_symlinks=False)


def check_copy(source: Path, mount: Path) -> None:
    """`cp -a` brings everything over."""
    run("cp", "-a", source, mount / "copy")
    compare(source, mount)


def compare(source: Path, mount: Path) -> None:
    run("diff", "-r", "--no-dereference", "-x", "fifo", source, mount / "copy")
    found = differences(manifest(mount / "copy"), manifest(source))
    assert not found, found[:10]


def check_rsync(source: Path, mount: Path) -> None:
    """The second run finds nothing to move."""
    run("rsync", "-aHAX", "--numeric-ids", f"{source}/", mount / "rsync")
    again = run("rsync", "-aHAX", "--numeric-ids", "--itemize-changes", f"{source}/", mount / "rsync")
    assert not again.strip(), again[:2000]
    found = differences(manifest(mount / "rsync"), manifest(source))
    assert not found, found[:10]
    shutil.rmtree(mount / "rsync")


def check_tar(source: Path, mount: Path) -> None:
    """Out to an archive on the mount and back from it."""
    run("tar", "--xattrs", "--xattrs-include=*", "-cf", mount / "tree.tar", "-C", source.parent, source.name)
    (mount / "untarred").mkdir()
    run("tar", "--xattrs", "--xattrs-include=*", "-xpf", mount / "tree.tar", "-C", mount / "untarred")
    found = differences(manifest(mount / "untarred" / source.name), manifest(source))
    assert not found, found[:10]
    shutil.rmtree(mount / "untarred")


def check_git(source: Path, mount: Path) -> None:
    """Clone a local repository, check it, build inside it, commit."""
    origin = source.parent / "origin.git"
    run("git", "init", "-q", "-b", "main", origin)
    shutil.copytree(standard_library() / "json", origin / "json", dirs_exist_ok=True)
    (origin / "main.c").write_text(_PROGRAM)
    (origin / "part.c").write_text("int part(void) { return 42; }\n")
    run("git", "-C", origin, "add", "-A")
    run("git", "-C", origin, "commit", "-q", "-m", "one")
    clone = mount / "clone"
    run("git", "clone", "-q", "--no-hardlinks", origin, clone)
    run("git", "fsck", "--strict", cwd=clone)
    for unit in ("main", "part"):
        run("cc", "-c", f"{unit}.c", "-o", f"{unit}.o", cwd=clone)
    run("cc", "main.o", "part.o", "-o", "program", cwd=clone)
    assert run(clone / "program").strip() == "42"
    run(sys.executable, "-m", "compileall", "-q", clone / "json")
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-q", "-m", "two", cwd=clone)
    run("git", "gc", "-q", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)
    assert not run("git", "status", "--porcelain", cwd=clone)


def check_sqlite(source: Path, mount: Path) -> None:
    """Several processes write one database, under its own locks, in both of its journal modes."""
    for journal in ("delete", "wal"):
        path = mount / f"{journal}.db"
        with sqlite3.connect(path) as database:
            database.execute(f"pragma journal_mode={journal}")
            database.execute("create table t (writer integer, row integer)")
        database.close()
        argv = [sys.executable, "-c", _SQLITE, str(path)]
        writers = [subprocess.Popen([*argv, str(w), str(SQLITE_ROWS)]) for w in range(SQLITE_WRITERS)]
        assert [writer.wait(300) for writer in writers] == [0] * SQLITE_WRITERS
        database = sqlite3.connect(path)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        rows = database.execute("select writer, count(distinct row) from t group by writer").fetchall()
        database.close()
        assert rows == [(w, SQLITE_ROWS) for w in range(SQLITE_WRITERS)]


def check_editor(source: Path, mount: Path) -> None:
    """Write to a temporary file, fsync, rename over, fsync the folder: never half a file."""
    path = mount / "document.txt"
    for version in range(30):
        text = f"version {version}\n" * 500
        with open(mount / ".document.txt.tmp", "w") as temporary:
            temporary.write(text)
            temporary.flush()
            os.fsync(temporary.fileno())
        os.rename(mount / ".document.txt.tmp", path)
        folder = os.open(mount, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        assert path.read_text() == text
    assert not (mount / ".document.txt.tmp").exists()


Check = Callable[[Path, Path], None]

CHECKS: Final[dict[str, Check]] = {
    "copy": check_copy,
    "rsync": check_rsync,
    "tar": check_tar,
    "git": check_git,
    "sqlite": check_sqlite,
    "editor": check_editor,
}


def check_loss(volume: Volume, expected: dict[str, dict[str, Any]], folder: Path) -> None:
    """All local state lost, two of six providers lost: the recovery key brings everything back.  Three: a refusal."""
    volume.sync(seconds=900)
    volume.umount(seconds=900)
    volume.drop_state()
    del volume.settings["keys"]["keyfile"]
    volume.keyfile.unlink()
    volume.write_toml()
    lost = list(volume.providers.values())
    for place in lost[1:3]:
        shutil.rmtree(place)
    key = folder / "recovery-key"
    key.write_text(volume.recovery_key + "\n")
    key.chmod(0o600)
    volume.recover("--recovery-key-file", key, seconds=900)
    _mount_by_recovery_key(volume, key)
    found = differences(manifest(volume.mountpoint), expected)
    assert not found, found[:10]
    volume.umount()
    volume.drop_state()
    os.rename(lost[4], lost[4].with_suffix(".away"))
    refused = volume.recover("--recovery-key-file", key, code=TOO_FEW_PROVIDERS)
    assert not any(volume.state_dir.rglob("data.mdb"))
    *warnings, message = refused.stderr.strip().splitlines()
    assert all(" warning " in line for line in warnings), refused.stderr
    missing = [name for name, place in volume.providers.items() if not place.exists()]
    assert len(missing) == 3
    assert all(name in message for name in missing), message


def _mount_by_recovery_key(volume: Volume, key: Path) -> None:
    volume.settings["keys"] = {}
    volume.write_toml()
    volume.mount(EVERYTHING, "--recovery-key-file", key)


def check_all(mount: Path, source: Path, say: Callable[[str], None] = lambda line: None) -> None:
    for name, check in CHECKS.items():
        began = time.monotonic()
        check(source, mount)
        say(f"{name}: as on any file system, {time.monotonic() - began:.1f} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance.realtree", description=__doc__.split("\n")[0])
    parser.add_argument("mountpoint", nargs="?", type=Path, help="an empty mount to work on, instead of a new volume")
    given: Path | None = parser.parse_args().mountpoint
    folder = Path(tempfile.mkdtemp(prefix="icnfs-realtree-"))
    source = make_sources(folder, full=True)

    def say(line: str) -> None:
        print(line, flush=True)

    if given is not None:
        check_all(given, source, say)
    else:
        with Volume(folder / "volume") as volume:
            volume.init()
            volume.mount()
            check_all(volume.mountpoint, source, say)
            expected = manifest(volume.mountpoint)
            volume.umount()
            volume.mount()
            compare(source, volume.mountpoint)
            say(f"umount and mount: {len(expected)} names are the same")
            check_loss(volume, expected, folder)
            say("state and two providers lost: recovered, the same; with three lost: refused")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
