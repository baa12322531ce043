"""Set-id bits: who clears them when, as a table."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from icnfs.state.inode import Inode
from icnfs.vfs.callers import ROOT, Known, is_member
from icnfs.vfs.setid import after_request, after_write

MEMBER, STRANGER = Known(1000, 7), Known(2000, 8)


@pytest.mark.parametrize(
    ("mode", "root", "member", "stranger", "asked"),
    [
        (0o6755, 0o6755, 0o755, 0o755, 0o755),
        (0o4755, 0o4755, 0o755, 0o755, 0o755),
        (0o2755, 0o2755, 0o755, 0o755, 0o755),
        (0o2745, 0o2745, 0o2745, 0o745, 0o2745),
        (0o6745, 0o6745, 0o2745, 0o745, 0o2745),
        (0o1644, 0o1644, 0o1644, 0o1644, 0o1644),
    ],
)
def test_who_clears_what(mode: int, root: int, member: int, stranger: int, asked: int) -> None:
    node = Inode(5, stat.S_IFREG | mode, 1000, 7, 0)
    assert stat.S_IMODE(after_write(node, ROOT)) == root
    assert stat.S_IMODE(after_write(node, MEMBER)) == member
    assert stat.S_IMODE(after_write(node, STRANGER)) == stranger
    assert stat.S_IMODE(after_request(node, ROOT)) == asked
    assert stat.S_IMODE(after_request(node, MEMBER)) == asked
    assert stat.S_IMODE(after_request(node, STRANGER)) == stranger


def test_members_are_found_in_proc(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5/status").write_text("Name:\tdd\nGroups:\t7 888 \nGid:\t99\n")
    assert is_member(Known(1, 2, 5), 888, tmp_path)
    assert is_member(Known(1, 2, 5), 2, tmp_path)
    assert not is_member(Known(1, 2, 5), 99, tmp_path)
    assert not is_member(Known(1, 2, 0), 888, tmp_path)
    (tmp_path / "5/status").write_text("Groups:\tnone\n")
    assert not is_member(Known(1, 2, 5), 888, tmp_path)
    assert all(is_member(Known(1, 2, os.getpid()), group) for group in os.getgroups())
