"""A segment's description decodes to what was encoded, capped; a payload's layout loses nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.errors import FormatError, NewerFormatError
from icnfs.format import segment
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.limits import SEGMENT_MAX, SHARES_MAX

providers = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=32)
shares = st.builds(ShareInfo, providers, st.binary(min_size=32, max_size=32), st.booleans())


@st.composite
def segments(draw: st.DrawFn) -> SegmentInfo:
    n = draw(st.integers(1, 12))
    k = draw(st.integers(1, n))
    share_len = draw(st.integers(1, SEGMENT_MAX // k))
    held = tuple(draw(st.lists(shares, min_size=n, max_size=n)))
    identity = draw(st.binary(min_size=16, max_size=16))
    return SegmentInfo(identity, k, n, share_len, draw(st.integers(1, k * share_len)), held)


GOOD = SegmentInfo(bytes(range(16)), 2, 3, 100, 150, tuple(ShareInfo(name, bytes(32), True) for name in "abc"))


@given(segments())
def test_a_segment_decodes_to_what_was_encoded(info: SegmentInfo) -> None:
    assert segment.decode(segment.encode(info)) == info


def test_the_largest_description_stays_below_its_bound() -> None:
    held = tuple(ShareInfo("p" * 32, b"\xff" * 32, False) for _ in range(SHARES_MAX))
    info = SegmentInfo(bytes(16), SHARES_MAX, SHARES_MAX, SEGMENT_MAX // SHARES_MAX, SEGMENT_MAX, held)
    assert segment.decode(segment.encode(info)) == info


IMPOSSIBLE: list[dict[str, Any]] = [
    {"id": bytes(15)},
    {"k": 0},
    {"k": 4},
    {"n": 4},
    {"n": 2},
    {"share_len": 0},
    {"share_len": -1},
    {"share_len": SEGMENT_MAX},
    {"share_len": 2**63},
    {"size": 0},
    {"size": 201},
    {"shares": ()},
    {"shares": GOOD.shares[:2]},
    {"shares": (*GOOD.shares[:2], ShareInfo("../up", bytes(32), True))},
    {"shares": (*GOOD.shares[:2], ShareInfo("c", bytes(31), True))},
    {"shares": (*GOOD.shares[:2], ShareInfo("", bytes(32), True))},
]


@pytest.mark.parametrize("change", IMPOSSIBLE)
def test_impossible_descriptions_are_neither_encoded_nor_decoded(change: dict[str, Any]) -> None:
    info = msgspec.structs.replace(GOOD, **change)
    with pytest.raises(ValueError, match="cannot have"):
        segment.encode(info)
    forged = msgspec.msgpack.encode([1, info.id, info.k, info.n, info.share_len, info.size, info.shares])
    with pytest.raises(FormatError):
        segment.decode(forged)


@given(st.binary(max_size=300))
def test_decoding_is_total(data: bytes) -> None:
    with pytest.raises(FormatError):
        segment.decode(data)


@settings(max_examples=200)
@given(segments(), st.data())
def test_decoding_damaged_descriptions_is_total(info: SegmentInfo, data: st.DataObject) -> None:
    changed = bytearray(segment.encode(info))
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = segment.decode(bytes(changed[: data.draw(st.integers(0, len(changed)))]))
    except FormatError:
        return
    assert 1 <= decoded.k <= decoded.n == len(decoded.shares) <= SHARES_MAX
    assert decoded.size <= decoded.k * decoded.share_len <= SEGMENT_MAX


def test_nesting_broken_text_and_size_are_capped() -> None:
    texts = [1, bytes(16), 1, 1, 1, 1]
    broken = msgspec.msgpack.encode([*texts, [["ab", bytes(32), True]]]).replace(b"\xa2ab", b"\xa2\xff\xfe")
    for data in (b"\x91" * 5000, b"\x97\x01" + b"\x91" * 5000, broken, bytes(100_000), b""):
        with pytest.raises(FormatError):
            segment.decode(data)


def test_a_later_version_is_told_from_damage() -> None:
    with pytest.raises(NewerFormatError, match="version 2"):
        segment.decode(msgspec.msgpack.encode([2, "whatever", {"the": "future"}]))
    with pytest.raises(FormatError) as caught:
        segment.decode(b"\x97\x00" + segment.encode(GOOD)[2:])
    assert not isinstance(caught.value, NewerFormatError)


def test_missing_shares_are_those_not_stored() -> None:
    held = (GOOD.shares[0], ShareInfo("b", bytes(32), False), GOOD.shares[2])
    assert msgspec.structs.replace(GOOD, shares=held).missing() == (1,)
    assert GOOD.missing() == ()


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_chunks_are_laid_out_round_the_data_shares_without_gap_or_overlap(lengths: list[int], k: int) -> None:
    layout = segment.lay_out(lengths, k)
    fill = [0] * k
    for index, (length, (share, offset)) in enumerate(zip(lengths, layout.places, strict=True)):
        assert fill[share] == min(fill)
        if len(set(lengths)) == 1:
            assert share == index % k, "chunks of one size go round the shares in turn"
        assert offset == fill[share]
        fill[share] += length
    assert layout.share_len == max(fill)


def test_an_empty_pack_has_no_length() -> None:
    assert segment.lay_out([], 4).share_len == 0


@given(st.integers(1, SEGMENT_MAX), st.integers(1, SHARES_MAX))
def test_a_run_fills_k_equal_parts_with_less_than_k_bytes_left_over(size: int, k: int) -> None:
    assert 0 <= segment.run_share_len(size, k) * k - size < k


def test_a_description_never_changes_between_releases() -> None:
    assert segment.encode(GOOD).hex() == (
        "9701c410000102030405060708090a0b0c0d0e0f020364cc969393a161c4200000000000000000000000000000000000"
        "000000000000000000000000000000c393a162c420000000000000000000000000000000000000000000000000000000"
        "0000000000c393a163c4200000000000000000000000000000000000000000000000000000000000000000c3"
    )
