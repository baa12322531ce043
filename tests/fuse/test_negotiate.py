"""INIT's answer gains and loses the flags that it is to, and nothing else changes; a mount then asks less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.fuse.negotiate import (
    ATOMIC_O_TRUNC,
    AUTO_INVAL_DATA,
    DONT_MASK,
    EXPLICIT_INVAL_DATA,
    HANDLE_KILLPRIV_V2,
    POSIX_ACL,
    amended,
)
from tests.fuse.mounting import Mount, mounted

INIT = 26
IN = Struct("=IIQQIIIHHIIII")
OUT = Struct("=IiQIIII")
TAIL = bytes(40)
"""The rest of struct fuse_init_out."""


def request(flags: int, opcode: int = INIT) -> bytes:
    return IN.pack(IN.size, opcode, 1, 0, 0, 0, 0, 0, 0, 7, 39, 131072, flags) + bytes(48)


def answer(flags: int, error: int = 0) -> bytes:
    return OUT.pack(OUT.size + len(TAIL), error, 1, 7, 38, 131072, flags) + TAIL


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_flags_are_added_where_they_are_offered_and_others_are_taken_out(offered: int, wanted: int) -> None:
    added = DONT_MASK | POSIX_ACL | EXPLICIT_INVAL_DATA | HANDLE_KILLPRIV_V2
    expected = wanted & ~(ATOMIC_O_TRUNC | AUTO_INVAL_DATA) | offered & added
    assert amended(request(offered), answer(wanted)) == answer(expected)


def test_a_refusal_and_other_requests_go_through_as_they_are() -> None:
    assert amended(request(2**32 - 1), answer(0, error=-71)) == answer(0, error=-71)
    assert amended(request(2**32 - 1, opcode=1), answer(0)) == answer(0)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_comes_goes_through(sent: bytes, answered: bytes) -> None:
    assert len(amended(sent, answered)) == len(answered)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with mounted(tmp_path / "mnt") as mount:
        yield mount


@pytest.mark.mount
def test_the_kernel_asks_for_capabilities_once_and_not_before_each_write(mount: Mount) -> None:
    fd = os.open(mount.path / "file", os.O_CREAT | os.O_WRONLY)
    for at in range(50):
        os.pwrite(fd, b"x", at)
    os.close(fd)
    assert mount.fs.calls.count("write") == 50
    assert mount.fs.calls.count("getxattr") <= 1


@pytest.mark.mount
def test_a_write_leaves_what_the_kernel_has_cached(mount: Mount) -> None:
    fd = os.open(mount.path / "file", os.O_CREAT | os.O_RDWR)
    pages = [os.urandom(4096) for _ in range(64)]
    os.pwrite(fd, b"".join(pages), 0)
    calls = len(mount.fs.calls)
    for number in range(0, 64, 2):
        pages[number] = os.urandom(4096)
        os.pwrite(fd, pages[number], number * 4096)
        assert os.pread(fd, 8192, number * 4096) == pages[number] + pages[number + 1]
    assert "read" not in mount.fs.calls[calls:]
    os.close(fd)
    assert (mount.path / "file").read_bytes() == b"".join(pages)


@pytest.mark.mount
def test_the_descriptor_is_the_device_again(mount: Mount) -> None:
    open_files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if os.path.islink(link)]
    assert open_files.count("/dev/fuse") == 1
