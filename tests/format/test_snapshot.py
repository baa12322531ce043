"""The record of a snapshot: it comes back as it was, and any other bytes are refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import FormatError
from icnfs.format import snapshot as format
from icnfs.format.snapshot import KINDS, Snapshot, SnapshotRun

RUNS = (
    SnapshotRun(b"a" * 16, 0, 5, 100, 1000, (b"1" * 16, b"2" * 16)),
    SnapshotRun(b"b" * 16, 5, 9, 3, 40, (b"3" * 16,)),
)
ONE = Snapshot(1, "before", "manual", 1, 0, False, 2, 3, 4, 9, (1, 2, 3, 44, 5, 6), RUNS)


def test_it_comes_back_as_it_was() -> None:
    assert format.decode(format.encode(ONE)) == ONE
    assert ONE.next_version == 44 and ONE.parts == [b"1" * 16, b"2" * 16, b"3" * 16]


@pytest.mark.parametrize(
    "change",
    [
        {"layout": 2},
        {"name": "../x"},
        {"name": ""},
        {"kind": "yearly"},
        {"until": -1},
        {"time_ns": 2**63},
        {"generation": 8},
        {"counters": (1, 2, 3, -4, 5, 6)},
        {"runs": ()},
        {"runs": RUNS[1:]},
        {"runs": (RUNS[0], msgspec.structs.replace(RUNS[1], parts=()))},
        {"runs": (RUNS[0], msgspec.structs.replace(RUNS[1], parts=(b"short",)))},
        {"runs": (RUNS[0], msgspec.structs.replace(RUNS[1], id=b"short"))},
        {"runs": (RUNS[0], msgspec.structs.replace(RUNS[1], rows=-1))},
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        format.decode(msgspec.msgpack.encode(msgspec.structs.replace(ONE, **change)))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_one_error(data: bytes) -> None:
    try:
        assert format.decode(data).kind in KINDS
    except FormatError:
        pass


@given(st.integers(0, len(format.encode(ONE)) - 1), st.integers(0, 255))
def test_any_byte_may_be_altered(at: int, value: int) -> None:
    raw = bytearray(format.encode(ONE))
    raw[at] = value
    try:
        format.decode(bytes(raw))
    except FormatError:
        pass
