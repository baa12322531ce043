"""Records that only a holder of the volume's keys can have sealed are refused by recovery, or harm next to nothing.

They are put into a real local state, published, and recovered on another machine.  Set-id bits and devices are no
attack: they are the data of whoever owns the volume, and come back as they were (see icnfs(7)).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from icnfs.errors import FormatError, FsError
from icnfs.format import head as head_format
from icnfs.format.head import Head
from icnfs.format.records import PAIR, RANK_BITS, U64, Entry, Table, pack_entry
from icnfs.limits import FILE_SIZE_MAX
from icnfs.state.apply import Writer
from icnfs.state.cut import begin_cut
from icnfs.state.inode import Inode
from icnfs.state.loader import ROOT_INO
from icnfs.vfs.vfs import Vfs
from icnfs.volume.difference import Differences
from icnfs.volume.losses import paths_of
from icnfs.volume.volume import Volume
from tests.volume.world import Machine, World, files_of, get_file, put_file

Tamper = Callable[[Volume, Writer, int], None]


def recovered(world: World, prepare: Callable[[Vfs], None], tamper: Tamper) -> Machine:
    """Another machine, recovered from what one published that forged its own records."""
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        await put_file(volume, b"innocent", b"bystander")
        prepare(files_of(volume))
        await volume.store.flush()
        await volume.store.task(lambda writer, generation: tamper(volume, writer, generation))
        await volume.publisher.publish()

    here.run(body)
    there = world.machine("there")
    there.recover(key)
    return there


def refused(world: World, tamper: Tamper) -> None:
    """The recovery is refused, and writes nothing here or there."""
    with pytest.raises(FormatError):
        recovered(world, lambda _: None, tamper)
    there = world.machine("there").state_dir
    assert not there.exists()
    assert not there.with_name("demo.partial").exists()
    epochs = {head_format.parse_name(name).epoch for names in world.objects("heads/").values() for name in names}  # type: ignore[union-attr]
    assert max(epochs) <= 2, "the volume was not taken over"


def names_in(vfs: Vfs, ino: int) -> list[bytes]:
    fh = vfs.opendir(ino)
    return [name for name, _, _ in vfs.readdir(fh, 0) if name not in (b".", b"..")]


def node_at(volume: Volume, writer: Writer, *path: bytes) -> Inode:
    """What a path names, for `tamper`, which runs in the committer's thread and has its transactions to read by."""
    ino = ROOT_INO
    for name in path:
        first = volume.store.names.cookie_base(ino, name) << RANK_BITS
        ino = next(entry.ino for entry in writer.reader.named(ino, first, name) if entry.name == name)
    node = writer.reader.inode(ino)
    assert node is not None
    return node


def put_name(volume: Volume, writer: Writer, generation: int, parent: int, name: bytes, ino: int, rank: int) -> None:
    cookie = (volume.store.names.cookie_base(parent, name) << RANK_BITS) + rank
    plain = U64.pack(ino) + bytes((stat.S_IFREG >> 12,)) + name
    writer.put(Table.NAMES, PAIR.pack(parent, cookie), plain, generation)


# --- contained --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"..", b".", b"../x", b"/etc/passwd", b"a\0b", b"", b"x" * 256])
def test_a_name_that_no_file_may_have_is_never_shown_and_harms_its_directory_alone(world: World, name: bytes) -> None:
    def prepare(vfs: Vfs) -> None:
        vfs.mkdir(ROOT_INO, b"sub", 0o755, 0, 0)

    def tamper(volume: Volume, writer: Writer, generation: int) -> None:
        put_name(volume, writer, generation, node_at(volume, writer, b"sub").ino, name, ROOT_INO, 0)

    async def look(volume: Volume) -> None:
        vfs = files_of(volume)
        sub = vfs.lookup(ROOT_INO, b"sub")
        with pytest.raises(FormatError) as caught:
            names_in(vfs, sub.ino)
        assert caught.value.errno == errno.EIO
        assert sorted(names_in(vfs, ROOT_INO)) == [b"innocent", b"sub"]
        assert await get_file(volume, b"innocent") == b"bystander"
        vfs.mknod(sub.ino, b"fine", 0o100644, 0, 0, 0)
        await volume.sync()

    recovered(world, prepare, tamper).run(look)


