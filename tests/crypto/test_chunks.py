"""Sealed chunks open whole or by range, for their key, salt, version and tag alone."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.crypto.chunks import ChunkSealer
from icnfs.crypto.salts import Salts
from icnfs.errors import DamagedError
from icnfs.limits import BLOCK_SIZE, CHUNK_SIZE

VOLUME = bytes(range(16))
KEY = bytes(range(32))
KEY_ID, SALT_ID, VERSION = 5, 2, 77
PATTERN = hashlib.shake_256(b"chunk").digest(CHUNK_SIZE)


def salts_of(*pairs: tuple[int, int]) -> Salts:
    salts = Salts()
    for salt_id, fill in pairs:
        salts.add(salt_id, bytes((fill,)) * 32)
    salts.current = pairs[-1][0]
    return salts


SEALER = ChunkSealer(VOLUME, salts_of((1, 1), (2, 2)))
WHOLE, WHOLE_TAG = SEALER.seal(KEY, KEY_ID, SALT_ID, VERSION, PATTERN)
sizes = st.one_of(
    st.integers(1, 200),
    st.sampled_from([BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE, CHUNK_SIZE - 1, CHUNK_SIZE]),
    st.integers(1, CHUNK_SIZE),
)


@settings(max_examples=60)
@given(sizes)
def test_a_chunk_opens_to_what_was_sealed(size: int) -> None:
    plain = PATTERN[:size]
    sealed, tag = SEALER.seal(KEY, KEY_ID, SALT_ID, VERSION, memoryview(plain))
    assert len(sealed) == ChunkSealer.sealed_size(size)
    assert ChunkSealer.plain_size(len(sealed)) == size
    assert len(tag) == 16
    assert SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, tag, sealed) == plain
    assert SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, tag, memoryview(sealed)) == plain


@settings(max_examples=100)
@given(st.integers(0, CHUNK_SIZE), st.integers(0, CHUNK_SIZE))
def test_a_range_opens_to_that_part_of_the_whole(one: int, other: int) -> None:
    start, end = sorted((one, other))
    assert SEALER.open_range(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, WHOLE, start, end) == PATTERN[start:end]


def test_a_range_opens_only_the_blocks_it_needs() -> None:
    damaged = bytearray(WHOLE)
    damaged[-1] ^= 1
    opened = SEALER.open_range(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, bytes(damaged), 0, CHUNK_SIZE - BLOCK_SIZE)
    assert opened == PATTERN[:-BLOCK_SIZE]
    with pytest.raises(DamagedError):
        SEALER.open_range(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, bytes(damaged), CHUNK_SIZE - 1, CHUNK_SIZE)


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 4), (0, CHUNK_SIZE + 1)])
def test_a_range_outside_the_chunk_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="do not lie"):
        SEALER.open_range(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, WHOLE, start, end)


@pytest.mark.parametrize("plain", [b"", bytes(CHUNK_SIZE + 1)])
def test_an_empty_or_overlong_chunk_is_not_sealed(plain: bytes) -> None:
    with pytest.raises(ValueError, match="a chunk has"):
        SEALER.seal(KEY, KEY_ID, SALT_ID, VERSION, plain)


def test_nothing_is_sealed_before_a_salt_was_chosen() -> None:
    with pytest.raises(RuntimeError):
        ChunkSealer(VOLUME, Salts()).seal(KEY, KEY_ID, 0, VERSION, b"plain")


def test_every_flipped_bit_of_a_small_chunk_and_of_its_tag_is_detected() -> None:
    sealed, tag = SEALER.seal(KEY, KEY_ID, SALT_ID, VERSION, b"small chunk")
    for bit in range(len(sealed) * 8):
        with pytest.raises(DamagedError):
            SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, tag, flipped(sealed, bit))
    for bit in range(len(tag) * 8):
        with pytest.raises(DamagedError):
            SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, flipped(tag, bit), sealed)


@settings(max_examples=60)
@given(st.integers(0, len(WHOLE) * 8 - 1))
def test_any_flipped_bit_of_a_whole_chunk_is_detected(bit: int) -> None:
    with pytest.raises(DamagedError):
        SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, flipped(WHOLE, bit))


@settings(max_examples=60)
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=40))
def test_any_cut_or_extension_of_a_chunk_is_detected(length: int, more: bytes) -> None:
    for changed in (WHOLE[:length], WHOLE[length + 1 :], WHOLE + more, more + WHOLE):
        with pytest.raises(DamagedError):
            SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, changed)
        with pytest.raises(DamagedError):
            SEALER.open_range(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, changed, 0, 1)


def test_blocks_of_a_chunk_cannot_be_exchanged() -> None:
    head = len(WHOLE) - CHUNK_SIZE
    first, second = WHOLE[head : head + BLOCK_SIZE], WHOLE[head + BLOCK_SIZE : head + 2 * BLOCK_SIZE]
    exchanged = WHOLE[:head] + second + first + WHOLE[head + 2 * BLOCK_SIZE :]
    with pytest.raises(DamagedError):
        SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, exchanged)


@pytest.mark.parametrize(
    "change",
    [{"file_key": bytes(32)}, {"key_id": 6}, {"salt_id": 1}, {"salt_id": 9}, {"version": 78}, {"tag": bytes(16)}],
)
def test_a_chunk_opens_for_its_own_key_salt_version_and_tag_alone(change: dict[str, Any]) -> None:
    right = {"file_key": KEY, "key_id": KEY_ID, "salt_id": SALT_ID, "version": VERSION, "tag": WHOLE_TAG}
    with pytest.raises(DamagedError):
        SEALER.open(**{**right, **change}, sealed=WHOLE)


def test_a_chunk_opens_in_no_other_volume_and_under_no_other_salt_of_that_number() -> None:
    for other in (ChunkSealer(bytes(16), salts_of((2, 2))), ChunkSealer(VOLUME, salts_of((2, 3)))):
        with pytest.raises(DamagedError):
            other.open(KEY, KEY_ID, SALT_ID, VERSION, WHOLE_TAG, WHOLE)


def test_an_older_state_of_a_chunk_does_not_pass_for_the_newer() -> None:
    old, _ = SEALER.seal(KEY, KEY_ID, SALT_ID, 1, b"old contents")
    _, tag = SEALER.seal(KEY, KEY_ID, SALT_ID, 2, b"new contents")
    with pytest.raises(DamagedError):
        SEALER.open(KEY, KEY_ID, SALT_ID, 2, tag, old)


def test_a_sealed_chunk_shows_nothing_that_repeats() -> None:
    again, tag = SEALER.seal(KEY, KEY_ID, SALT_ID, VERSION, PATTERN)
    assert again != WHOLE
    assert tag != WHOLE_TAG
    zeros, _ = SEALER.seal(KEY, KEY_ID, SALT_ID, VERSION, bytes(CHUNK_SIZE))
    blocks = {zeros[at : at + 16] for at in range(0, len(zeros), 16)}
    assert len(blocks) == -(-len(zeros) // 16)


def test_the_block_counter_wraps_within_its_four_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.crypto.chunks.urandom", lambda size: b"\xff" * size)
    sealed, tag = SEALER.seal(KEY, KEY_ID, SALT_ID, VERSION, PATTERN)
    assert SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, tag, sealed) == PATTERN


def test_every_block_counts_as_a_seal() -> None:
    salts = salts_of((1, 1))
    ChunkSealer(VOLUME, salts).seal(KEY, KEY_ID, 1, VERSION, bytes(BLOCK_SIZE + 1))
    assert salts.seals == 2


@given(st.binary(max_size=120), st.binary(max_size=20))
def test_opening_a_chunk_is_total(sealed: bytes, tag: bytes) -> None:
    with pytest.raises(DamagedError):
        SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, tag, sealed)


@given(st.integers(-100, 2 * CHUNK_SIZE))
def test_sizes_are_told_exactly_or_refused(sealed_len: int) -> None:
    try:
        plain_len = ChunkSealer.plain_size(sealed_len)
    except DamagedError:
        return
    assert 1 <= plain_len <= CHUNK_SIZE
    assert ChunkSealer.sealed_size(plain_len) == sealed_len


def test_a_chunk_of_this_format_opens_for_ever() -> None:
    sealed = bytes.fromhex("fd67fb302eb27375185cc034393de8a8d59f5561b198355018306d72f3869e28de9b50c59983afbfd6cb")
    tag = bytes.fromhex("4229e1361a9a965ba2dd12a77e235483")
    assert SEALER.open(KEY, KEY_ID, SALT_ID, VERSION, tag, sealed) == b"a sealed chunk"


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
