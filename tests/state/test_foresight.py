"""What a sequential reader of a mapped file comes to next is asked for, once, and nothing else is."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import pytest

from icnfs.state import foresight
from icnfs.state.foresight import FOLLOWED, NEAR, SURE, WINDOW, Foresight, address_of

PIECE = 132 * 1024


class Asked(Foresight):
    """What would be asked of the kernel, as (first byte, end) from the start of the mapping."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.base = base
        self.ranges: list[tuple[int, int]] = []

    def _want(self, address: int, length: int) -> None:
        assert address % mmap.PAGESIZE == 0
        self.ranges.append((address - self.base, address - self.base + length))


@pytest.fixture
def view() -> memoryview:
    return memoryview(mmap.mmap(-1, 64 << 20, prot=mmap.PROT_READ))


def read(asked: Foresight, view: memoryview, start: int) -> int:
    asked.passed(view[start : start + PIECE])
    return start + PIECE


def test_a_view_tells_where_it_lies() -> None:
    buffer = ctypes.create_string_buffer(100)
    assert address_of(memoryview(buffer)[10:20]) == ctypes.addressof(buffer) + 10
    assert address_of(memoryview(b"abc")[1:]) == address_of(memoryview(b"abc")) + 1


def test_what_is_read_in_order_is_asked_for_ahead_and_each_byte_once(view: memoryview) -> None:
    asked, at = Asked(address_of(view)), 0
    for _ in range(200):
        at = read(asked, view, at)
        if asked.ranges:
            assert at + WINDOW // 2 <= asked.ranges[-1][1] <= at + WINDOW
    assert len(asked.ranges) < 200 * PIECE / (WINDOW // 2) + 1
    assert all(one[1] == other[0] for one, other in zip(asked.ranges, asked.ranges[1:], strict=False))


def test_random_reads_ask_for_nothing(view: memoryview) -> None:
    asked = Asked(address_of(view))
    for place in (40, 3, 17, 16, 50, 2, 30):
        read(asked, view, place << 20)
    at = read(asked, view, 20 << 20)
    read(asked, view, at + NEAR)
    assert not asked.ranges


def test_readers_beside_one_another_are_told_apart(view: memoryview) -> None:
    asked = Asked(address_of(view))
    places = [number * (16 << 20) for number in range(FOLLOWED)]
    for _ in range(SURE + 1):
        places = [read(asked, view, place) for place in places]
    assert len(asked.ranges) == FOLLOWED


def test_the_kernel_reads_what_it_is_asked_for(tmp_path: Path) -> None:
    """Of a file whose pages were dropped, a page that nobody touched is in memory."""
    path = tmp_path / "file"
    path.write_bytes(bytes(16 << 20))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    view, watch = memoryview(mapped), Foresight()
    ahead, at = (SURE + 1) * PIECE + WINDOW // 2, 0
    assert not resident(view, ahead)
    for _ in range(SURE + 1):
        at = read(watch, view, at)
    watch.close()
    end = time.monotonic() + 30
    while not resident(view, ahead):
        assert time.monotonic() < end


def resident(view: memoryview, at: int) -> bool:
    """Whether the page is in memory, by mincore(2)."""
    found = ctypes.c_ubyte(0)
    page = (address_of(view) + at) & -mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), ctypes.byref(found)) == 0
    return bool(found.value & 1)


def test_it_ends_unused_and_twice() -> None:
    watch = Foresight()
    watch.close()
    watch._want(0, mmap.PAGESIZE)
    watch.close()
    watch.close()
    assert foresight.WINDOW % mmap.PAGESIZE == 0
