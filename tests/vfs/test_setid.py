"""Set-id bits: who clears them when, as a table."""

from __future__ import annotations

import stat

import pytest

from icnfs.state.inode import Inode
from icnfs.vfs.setid import after_chown, after_request, after_write

OWNER, STRANGER = 1000, 2000


@pytest.mark.parametrize(
    ("mode", "root", "owner", "stranger", "chown"),
    [
        (0o6755, 0o6755, 0o755, 0o755, 0o755),
        (0o4755, 0o4755, 0o755, 0o755, 0o755),
        (0o2755, 0o2755, 0o755, 0o755, 0o755),
        (0o2745, 0o2745, 0o2745, 0o745, 0o2745),
        (0o6745, 0o6745, 0o2745, 0o745, 0o2745),
        (0o1644, 0o1644, 0o1644, 0o1644, 0o1644),
    ],
)
def test_who_clears_what(mode: int, root: int, owner: int, stranger: int, chown: int) -> None:
    node = Inode(5, stat.S_IFREG | mode, OWNER, 0, 0)
    assert stat.S_IMODE(after_write(node, 0)) == root
    assert stat.S_IMODE(after_write(node, OWNER)) == owner
    assert stat.S_IMODE(after_write(node, STRANGER)) == stranger
    assert stat.S_IMODE(after_chown(node)) == chown
    assert stat.S_IMODE(after_request(node, 0)) == chown
    assert stat.S_IMODE(after_request(node, STRANGER)) == stranger
