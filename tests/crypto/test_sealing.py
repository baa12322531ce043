"""Sealed records and documents open in their place, whole and unchanged, or not at all."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.crypto.keys import MasterKey, Secret
from icnfs.crypto.sealing import RECORD_OVERHEAD, RecordSealer, Salts, open_document, seal_document
from icnfs.errors import DamagedError

VOLUME = bytes(range(16))
MASTER = MasterKey(Secret(bytes(range(32))))


def salts_of(*ids: int) -> Salts:
    salts = Salts()
    for salt_id in ids:
        salts.add(salt_id, bytes((salt_id,)) * 32)
    salts.current = ids[-1]
    return salts


SEALER = RecordSealer(MASTER, VOLUME, salts_of(1, 2))
tables = st.integers(0, 255)
keys = st.binary(max_size=40)


@given(tables, keys, st.binary(max_size=300))
def test_a_record_opens_to_what_was_sealed(table: int, key: bytes, plain: bytes) -> None:
    sealed = SEALER.seal(table, key, plain)
    assert len(sealed) == len(plain) + RECORD_OVERHEAD
    assert SEALER.open(table, key, sealed) == plain
    assert SEALER.open(table, key, memoryview(sealed)) == plain
    assert SEALER.seal(table, key, plain) != sealed


def test_every_flipped_bit_of_a_record_is_detected() -> None:
    sealed = SEALER.seal(3, b"key", b"plain record")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            SEALER.open(3, b"key", bytes(changed))


def test_every_cut_and_extension_of_a_record_is_detected() -> None:
    sealed = SEALER.seal(3, b"key", b"plain record")
    for length in range(len(sealed)):
        for part in (sealed[:length], sealed[len(sealed) - length :], memoryview(sealed)[:length]):
            with pytest.raises(DamagedError):
                SEALER.open(3, b"key", part)
    for more in (sealed + b"\0", b"\0" + sealed, sealed + sealed):
        with pytest.raises(DamagedError):
            SEALER.open(3, b"key", more)


@given(tables, keys, tables, keys)
def test_a_record_opens_nowhere_else(table: int, key: bytes, other_table: int, other_key: bytes) -> None:
    sealed = SEALER.seal(table, key, b"plain")
    if (table, key) != (other_table, other_key):
        with pytest.raises(DamagedError):
            SEALER.open(other_table, other_key, sealed)


@given(tables, keys, st.binary(max_size=100))
def test_opening_a_record_is_total(table: int, key: bytes, sealed: bytes) -> None:
    with pytest.raises(DamagedError):
        SEALER.open(table, key, sealed)


def test_a_record_opens_in_no_other_volume_and_under_no_other_key_or_salt() -> None:
    sealed = SEALER.seal(1, b"k", b"plain")
    swapped = Salts()
    swapped.add(1, bytes((2,)) * 32)
    swapped.add(2, bytes((1,)) * 32)
    others = [
        RecordSealer(MASTER, bytes(16), salts_of(1, 2)),
        RecordSealer(MasterKey.random(), VOLUME, salts_of(1, 2)),
        RecordSealer(MASTER, VOLUME, salts_of(1)),
        RecordSealer(MASTER, VOLUME, swapped),
    ]
    for other in others:
        with pytest.raises(DamagedError):
            other.open(1, b"k", sealed)


def test_records_of_an_older_salt_open_and_new_ones_take_the_current_salt() -> None:
    salts = salts_of(1, 2)
    salts.current = 1
    sealer = RecordSealer(MASTER, VOLUME, salts)
    old = sealer.seal(1, b"k", b"old")
    salts.current = 2
    new = sealer.seal(1, b"k", b"new")
    assert (old[:4], new[:4]) == (b"\0\0\0\1", b"\0\0\0\2")
    again = RecordSealer(MASTER, VOLUME, salts_of(1, 2))
    assert (again.open(1, b"k", old), again.open(1, b"k", new)) == (b"old", b"new")


def test_nothing_is_sealed_before_a_salt_was_chosen() -> None:
    with pytest.raises(RuntimeError):
        RecordSealer(MASTER, VOLUME, Salts()).seal(1, b"k", b"plain")


def test_a_volume_id_has_one_size() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        RecordSealer(MASTER, b"short", Salts())


def test_seals_are_counted() -> None:
    salts = salts_of(1)
    sealer = RecordSealer(MASTER, VOLUME, salts)
    for _ in range(5):
        sealer.seal(1, b"k", b"")
    assert salts.seals == 5


def test_nonces_do_not_repeat_between_threads() -> None:
    sealer = RecordSealer(MASTER, VOLUME, salts_of(1))
    sealed: list[list[bytes]] = [[] for _ in range(4)]

    def seal_many(into: list[bytes]) -> None:
        into.extend(sealer.seal(1, b"k", b"plain") for _ in range(500))

    threads = [threading.Thread(target=seal_many, args=(into,)) for into in sealed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({record[4:16] for into in sealed for record in into}) == 2000


def test_a_record_of_this_format_opens_for_ever() -> None:
    sealed = bytes.fromhex(
        "000000027ef6a3036449d5f07483b410c86341dd985e4be4d380a15cebdc77c9178fd0d84d9ef7b5829cb9c2f1c922"
    )
    assert SEALER.open(7, b"place", sealed) == b"a sealed record"


@given(st.binary(max_size=300), st.binary(max_size=30))
def test_a_document_opens_for_its_use_and_data_alone(plain: bytes, ad: bytes) -> None:
    sealed = seal_document(MASTER, "heads", ad, plain)
    assert open_document(MASTER, "heads", ad, sealed) == plain
    assert SEALER.open_fixed("heads", ad, memoryview(sealed)) == plain
    assert SEALER.open_fixed("runs", ad, SEALER.seal_fixed("runs", ad, plain)) == plain
    for master, use, data in [(MASTER, "runs", ad), (MASTER, "heads", ad + b"x"), (MasterKey.random(), "heads", ad)]:
        with pytest.raises(DamagedError):
            open_document(master, use, data, sealed)


def test_every_flipped_bit_of_a_document_is_detected() -> None:
    sealed = seal_document(MASTER, "heads", b"ad", b"head")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DamagedError):
            open_document(MASTER, "heads", b"ad", bytes(changed))


@given(st.binary(max_size=200))
def test_opening_a_document_is_total(sealed: bytes) -> None:
    with pytest.raises(DamagedError):
        open_document(MASTER, "heads", b"", sealed)


def test_a_document_of_this_format_opens_for_ever() -> None:
    sealed = bytes.fromhex(
        "9479f8d8382c2551bd117b052722b5d21b37ccc9e12a09a19ec38ea51ff645edf5ebf3980eaa2760fd9bc6b091421a7d"
        "6d1742f08353a92138902b107cdf1e404cf57d45f48ad3fc264a750197"
    )
    assert open_document(MASTER, "heads", b"ad", sealed) == b"a sealed document"
