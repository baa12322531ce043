"""The tree of a snapshot within an open volume, to restore files from it.

It is read from the snapshot's runs into a scratch state; where contents lie, the volume knows itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from icnfs.errors import SnapshotError
from icnfs.format.records import Table
from icnfs.state.loader import ROOT_INO
from icnfs.state.store import Store
from icnfs.volume import setting_up
from icnfs.volume.load import Progress, load_tree, past_of
from icnfs.volume.scratch import check_room, scratch
from icnfs.volume.volume import Volume


@asynccontextmanager
async def tree_of(volume: Volume, name: str, progress: Progress = lambda _done, _all: None) -> AsyncIterator[Store]:
    """The tree of a snapshot of an open volume, in a scratch state that does not tell where contents lie.

    Raises `SnapshotError` where there is none of that name, `MountedError` where its tree is in use so already,
    `LocalDiskError`, and what stands in the way of reading its runs.
    """
    store, network, head = volume.store, volume.network, volume.publisher.head
    snapshot = volume.snapshots.find(name)
    assert head is not None, "a snapshot was published"
    past = past_of(head, snapshot, store.reader)
    salts = {key: bytes(sealed) for key, sealed in store.reader.rows(Table.SALTS)}
    root = store.env.root
    with scratch(root.with_name(f"{root.name}@{name}+"), f"snapshot {name} is being restored from already") as half:
        setting_up.start_over(half)
        check_room(half, sum(run.size for run in past.runs), volume.config.reserve)
        await load_tree(network, half, past, salts, progress)
        tree = Store.open(half, network.master)
        try:
            yield tree
        finally:
            with trio.CancelScope(shield=True):
                await tree.close()


def find_in(tree: Store, path: bytes) -> int:
    """The inode at `path`, from the root of a tree, no symbolic link followed; `SnapshotError` where there is none."""
    ino = ROOT_INO
    for part in path.split(b"/"):
        entry = tree.find(ino, part) if part else None
        if entry is not None:
            ino = entry.ino
        elif part:
            shown = path.decode("utf-8", "backslashreplace")
            raise SnapshotError(f"the snapshot has no {shown}; mount it to see what it has")
    return ino
