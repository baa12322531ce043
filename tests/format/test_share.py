"""A share's file parses to what was packed, and every other file is a FormatError or fails its root."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.erasure import hashtree
from icnfs.errors import FormatError, NewerFormatError
from icnfs.format import share
from icnfs.limits import LEAF_SIZE, SEGMENT_MAX

SMALL, SMALL_ROOT = share.pack(b"a small share")
LENGTH = 2 * LEAF_SIZE + 500
LARGE_PAYLOAD = bytes(range(250)) * (LENGTH // 250 + 1)
LARGE_PAYLOAD = LARGE_PAYLOAD[:LENGTH]
LARGE, LARGE_ROOT = share.pack(LARGE_PAYLOAD)


def verified(data: bytes, root: bytes) -> bytes:
    """The payload as a reader takes it: parsed, then verified against the root."""
    parsed = share.parse(data)
    hashtree.verify_leaves(parsed.leaf_hashes, len(parsed.payload), root)
    hashtree.verify_data(parsed.leaf_hashes, len(parsed.payload), 0, parsed.payload)
    return bytes(parsed.payload)


@given(st.binary(max_size=300))
def test_a_share_parses_to_what_was_packed(payload: bytes) -> None:
    data, root = share.pack(memoryview(payload))
    assert len(data) == share.file_size(len(payload))
    assert verified(data, root) == payload
    assert share.parse_header(data[: share.header_size(len(payload))]) == (len(payload), hashtree.leaves(payload))
    assert share.parse_fixed(data[: share.FIXED_SIZE]) == len(payload)


def test_a_share_of_several_leaves_parses() -> None:
    assert verified(LARGE, LARGE_ROOT) == LARGE_PAYLOAD
    assert share.header_size(LENGTH) == share.FIXED_SIZE + 3 * 32


def test_every_flipped_bit_of_a_share_is_detected() -> None:
    for bit in range(len(SMALL) * 8):
        changed = bytearray(SMALL)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            verified(bytes(changed), SMALL_ROOT)


def test_every_cut_extension_and_exchange_of_a_share_is_detected() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(FormatError):
            share.parse(SMALL[:length])
    other, _ = share.pack(b"b small share")
    for changed in (SMALL + b"\0", SMALL + SMALL, other, LARGE):
        with pytest.raises(FormatError):
            verified(changed, SMALL_ROOT)


@settings(max_examples=100)
@given(st.integers(0, LENGTH - 1), st.data())
def test_a_span_holds_its_range_in_whole_leaves(offset: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, LENGTH - offset))
    span = share.span_for(LENGTH, offset, length)
    leaves = LARGE[span.file_offset : span.file_offset + span.file_length]
    assert len(leaves) == span.file_length < length + 2 * LEAF_SIZE
    assert leaves[span.skip : span.skip + length] == LARGE_PAYLOAD[offset : offset + length]
    hashtree.verify_range(hashtree.leaves(LARGE_PAYLOAD), LENGTH, LARGE_ROOT, span.first_leaf, leaves)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, LENGTH + 1), (LENGTH, 1), (5, -1)])
def test_a_span_outside_the_payload_is_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="do not lie"):
        share.span_for(LENGTH, offset, length)


def test_a_header_shows_nothing_but_sizes() -> None:
    one, _ = share.pack(b"\x00" * 100)
    other, _ = share.pack(b"\xff" * 100)
    assert one[: share.FIXED_SIZE] == other[: share.FIXED_SIZE]
    assert one[share.FIXED_SIZE : share.header_size(100)] != other[share.FIXED_SIZE : share.header_size(100)]


def test_later_versions_and_unknown_features_are_told_from_damage() -> None:
    newer = SMALL[:8] + b"\0\2" + SMALL[10:]
    featured = SMALL[:10] + b"\0\1" + SMALL[12:]
    for data in (newer, featured):
        with pytest.raises(NewerFormatError, match="upgrade"):
            share.parse(data)


def test_a_huge_length_is_refused_before_anything_is_allocated() -> None:
    for length in (SEGMENT_MAX + 1, 2**63, 2**64 - 1):
        with pytest.raises(FormatError):
            share.parse_fixed(SMALL[:16] + length.to_bytes(8, "big") + SMALL[24:32])


@given(st.binary(max_size=120))
def test_parsing_is_total(data: bytes) -> None:
    for forged in (data, share.MAGIC + data, SMALL[: share.FIXED_SIZE] + data):
        for parse in (share.parse, share.parse_header, share.parse_fixed):
            try:
                parse(forged)
            except FormatError:
                continue
            assert forged.startswith(share.MAGIC)


def test_leaf_hashes_must_fit_the_payload_when_packed() -> None:
    with pytest.raises(ValueError, match="leaf hashes"):
        share.pack_header(LEAF_SIZE + 1, bytes(32))


def test_a_share_never_changes_between_releases() -> None:
    assert SMALL.hex() == (
        "69636e66732d73680001000000010000000000000000000d000000000000000035d5a4a2b67f912ce30b4840a4bd6a16"
        "48178690c4d1f1396673f82d348675136120736d616c6c207368617265"
    )
    assert SMALL_ROOT.hex() == "ac65f0e944dc61d38fa32844d6a901ffc86f6d58a3708d00f0e42b9fbbcd5fea"
