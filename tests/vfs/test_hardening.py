"""What once went wrong, or was suspected to, between requests and the store."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest

from icnfs.errors import FsError
from icnfs.state.loader import ROOT_INO
from icnfs.state.names import Beneath
from icnfs.state.store import Store
from icnfs.vfs.attributes import SetAttr
from icnfs.vfs.vfs import Vfs
from tests.state.local import Local

REG = stat.S_IFREG | 0o644


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(tmp_path / "state")


def vfs_of(store: Store) -> Vfs:
    return Vfs(store, lambda: 1 << 40)


@pytest.mark.parametrize("time", [10**30, -(10**30)])
def test_no_time_is_too_far_away_to_be_committed(local: Local, time: int) -> None:
    async def body(store: Store) -> None:
        vfs = vfs_of(store)
        ino = vfs.mknod(ROOT_INO, b"f", REG, 0, 0, 0).ino
        vfs.setattr(ino, SetAttr(atime=time, mtime=time))
        await store.flush()
        node = store.reader.inode(ino)
        assert node is not None
        assert node.mtime == node.atime == vfs.getattr(ino).mtime
        assert (node.mtime > 0) == (time > 0)

    local.run(body)


class OneHash:
    """A name hash in which all names collide."""

    def cookie_base(self, parent: int, name: bytes) -> int:
        return 5


def test_a_request_that_finds_no_place_for_a_name_changes_nothing(local: Local) -> None:
    async def body(store: Store) -> None:
        store.beneath = Beneath(store.reader, OneHash())  # type: ignore[arg-type]
        vfs = vfs_of(store)
        full, other = (vfs.mkdir(ROOT_INO, name, 0o755, 0, 0).ino for name in (b"full", b"other"))
        for i in range(16):
            vfs.mknod(full, b"%d" % i, REG, 0, 0, 0)
        ino = vfs.mknod(other, b"f", REG, 0, 0, 0).ino
        files = store.files
        for refused in (
            lambda: vfs.mknod(full, b"x", REG, 0, 0, 0),
            lambda: vfs.link(ino, full, b"x"),
            lambda: vfs.rename(other, b"f", full, b"x"),
        ):
            with pytest.raises(FsError) as caught:
                refused()
            assert caught.value.errno == errno.ENOSPC
        assert store.files == files
        assert vfs.lookup(other, b"f").nlink == 1
        assert vfs.getattr(full).count == 16

    local.run(body)
