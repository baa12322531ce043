"""What passes the hash tree is what its root was made of, byte for byte and in its place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.erasure import hashtree
from icnfs.errors import DamagedError
from icnfs.limits import LEAF_SIZE

LENGTH = 3 * LEAF_SIZE + 1000
PAYLOAD = b"".join(bytes((index,)) * LEAF_SIZE for index in range(4))[:LENGTH]
LEAVES, ROOT = hashtree.tree(PAYLOAD)


def test_a_payload_passes_whole_and_by_every_run_of_leaves() -> None:
    hashtree.verify_whole(PAYLOAD, ROOT)
    for first in range(4):
        for last in range(first, 4):
            data = PAYLOAD[first * LEAF_SIZE : (last + 1) * LEAF_SIZE]
            hashtree.verify_range(LEAVES, LENGTH, ROOT, first, memoryview(data))


@settings(max_examples=60)
@given(st.integers(0, LENGTH * 8 - 1))
def test_any_flipped_bit_of_the_payload_is_detected(bit: int) -> None:
    changed = bytearray(PAYLOAD)
    changed[bit // 8] ^= 1 << bit % 8
    leaf = bit // 8 // LEAF_SIZE
    with pytest.raises(DamagedError):
        hashtree.verify_whole(changed, ROOT)
    with pytest.raises(DamagedError):
        hashtree.verify_range(LEAVES, LENGTH, ROOT, leaf, changed[leaf * LEAF_SIZE : (leaf + 1) * LEAF_SIZE])


def test_every_flipped_bit_of_leaf_hashes_and_root_is_detected() -> None:
    for bit in range(len(LEAVES) * 8):
        changed = bytearray(LEAVES)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            hashtree.verify_leaves(changed, LENGTH, ROOT)
    for bit in range(256):
        wrong = bytearray(ROOT)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            hashtree.verify_leaves(LEAVES, LENGTH, bytes(wrong))


@given(st.integers(-2 * LEAF_SIZE, 2 * LENGTH))
def test_another_length_does_not_fit_the_root(length: int) -> None:
    if length != LENGTH:
        with pytest.raises(DamagedError):
            hashtree.verify_leaves(LEAVES, max(length, 0), ROOT)


def test_leaves_cannot_be_exchanged_even_where_their_bytes_are_equal() -> None:
    payload = bytes(2 * LEAF_SIZE)
    hashes, root = hashtree.tree(payload)
    assert hashes[:32] != hashes[32:]
    with pytest.raises(DamagedError):
        hashtree.verify_leaves(hashes[32:] + hashes[:32], len(payload), root)
    hashtree.verify_range(hashes, len(payload), root, 1, payload[LEAF_SIZE:])
    with pytest.raises(DamagedError):
        hashtree.verify_range(LEAVES, LENGTH, ROOT, 1, PAYLOAD[:LEAF_SIZE])


@pytest.mark.parametrize(
    ("first", "data"),
    [
        (0, PAYLOAD[: LEAF_SIZE - 1]),
        (0, PAYLOAD[: LEAF_SIZE + 1]),
        (3, PAYLOAD[3 * LEAF_SIZE : -1]),
        (3, PAYLOAD[3 * LEAF_SIZE :] + b"\0"),
        (0, PAYLOAD + b"\0"),
        (4, PAYLOAD[:LEAF_SIZE]),
        (-1, PAYLOAD[:LEAF_SIZE]),
        (2**40, PAYLOAD[:LEAF_SIZE]),
    ],
)
def test_ranges_that_are_no_leaves_are_refused(first: int, data: bytes) -> None:
    with pytest.raises(DamagedError):
        hashtree.verify_data(LEAVES, LENGTH, first, data)


@given(
    st.binary(max_size=200), st.integers(0, 2**40), st.binary(max_size=40), st.integers(0, 9), st.binary(max_size=99)
)
def test_verifying_is_total(hashes: bytes, length: int, root: bytes, first: int, data: bytes) -> None:
    with pytest.raises(DamagedError):
        hashtree.verify_range(hashes, length, root, first, data)


def test_a_leaf_is_not_taken_for_a_root() -> None:
    hashes, root = hashtree.tree(b"x")
    assert hashes != root
    assert hashtree.leaves(b"\0") != hashtree.leaves(b"\0\0")


def test_an_empty_payload_has_no_leaves_and_a_root() -> None:
    hashes, root = hashtree.tree(b"")
    assert hashes == b""
    hashtree.verify_whole(b"", root)
    hashtree.verify_range(b"", 0, root, 0, b"")


def test_the_tree_never_changes_between_releases() -> None:
    assert ROOT.hex() == "18697d67a26fbd2470b071db227fbfd3b18ce1a861f9a9e995a7f62d21ad1cc0"
