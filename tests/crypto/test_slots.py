"""Key slots open with their secret alone, unchanged, at a bearable cost."""

from __future__ import annotations

import traceback
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs import limits
from icnfs.crypto.keys import MasterKey, Secret
from icnfs.crypto.slots import (
    DEFAULT_COSTS,
    SLOT_MAX,
    Costs,
    Slot,
    SlotKind,
    _checksum,
    decode_slot,
    encode_slot,
    make_slot,
    open_slot,
)
from icnfs.errors import FormatError, NewerFormatError, SecretError

CHEAP = Costs(8, 1, 1)
MASTER = MasterKey(Secret(bytes(range(32))))
SECRETS = {
    SlotKind.PASSPHRASE: Secret(b"canary horse"),
    SlotKind.KEYFILE: Secret(b"canary key file of 32+ bytes....."),
    SlotKind.RECOVERY: Secret(b"canary 20 bytes....."),
}
SLOTS = {
    kind: make_slot(kind, secret, MASTER, label="desk", costs=None if kind.strong else CHEAP)
    for kind, secret in SECRETS.items()
}
kinds = pytest.mark.parametrize("kind", list(SlotKind))


def resealed(document: bytes, version: int = 1, length: int | None = None) -> bytes:
    """A slot with a right checksum around any document: what a forger can make."""
    size = len(document) if length is None else length
    body = b"icnfs-slot\0\0" + version.to_bytes(2, "big") + size.to_bytes(4, "big") + document
    return body + _checksum(body)


@kinds
def test_a_slot_opens_with_its_secret(kind: SlotKind) -> None:
    slot = decode_slot(encode_slot(SLOTS[kind]))
    assert slot == SLOTS[kind]
    assert open_slot(slot, SECRETS[kind]) == MASTER
    assert (slot.kind, slot.label) == (kind, "desk")


@kinds
def test_a_wrong_secret_is_a_secret_error_that_shows_nothing(kind: SlotKind) -> None:
    wrong = Secret(SECRETS[kind].reveal() + b" canary")
    with pytest.raises(SecretError, match="does not open") as caught:
        open_slot(SLOTS[kind], wrong)
    shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "<secret>" in shown
    assert "canary" not in shown
    assert MASTER.secret.reveal().hex() not in shown


def test_default_costs_are_those_of_the_limits_and_open() -> None:
    slot = make_slot("passphrase", Secret(b"x"), MASTER, label="")
    assert slot.costs == DEFAULT_COSTS == Costs(65536, 3, 4)
    assert open_slot(slot, Secret(b"x")) == MASTER


@kinds
def test_only_a_passphrase_can_be_guessed_at(kind: SlotKind) -> None:
    assert kind.strong is (kind is not SlotKind.PASSPHRASE)


@kinds
def test_two_copies_for_two_providers_cannot_be_matched(kind: SlotKind) -> None:
    costs = None if kind.strong else CHEAP
    one, other = (make_slot(kind, SECRETS[kind], MASTER, label="", costs=costs) for _ in range(2))
    assert one.id != other.id
    assert one.salt != other.salt
    assert one.sealed[:12] != other.sealed[:12]
    assert one.sealed[12:] != other.sealed[12:]
    assert len(encode_slot(one)) == len(encode_slot(other))


@kinds
def test_every_flipped_bit_of_an_encoded_slot_is_detected(kind: SlotKind) -> None:
    data = encode_slot(SLOTS[kind])
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_slot(bytes(changed))


def test_every_cut_and_extension_of_an_encoded_slot_is_detected() -> None:
    data = encode_slot(SLOTS[SlotKind.PASSPHRASE])
    for length in range(len(data)):
        with pytest.raises(FormatError):
            decode_slot(data[:length])
    for changed in (data + b"\0", data + data, data + bytes(SLOT_MAX)):
        with pytest.raises(FormatError):
            decode_slot(changed)


