"""Random requests, chosen by hypothesis: a mount and a plain directory end up with equal trees and equal answers.

ICNFS_MODEL_EXAMPLES (default 15) and ICNFS_MODEL_STEPS (default 40) set the budget; a long run takes 2000 and 100,
and `-o faulthandler_timeout=0`, for pytest's look at a test of minutes may end it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.acceptance.on_files import read_tree
from tests.posix.observe import RENAME_EXCHANGE, RENAME_NOREPLACE, done, renameat2

EXAMPLES = int(os.environ.get("ICNFS_MODEL_EXAMPLES", "15"))
STEPS = int(os.environ.get("ICNFS_MODEL_STEPS", "40"))

_NAMES = st.sampled_from(("a", "b", "c", "d", "ä", "x" * 255))
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_OFFSETS = st.one_of(st.integers(0, 600_000), st.sampled_from((0, 4095, 4096, 16384, 131071, 131072, 131073, 262144)))
_SIZES = st.one_of(st.integers(0, 300), st.sampled_from((4096, 16384, 65536, 131072, 200_000)))
_MODES = st.integers(0, 0o7777)

_numbers = itertools.count()


class Two(RuleBasedStateMachine):
    """Every rule does the same on both sides and compares what was answered."""

    drive: ClassVar[Path]
    plain: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        name = f"run-{next(_numbers)}"
        self.roots = [str(self.drive / name), str(self.plain / name)]
        for root in self.roots:
            os.mkdir(root, 0o755)
        self.open: list[tuple[int, int]] = []
        self.changes = 0

    def both(self, call: Callable[[str], object]) -> None:
        answers = [done(call, root) for root in self.roots]
        assert answers[0] == answers[1], f"the mount answers {answers[0]}, the local file system {answers[1]}"
        self.changes += 1

    @rule(path=_PATHS, mode=_MODES)
    def create(self, path: str, mode: int) -> None:
        self.both(lambda root: os.close(os.open(f"{root}/{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)))

    @rule(path=_PATHS, mode=_MODES)
    def mkdir(self, path: str, mode: int) -> None:
        self.both(lambda root: os.mkdir(f"{root}/{path}", mode))

    @rule(path=_PATHS)
    def rmdir(self, path: str) -> None:
        self.both(lambda root: os.rmdir(f"{root}/{path}"))

    @rule(path=_PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda root: os.unlink(f"{root}/{path}"))

    @rule(path=_PATHS, contents=_PATHS)
    def symlink(self, path: str, contents: str) -> None:
        self.both(lambda root: os.symlink(contents, f"{root}/{path}"))

    @rule(old=_PATHS, new=_PATHS)
    def link(self, old: str, new: str) -> None:
        self.both(lambda root: os.link(f"{root}/{old}", f"{root}/{new}", follow_symlinks=False))

    @rule(old=_PATHS, new=_PATHS)
    def rename(self, old: str, new: str) -> None:
        self.both(lambda root: os.rename(f"{root}/{old}", f"{root}/{new}"))

    @rule(old=_PATHS, new=_PATHS, flags=st.sampled_from((RENAME_NOREPLACE, RENAME_EXCHANGE)))
    def rename_with_flags(self, old: str, new: str, flags: int) -> None:
        answers = [renameat2(f"{root}/{old}", f"{root}/{new}", flags) for root in self.roots]
        assert answers[0] == answers[1]

    @rule(path=_PATHS, offset=_OFFSETS, size=_SIZES, fill=st.integers(0, 255))
    def write(self, path: str, offset: int, size: int, fill: int) -> None:
        def call(root: str) -> None:
            fd = os.open(f"{root}/{path}", os.O_RDWR)
            try:
                os.pwrite(fd, bytes([fill]) * size, offset)
            finally:
                os.close(fd)

        self.both(call)

    @rule(path=_PATHS, size=_OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda root: os.truncate(f"{root}/{path}", size))

    @rule(path=_PATHS, mode=_MODES)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda root: os.chmod(f"{root}/{path}", mode))

    @rule(path=_PATHS, uid=st.integers(-1, 3), gid=st.integers(-1, 3))
    def chown(self, path: str, uid: int, gid: int) -> None:
        self.both(lambda root: os.lchown(f"{root}/{path}", uid, gid))

    @rule(path=_PATHS, name=st.sampled_from(("user.a", "user.b")), value=st.binary(max_size=40))
    def setxattr(self, path: str, name: str, value: bytes) -> None:
        self.both(lambda root: os.setxattr(f"{root}/{path}", name, value))

    @rule(path=_PATHS, name=st.sampled_from(("user.a", "user.b")))
    def removexattr(self, path: str, name: str) -> None:
        self.both(lambda root: os.removexattr(f"{root}/{path}", name))

    @rule(path=_PATHS)
    def fsync(self, path: str) -> None:
        def call(root: str) -> None:
            fd = os.open(f"{root}/{path}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        self.both(call)

    @rule(path=_PATHS)
    def keep_open(self, path: str) -> None:
        if all(os.path.isfile(f"{root}/{path}") for root in self.roots):
            one, two = (os.open(f"{root}/{path}", os.O_RDWR) for root in self.roots)
            self.open.append((one, two))

    @precondition(lambda self: bool(self.open))
    @rule(offset=_OFFSETS, size=_SIZES, data=st.data())
    def use_open(self, offset: int, size: int, data: st.DataObject) -> None:
        """Descriptors outlive their names."""
        pair = data.draw(st.sampled_from(self.open))
        seen = []
        for fd in pair:
            os.pwrite(fd, b"\xa5" * size, offset)
            seen.append((os.pread(fd, 300_000, max(0, offset - 1000)), os.fstat(fd).st_size, os.fstat(fd).st_nlink))
        assert seen[0] == seen[1]

    @invariant()
    def trees_are_equal_now_and_then(self) -> None:
        if self.changes % 10 == 9:
            self.compare()

    def compare(self) -> None:
        found, expected = (read_tree(root) for root in self.roots)
        assert found == expected

    def teardown(self) -> None:
        self.compare()
        for pair in self.open:
            for fd in pair:
                os.close(fd)
        for root in self.roots:
            shutil.rmtree(root)


@pytest.mark.mount
@pytest.mark.timeout(0 if "ICNFS_MODEL_EXAMPLES" in os.environ else 120)
def test_random_requests_leave_equal_trees(playground: Path, drive: Path) -> None:
    Two.drive, Two.plain = drive / "model", playground / "model"
    for side in (Two.drive, Two.plain):
        side.mkdir()
    budget = settings(
        max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Two, settings=budget)
