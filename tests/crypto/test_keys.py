"""Secrets show nowhere, and every subkey is bound to its use."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.crypto.keys import MasterKey, Secret, hkdf_expand, hkdf_extract

CANARY = b"canary-5f1d9c2e-not-to-be-seen!!"


@pytest.mark.parametrize("holder", [Secret(CANARY), MasterKey(Secret(CANARY))])
def test_a_secret_is_absent_from_repr_str_and_format(holder: Secret | MasterKey) -> None:
    shown = f"{holder!r} {holder!s} {holder} {[holder]} {holder.__slots__}"
    assert "canary" not in shown


@pytest.mark.parametrize("holder", [Secret(CANARY), MasterKey(Secret(CANARY))])
def test_a_secret_is_neither_pickled_nor_copied(holder: Secret | MasterKey) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(holder, protocol)
    with pytest.raises(TypeError):
        copy.copy(holder)
    with pytest.raises(TypeError):
        copy.deepcopy(holder)
    with pytest.raises(TypeError):
        hash(holder)


def test_a_secret_is_absent_from_tracebacks_that_show_locals() -> None:
    secret = Secret(CANARY)
    with pytest.raises(ValueError, match="32 bytes") as caught:
        MasterKey(Secret(secret.reveal()[:-1]))
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "<secret>" in shown
    assert "canary" not in shown


def test_secrets_are_equal_by_value() -> None:
    assert Secret(b"a" * 32) == Secret(b"a" * 32)
    assert Secret(b"a" * 32) != Secret(b"b" * 32)
    assert Secret(b"a") != Secret(b"ab")
    assert Secret(b"a") != b"a"
    assert MasterKey(Secret(b"a" * 32)) == MasterKey(Secret(b"a" * 32))
    assert MasterKey.random() != MasterKey.random()
    assert MasterKey.random() != "key"


def test_a_random_secret_has_the_asked_size() -> None:
    assert len(Secret.random()) == 32
    assert len(Secret.random(20)) == 20


def test_hkdf_is_that_of_rfc_5869_appendix_a1() -> None:
    prk = hkdf_extract(bytes(range(13)), b"\x0b" * 22)
    assert prk.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    assert hkdf_expand(prk, bytes(range(0xF0, 0xFA)), 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


@given(length=st.integers(1, 8160))
def test_hkdf_gives_a_prefix_of_its_longest_output(length: int) -> None:
    whole = hkdf_expand(bytes(32), b"info", 8160)
    assert hkdf_expand(bytes(32), b"info", length) == whole[:length]


@pytest.mark.parametrize("length", [0, -1, 8161])
def test_hkdf_refuses_impossible_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="HKDF"):
        hkdf_expand(bytes(32), b"", length)


def test_subkeys_differ_by_master_use_and_context() -> None:
    one, other = MasterKey.random(), MasterKey.random()
    keys = {
        one.subkey("heads"),
        one.subkey("runs"),
        one.subkey("heads", b"a"),
        one.subkey("heads", b"ab"),
        one.subkey("heads", b"\0"),
        other.subkey("heads"),
    }
    assert len(keys) == 6
    assert one.subkey("heads", b"a") == one.subkey("heads", b"a")


def test_a_use_cannot_reach_into_its_context() -> None:
    with pytest.raises(ValueError, match="NUL"):
        MasterKey.random().subkey("heads\0a")


def test_subkeys_never_change_between_releases() -> None:
    master = MasterKey(Secret(bytes(range(32))))
    assert master.subkey("records", b"salt").hex() == "f1d9a185257d30e9df7d93d7ec98c71cd76a680b7d36f20bc8318d611adafeef"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_master_key_has_one_size(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        MasterKey(Secret(bytes(size)))
