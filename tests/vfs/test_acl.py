"""Access control lists: whatever bytes come, and what modes and lists do to one another."""

from __future__ import annotations

import errno
import stat
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import FsError
from icnfs.vfs.acl import ACCESS, DEFAULT, GROUP, GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, Acl, Entry, inherited

perms = st.integers(0, 7)
ids = st.integers(0, NO_ID - 1)
modes = st.integers(0, 0o7777)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    users = draw(st.lists(st.builds(Entry, st.just(USER), perms, ids), max_size=4))
    groups = draw(st.lists(st.builds(Entry, st.just(GROUP), perms, ids), max_size=4))
    masked = bool(users or groups) or draw(st.booleans())
    mask = [Entry(MASK, draw(perms), NO_ID)] if masked else []
    owner, group, other = (Entry(tag, draw(perms), NO_ID) for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    return Acl([owner, *users, group, *groups, *mask, other])


def perm(acl: Acl, tag: int) -> int:
    return next(entry.perm for entry in acl if entry.tag == tag)


@given(acls())
def test_lists_go_out_and_come_back(acl: Acl) -> None:
    assert Acl.parse(acl.pack()) == acl


@given(acls(), st.data())
def test_whatever_bytes_come_is_a_valid_list_or_refused(acl: Acl, data: st.DataObject) -> None:
    packed = bytearray(acl.pack())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    value = bytes(packed[: data.draw(st.integers(0, len(packed)))])
    try:
        parsed = Acl.parse(value)
    except FsError as error:
        assert error.errno == errno.EINVAL
    else:
        assert Acl.parse(parsed.pack()).pack() == parsed.pack()
        assert 0 <= parsed.mode <= 0o777


@given(st.binary(max_size=100))
def test_noise_is_refused(value: bytes) -> None:
    with pytest.raises(FsError):
        Acl.parse(b"\3" + value)


@given(acls(), modes)
def test_a_mode_goes_into_a_list_and_the_named_stay(acl: Acl, mode: int) -> None:
    changed = acl.with_mode(mode)
    assert changed.mode == mode & 0o777
    assert [e for e in changed if e.tag in (USER, GROUP)] == [e for e in acl if e.tag in (USER, GROUP)]
    assert Acl.parse(changed.pack()) == changed
    if len(acl) > 3:
        assert perm(changed, GROUP_OBJ) == perm(acl, GROUP_OBJ)


@given(acls(), modes, modes)
def test_nobody_gets_more_than_the_default_and_the_caller_both_allow(default: Acl, asked: int, umask: int) -> None:
    attributes = {DEFAULT: default.pack(), b"user.a": b"1"}
    mode, lists = inherited(attributes, stat.S_IFREG | asked, umask)
    assert mode & 0o777 == default.mode & asked
    assert mode & ~0o777 == (stat.S_IFREG | asked) & ~0o777
    assert set(lists) == ({ACCESS} if len(default) > 3 else set())
    assert inherited(attributes, stat.S_IFDIR | asked, umask)[1] == {**lists, DEFAULT: default.pack()}


@given(modes, modes)
def test_without_a_default_the_umask_counts(asked: int, umask: int) -> None:
    assert inherited({b"user.a": b"1"}, asked, umask & 0o777) == (asked & ~(umask & 0o777), {})


def test_entries_carry_ids_where_they_have_one() -> None:
    acl = Acl([Entry(USER_OBJ, 6, 5), Entry(USER, 4, 7), Entry(GROUP_OBJ, 4, 5), Entry(MASK, 4, 5), Entry(OTHER, 0, 5)])
    assert acl.pack() == pack("<I", 2) + b"".join(
        pack("<HHI", *e) for e in ((1, 6, NO_ID), (2, 4, 7), (4, 4, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID))
    )