@kinds
@pytest.mark.parametrize(
    "change",
    [
        {"id": bytes(16)},
        {"label": "desl"},
        {"salt": bytes(32)},
        {"sealed": bytes(60)},
        {"kind": SlotKind.KEYFILE, "costs": None},
        {"kind": SlotKind.RECOVERY, "costs": None},
        {"kind": SlotKind.PASSPHRASE, "costs": CHEAP},
        {"kind": SlotKind.PASSPHRASE, "costs": Costs(16, 1, 1)},
        {"kind": SlotKind.PASSPHRASE, "costs": Costs(8, 2, 1)},
    ],
)
def test_a_slot_with_any_field_changed_does_not_open(kind: SlotKind, change: dict[str, Any]) -> None:
    tampered = msgspec.structs.replace(SLOTS[kind], **change)
    if tampered == SLOTS[kind]:
        return
    with pytest.raises(SecretError):
        open_slot(decode_slot(encode_slot(tampered)), SECRETS[kind])


def test_the_sealed_key_of_one_slot_does_not_open_in_another() -> None:
    kind = SlotKind.KEYFILE
    other = make_slot(kind, SECRETS[kind], MasterKey.random(), label="desk")
    with pytest.raises(SecretError):
        open_slot(msgspec.structs.replace(SLOTS[kind], sealed=other.sealed), SECRETS[kind])


ABSURD = [
    Costs(limits.ARGON2_MEMORY_KIB_MAX + 1, 1, 1),
    Costs(2**32 - 1, 1, 1),
    Costs(2**63, 1, 1),
    Costs(64, limits.ARGON2_PASSES_MAX + 1, 1),
    Costs(1024, 1, limits.ARGON2_LANES_MAX + 1),
    Costs(7, 1, 1),
    Costs(8, 1, 2),
    Costs(64, 0, 1),
    Costs(64, 1, 0),
    Costs(-8, 1, -1),
]


@pytest.mark.parametrize("costs", ABSURD)
def test_absurd_costs_are_refused_before_anything_is_computed(costs: Costs) -> None:
    slot = msgspec.structs.replace(SLOTS[SlotKind.PASSPHRASE], costs=costs)
    with patch("icnfs.crypto.slots.Argon2id", side_effect=AssertionError("was computed")):
        with pytest.raises(FormatError, match="costs"):
            decode_slot(encode_slot(slot))
        with pytest.raises(FormatError, match="costs"):
            open_slot(slot, Secret(b"x"))
        with pytest.raises(ValueError, match="costs"):
            make_slot("passphrase", Secret(b"x"), MASTER, label="", costs=costs)


@pytest.mark.parametrize(
    "change",
    [
        {"costs": None},
        {"kind": SlotKind.KEYFILE},
        {"id": bytes(15)},
        {"salt": b""},
        {"sealed": bytes(59)},
        {"sealed": b""},
        {"label": "x" * 257},
    ],
)
def test_an_impossible_slot_is_refused_by_both_parser_and_opener(change: dict[str, Any]) -> None:
    slot = msgspec.structs.replace(SLOTS[SlotKind.PASSPHRASE], **change)
    with pytest.raises(FormatError):
        decode_slot(encode_slot(slot))
    with pytest.raises(FormatError):
        open_slot(slot, SECRETS[SlotKind.PASSPHRASE])


def test_a_later_version_is_told_from_damage() -> None:
    with pytest.raises(NewerFormatError, match="version 2"):
        decode_slot(resealed(b"anything", version=2))


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_parsing_bytes_is_total(data: bytes) -> None:
    for forged in (data, resealed(data), resealed(data, length=len(data) + 1)):
        with pytest.raises(FormatError):
            decode_slot(forged)


fields = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=64) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
KNOWN = msgspec.msgpack.decode(msgspec.msgpack.encode(SLOTS[SlotKind.PASSPHRASE]))


@settings(max_examples=200)
@given(st.sampled_from([*KNOWN, "extra"]), fields)
def test_parsing_forged_documents_is_total(field: str, value: object) -> None:
    document = msgspec.msgpack.encode({**KNOWN, field: value})
    try:
        slot = decode_slot(resealed(document))
    except FormatError:
        return
    assert isinstance(slot, Slot)