def test_a_name_that_is_there_twice_harms_its_directory_alone(world: World) -> None:
    def prepare(vfs: Vfs) -> None:
        sub = vfs.mkdir(ROOT_INO, b"sub", 0o755, 0, 0)
        vfs.mknod(sub.ino, b"twin", 0o100644, 0, 0, 0)

    def tamper(volume: Volume, writer: Writer, generation: int) -> None:
        sub = node_at(volume, writer, b"sub").ino
        put_name(volume, writer, generation, sub, b"twin", node_at(volume, writer, b"sub", b"twin").ino, 1)

    async def remove(volume: Volume) -> None:
        vfs = files_of(volume)
        sub = vfs.lookup(ROOT_INO, b"sub").ino
        assert names_in(vfs, sub) == [b"twin", b"twin"]
        vfs.unlink(sub, b"twin")
        with pytest.raises(FsError):
            vfs.lookup(sub, b"twin")
        assert sorted(names_in(vfs, ROOT_INO)) == [b"innocent", b"sub"]
        await put_file(volume, b"other", b"works on")
        await volume.sync()

    recovered(world, prepare, tamper).run(remove)


def test_directories_in_a_circle_hang_nobody(world: World) -> None:
    def prepare(vfs: Vfs) -> None:
        a = vfs.mkdir(ROOT_INO, b"a", 0o755, 0, 0)
        vfs.mkdir(a.ino, b"b", 0o755, 0, 0)
        vfs.mkdir(ROOT_INO, b"moved", 0o755, 0, 0)

    def tamper(volume: Volume, writer: Writer, generation: int) -> None:
        a, b = node_at(volume, writer, b"a"), node_at(volume, writer, b"a", b"b")
        a.parent = b.ino
        writer.put(Table.INODES, U64.pack(a.ino), a.pack(), generation)
        put_name(volume, writer, generation, b.ino, b"up", a.ino, 0)

    async def walk(volume: Volume) -> None:
        vfs = files_of(volume)
        a = vfs.lookup(ROOT_INO, b"a")
        b = vfs.lookup(a.ino, b"b")
        assert vfs.lookup(b.ino, b"up").ino == a.ino
        with pytest.raises(FsError) as caught:
            vfs.rename(ROOT_INO, b"moved", b.ino, b"here")
        assert caught.value.errno == errno.ELOOP
        with pytest.raises(FsError) as caught:
            await vfs.clone(vfs.lookup(ROOT_INO, b"moved").ino, b.ino, b"copy")
        assert caught.value.errno == errno.ELOOP
        with pytest.raises(FormatError, match="more than one name"):
            await vfs.clone(a.ino, ROOT_INO, b"copy")
        assert await get_file(volume, b"innocent") == b"bystander"
        cut = await begin_cut(volume.store)
        names = sorted(seen.path for seen in Differences(cut.reader, cut.reader)._walk())
        assert names == [b"/", b"/a", b"/a/b", b"/a/b/up", b"/innocent", b"/moved"]
        nowhere = 1 << 60
        assert await paths_of(cut.reader, {nowhere}) == {}
        cut.close()

    recovered(world, prepare, tamper).run(walk)


@pytest.mark.parametrize(
    "change",
    [
        lambda node: setattr(node, "mode", 0o150644),
        lambda node: setattr(node, "size", FILE_SIZE_MAX + 1),
        lambda node: setattr(node, "target", b"somewhere"),
        lambda node: setattr(node, "nlink", 2**32 - 1),
        lambda node: setattr(node, "count", 2**64 - 1),
    ],
    ids=["type", "size", "target", "nlink", "count"],
)
def test_an_inode_that_cannot_be_is_an_error_of_its_own(world: World, change: Callable[[Inode], None]) -> None:
    def prepare(vfs: Vfs) -> None:
        vfs.mknod(ROOT_INO, b"victim", 0o100644, 0, 0, 0)

    def tamper(volume: Volume, writer: Writer, generation: int) -> None:
        node = node_at(volume, writer, b"victim")
        change(node)
        writer.put(Table.INODES, U64.pack(node.ino), node.pack(), generation)

    async def look(volume: Volume) -> None:
        vfs = files_of(volume)
        with pytest.raises(FormatError):
            vfs.lookup(ROOT_INO, b"victim")
        await put_file(volume, b"other", b"works on")
        await volume.sync()
        assert await get_file(volume, b"other") == b"works on"

    recovered(world, prepare, tamper).run(look)


