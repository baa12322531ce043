from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import FormatError
from icnfs.format import records
from icnfs.format.records import ChunkRecord, Entry, Location, Patch
from icnfs.limits import CHUNK_SIZE
from icnfs.state.inode import Inode

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
names = st.binary(min_size=1, max_size=255).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)


@given(u64, u64, st.integers(0, 15), names)
def test_an_entry_comes_back_as_it_was(cookie: int, ino: int, kind: int, name: bytes) -> None:
    entry = Entry(cookie, ino, kind, name)
    assert records.unpack_entry(cookie, records.pack_entry(entry)) == entry


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"x" * 256])
def test_a_name_that_no_file_may_have_is_refused(name: bytes) -> None:
    with pytest.raises(FormatError):
        records.unpack_entry(1, records.pack_entry(Entry(1, 2, 8, name)))


@given(u64, u64, u32, u32, st.binary(min_size=16, max_size=16))
def test_a_chunk_record_comes_back_as_it_was(version: int, key: int, salt: int, length: int, tag: bytes) -> None:
    record = ChunkRecord(version, key, salt, length, tag)
    assert records.unpack_chunk(records.pack_chunk(record)) == record


@given(st.integers(0, CHUNK_SIZE - 100), st.binary(max_size=100))
def test_a_patch_comes_back_as_it_was(offset: int, data: bytes) -> None:
    patch = Patch(7, records.DATA, offset, data)
    assert records.unpack_patch(7, records.pack_patch(patch)) == patch


def test_a_patch_may_not_reach_past_its_chunk() -> None:
    with pytest.raises(FormatError):
        records.unpack_patch(7, records.pack_patch(Patch(7, records.DATA, CHUNK_SIZE - 1, b"ab")))


@given(st.dictionaries(st.binary(min_size=1, max_size=255), st.binary(max_size=300), max_size=8))
def test_xattrs_come_back_as_they_were(xattrs: dict[bytes, bytes]) -> None:
    assert records.unpack_xattrs(records.pack_xattrs(xattrs)) == xattrs


@given(st.binary(min_size=16, max_size=16), st.integers(0, 255), u32, u32)
def test_a_location_comes_back_as_it_was(segment: bytes, share: int, offset: int, length: int) -> None:
    location = Location(segment, share, offset, length)
    assert records.unpack_location(records.pack_location(location)) == location


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_format_error(data: bytes) -> None:
    for parse in (
        lambda d: records.unpack_entry(1, d),
        records.unpack_chunk,
        lambda d: records.unpack_patch(1, d),
        records.unpack_location,
        records.unpack_key,
        records.unpack_xattrs,
        lambda d: Inode.unpack(1, d),
    ):
        try:
            parse(data)
        except FormatError:
            pass


def test_an_inode_comes_back_as_it_was() -> None:
    node = Inode(9, 0o120777, 1, 2, -5)
    node.target = b"some/where"
    node.size = 10
    node.rdev, node.key_id, node.parent, node.count, node.nlink, node.flags = 1, 2, 3, 4, 5, 1
    node.atime, node.mtime, node.ctime, node.btime = -1, 2, 3, 2**62
    back = Inode.unpack(9, node.pack())
    assert all(getattr(back, field) == getattr(node, field) for field in Inode.__slots__)


def test_an_inode_of_a_type_that_there_is_not_is_refused() -> None:
    with pytest.raises(FormatError):
        Inode.unpack(9, Inode(9, 0o000644, 0, 0, 0).pack())