def test_deeply_nested_and_malformed_text_are_format_errors() -> None:
    for document in (b"\x91" * 3000, b"\x81\xa1\xff\xc0", b"\x81\xa5label\xa2\xff\xfe", b"\x86\xa2id" + b"\x91" * 3000):
        with pytest.raises(FormatError):
            decode_slot(resealed(document))


@pytest.mark.parametrize(("kind", "size"), [("keyfile", 31), ("keyfile", 0), ("recovery", 19), ("passphrase", 0)])
def test_a_secret_too_short_for_its_kind_is_refused(kind: str, size: int) -> None:
    with pytest.raises(SecretError):
        make_slot(kind, Secret(bytes(size)), MASTER, label="")


def test_costs_are_for_passphrases_only() -> None:
    with pytest.raises(ValueError, match="costs"):
        make_slot("keyfile", SECRETS[SlotKind.KEYFILE], MASTER, label="", costs=CHEAP)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="not a valid SlotKind"):
        make_slot("smartcard", Secret(bytes(32)), MASTER, label="")


def test_a_slot_is_never_larger_than_its_bound() -> None:
    slot = make_slot("passphrase", Secret(b"x"), MASTER, label="ä" * 128, costs=CHEAP)
    assert len(encode_slot(slot)) <= SLOT_MAX


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (
            SlotKind.PASSPHRASE,
            "69636e66732d736c6f7400000001000000a786a26964c410fd6ae23ff56ad34b6f7f989efa8c7641a46b696e64aa7061"
            "7373706872617365a56c6162656ca46465736ba473616c74c4203f842eb5cef9e5f83a658212c502324a2f3c0ab73383"
            "db58c333f3e601ceefeca5636f73747393080101a67365616c6564c43c2cf882f43c08ff6659416c96c9837394531a04"
            "805f7f424aa180cbd519a373403fa49a348b38af292f73263187c54a40fe333ad10e629cc063f99a4d779169a22bbff4"
            "f859a6ec326c6d531d",
        ),
        (
            SlotKind.KEYFILE,
            "69636e66732d736c6f7400000001000000a186a26964c410294e93326ae543a9ff833b8de724af8fa46b696e64a76b65"
            "7966696c65a56c6162656ca46465736ba473616c74c420162f28b0dab77dad7cb74259c10aa679b2e04492f7f6a0aeb6"
            "ae999ec8f242a3a5636f737473c0a67365616c6564c43cb05b1c49ad23640f1d3494eae96004b71a891fff4dcfc7c3c4"
            "4178017f62ddd538befbbdda110c437a08e3d2710774f1f3a5514aec10f9b73a67ce3df4d64f439d9148241335a39e89"
            "e1e6f8",
        ),
        (
            SlotKind.RECOVERY,
            "69636e66732d736c6f7400000001000000a286a26964c4104ac3b110f55eb161273196bcfb8161bfa46b696e64a87265"
            "636f76657279a56c6162656ca46465736ba473616c74c4204d79e36b020f68f31647260ca4b36adc66191b0729dc5e76"
            "483aea62dde23b67a5636f737473c0a67365616c6564c43c966cb8f8b67051edc569e929d38403a7c0203a59c50197c6"
            "0ba3c05224fcf1ce266101de604cf1fc629eeeccd7cad51374f04fb2849bb76fe8118bff9f71ff7aedf2a4f465ee9973"
            "6414e53d",
        ),
    ],
)
def test_a_slot_of_this_format_opens_for_ever(kind: SlotKind, data: str) -> None:
    assert open_slot(decode_slot(bytes.fromhex(data)), SECRETS[kind]) == MASTER


def test_a_key_file_of_one_byte_again_and_again_is_refused() -> None:
    for byte in (0, 0x6B):
        with pytest.raises(SecretError, match="anybody guesses"):
            make_slot("keyfile", Secret(bytes([byte]) * 64), MASTER, label="")