def test_counts_that_are_too_low_stop_no_commit(world: World) -> None:
    def prepare(vfs: Vfs) -> None:
        a = vfs.mkdir(ROOT_INO, b"a", 0o755, 0, 0)
        vfs.mkdir(a.ino, b"b", 0o755, 0, 0)

    def tamper(volume: Volume, writer: Writer, generation: int) -> None:
        for name in (b"a", b"innocent"):
            node = node_at(volume, writer, name)
            node.count = node.nlink = 0
            writer.put(Table.INODES, U64.pack(node.ino), node.pack(), generation)

    async def remove(volume: Volume) -> None:
        vfs = files_of(volume)
        volume.store.files = volume.store.bytes_used = 0
        a = vfs.lookup(ROOT_INO, b"a")
        vfs.rmdir(a.ino, b"b")
        vfs.unlink(ROOT_INO, b"innocent")
        await volume.sync()
        await put_file(volume, b"other", b"works on")
        await volume.sync()
        assert volume.store.failure is None

    recovered(world, prepare, tamper).run(remove)


def test_set_id_bits_and_devices_come_back_as_their_owner_made_them(world: World) -> None:
    def prepare(vfs: Vfs) -> None:
        vfs.mknod(ROOT_INO, b"su", stat.S_IFREG | 0o6755, 0, 0, 0)
        vfs.mknod(ROOT_INO, b"disk", stat.S_IFBLK | 0o600, os.makedev(8, 0), 0, 0)

    async def look(volume: Volume) -> None:
        vfs = files_of(volume)
        assert vfs.lookup(ROOT_INO, b"su").mode == stat.S_IFREG | 0o6755
        assert vfs.lookup(ROOT_INO, b"disk").rdev == os.makedev(8, 0)

    recovered(world, prepare, lambda *_: None).run(look)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_a_tree_without_a_root_is_refused(world: World) -> None:
    refused(world, lambda volume, writer, generation: _forget_root(writer, generation))


def _forget_root(writer: Writer, generation: int) -> None:
    writer.delete(Table.INODES, U64.pack(ROOT_INO), generation)


def test_a_root_that_is_no_directory_is_refused(world: World) -> None:
    def tamper(volume: Volume, writer: Writer, generation: int) -> None:
        node = Inode(ROOT_INO, stat.S_IFREG | 0o644, 0, 0, 0)
        writer.put(Table.INODES, U64.pack(ROOT_INO), node.pack(), generation)

    refused(world, tamper)


@pytest.mark.parametrize("table", [Table.INODES, Table.LOCATIONS, Table.KEYS])
def test_numbers_that_would_be_given_out_again_are_refused(world: World, table: Table) -> None:
    """Of an inode: two files in one.  Of a version: contents that would be believed to be published."""

    def tamper(volume: Volume, writer: Writer, generation: int) -> None:
        writer.put(table, U64.pack(2**61), pack_entry(Entry(0, 5, 8, b"whatever")), generation)

    refused(world, tamper)


@pytest.mark.parametrize("table", [Table.ORPHANS, Table.NAMES, Table.TOMBSTONES, Table.SEGMENTS])
def test_a_key_that_its_table_cannot_have_is_refused(world: World, table: Table) -> None:
    refused(world, lambda volume, writer, generation: writer.put(table, b"key", b"", generation))


@pytest.mark.parametrize(
    "changes",
    [
        {"counters": (1, 1, 2, 2**63, 2, 2**63)},
        {"counters": (2**63, 1, 2, 1, 2**62, 2**62)},
        {"time_ns": 2**64 - 1},
        {"chunk_size": 2**40},
        {"counters": (3, 1, 2, 1, 2, 1)},
    ],
    ids=["versions", "files", "time", "chunk size", "limits below what is there"],
)
def test_a_head_beyond_all_limits_is_refused(world: World, changes: dict[str, Any]) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        real = volume.heads.store

        async def store(head: Head, *args: Any, **options: Any) -> Any:
            return await real(msgspec.structs.replace(head, **changes), *args, **options)

        volume.heads.store = store  # type: ignore[method-assign]
        await put_file(volume, b"innocent", b"bystander")
        await volume.sync()

    here.run(body)
    with pytest.raises(FormatError):
        world.machine("there").recover(key)
    assert not world.machine("there").state_dir.exists()
