"""Key slots: the master key, wrapped under a secret that a person or a machine keeps.

Encoded slot:  "icnfs-slot" NUL NUL (12) || format version (2) || length (4) || msgpack document || checksum (16)
The checksum is BLAKE2b-128 of all before it: it tells a damaged slot from a wrong secret, and protects nothing.

Wrapping: key = Argon2id(passphrase, salt, costs) or HKDF-SHA-256(secret, salt, "icnfs/1/slot/" KIND); the master key
under AES-256-GCM with a random nonce; the associated data is the version and the document itself with `sealed` empty.
So no parameter can be changed, lowered or exchanged and the slot still open.

Promises: costs are capped before anything is computed; two slots of one secret and one master share no byte that is not
constant, except the label: label a copy that goes to a provider "".  It does not know where slots are kept.
"""

from __future__ import annotations

import secrets
from enum import StrEnum
from hashlib import blake2b
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from icnfs import limits
from icnfs.crypto.keys import KEY_SIZE, MasterKey, Secret, hkdf_expand, hkdf_extract
from icnfs.crypto.recovery import RECOVERY_SIZE, format_recovery_key, new_recovery_key, parse_recovery_key
from icnfs.errors import FormatError, NewerFormatError, SecretError

__all__ = [
    "DEFAULT_COSTS",
    "SLOT_MAX",
    "Costs",
    "Slot",
    "SlotKind",
    "decode_slot",
    "encode_slot",
    "format_recovery_key",
    "make_slot",
    "new_recovery_key",
    "open_slot",
    "parse_recovery_key",
]

SLOT_VERSION: Final = 1
SLOT_MAX: Final = 4096
"""Bytes: no encoded slot is larger, so no more need be fetched."""

LABEL_MAX: Final = 256
KEY_FILE_MIN: Final = 32
_ID_SIZE: Final = 16
_SALT_SIZE: Final = 32
_NONCE_SIZE: Final = 12
_SEALED_SIZE: Final = _NONCE_SIZE + KEY_SIZE + 16
_MAGIC: Final = b"icnfs-slot\0\0"
_HEADER: Final = len(_MAGIC) + 2 + 4
_CHECKSUM_SIZE: Final = 16


class SlotKind(StrEnum):
    """Who keeps the secret, and so how much guessing it must withstand."""

    PASSPHRASE = "passphrase"
    KEYFILE = "keyfile"
    RECOVERY = "recovery"

    @property
    def strong(self) -> bool:
        """Whether the secret cannot be guessed at, so that every provider may hold the slot."""
        return self is not SlotKind.PASSPHRASE


class Costs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Argon2id's parameters (RFC 9106)."""

    memory_kib: int
    passes: int
    lanes: int


DEFAULT_COSTS: Final = Costs(limits.ARGON2_MEMORY_KIB, limits.ARGON2_PASSES, limits.ARGON2_LANES)


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wrapped copy of the master key; nothing in it is secret."""

    id: bytes
    kind: SlotKind
    label: str
    salt: bytes
    costs: Costs | None
    sealed: bytes


def make_slot(
    kind: SlotKind | str, secret: Secret, master: MasterKey, *, label: str, costs: Costs | None = None
) -> Slot:
    """Wrap the master key afresh.  `costs` is for passphrases only; the default is `DEFAULT_COSTS`.

    Raises SecretError where the secret is too short for its kind, or a key file that anybody would guess; ValueError
    where label or costs are out of range.
    """
    kind = SlotKind(kind)
    if kind is SlotKind.KEYFILE and len(set(secret.reveal())) == 1:
        raise SecretError("the key file is one byte again and again, which anybody guesses; fill it from /dev/urandom")
    if kind is SlotKind.PASSPHRASE:
        costs = costs or DEFAULT_COSTS
    blank = Slot(secrets.token_bytes(_ID_SIZE), kind, label, secrets.token_bytes(_SALT_SIZE), costs, b"")
    if fault := _fault(blank):
        raise ValueError(f"a key slot cannot have {fault}")
    nonce = secrets.token_bytes(_NONCE_SIZE)
    wrapped = _cipher(blank, secret).encrypt(nonce, master.secret.reveal(), _associated(blank))
    return msgspec.structs.replace(blank, sealed=nonce + wrapped)


def open_slot(slot: Slot, secret: Secret) -> MasterKey:
    """The master key.  Raises SecretError where the secret is not the slot's, FormatError where the slot is absurd."""
    _check(slot)
    cipher = _cipher(slot, secret)
    nonce, wrapped = slot.sealed[:_NONCE_SIZE], slot.sealed[_NONCE_SIZE:]
    try:
        return MasterKey(Secret(cipher.decrypt(nonce, wrapped, _associated(slot))))
    except InvalidTag:
        raise SecretError(f"the {slot.kind.value} does not open the key slot; check that it is the right one") from None


def encode_slot(slot: Slot) -> bytes:
    """The slot as it is stored, at most SLOT_MAX bytes."""
    document = msgspec.msgpack.encode(slot)
    head = _MAGIC + SLOT_VERSION.to_bytes(2, "big") + len(document).to_bytes(4, "big")
    return head + document + _checksum(head + document)


def decode_slot(data: bytes) -> Slot:
    """The slot in these bytes.  Raises NewerFormatError for a later version, FormatError for anything else."""
    if len(data) > SLOT_MAX or len(data) < _HEADER + _CHECKSUM_SIZE or not data.startswith(_MAGIC):
        raise FormatError("this is no key slot")
    if data[-_CHECKSUM_SIZE:] != _checksum(data[:-_CHECKSUM_SIZE]):
        raise FormatError("a key slot is damaged: its checksum does not fit; use another copy")
    version = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 2], "big")
    if version != SLOT_VERSION:
        raise NewerFormatError(f"a key slot has format version {version}, this release knows {SLOT_VERSION}; upgrade")
    if int.from_bytes(data[_HEADER - 4 : _HEADER], "big") != len(data) - _HEADER - _CHECKSUM_SIZE:
        raise FormatError("a key slot is damaged: its length does not fit; use another copy")
    try:
        slot = msgspec.msgpack.decode(data[_HEADER:-_CHECKSUM_SIZE], type=Slot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"a key slot is malformed: {error}") from None
    _check(slot)
    return slot


def _check(slot: Slot) -> None:
    fault = _fault(slot) or ("a wrapped key of the wrong size" if len(slot.sealed) != _SEALED_SIZE else "")
    if fault:
        raise FormatError(f"a key slot has {fault}; it is not of this release's making")


def _fault(slot: Slot) -> str:
    """What is out of range in a slot ("" where nothing is): asked of every slot before anything is computed from it."""
    if len(slot.id) != _ID_SIZE or len(slot.salt) != _SALT_SIZE:
        return "an id or salt of the wrong size"
    if len(slot.label.encode("utf-8", "surrogatepass")) > LABEL_MAX:
        return f"a label of more than {LABEL_MAX} bytes"
    if (slot.costs is None) == (slot.kind is SlotKind.PASSPHRASE):
        return "derivation costs that its kind does not use" if slot.costs else "no derivation costs"
    if slot.costs and not _bearable(slot.costs):
        return f"derivation costs beyond what is bearable ({slot.costs})"
    return ""


def _bearable(costs: Costs) -> bool:
    return (
        1 <= costs.lanes <= limits.ARGON2_LANES_MAX
        and 1 <= costs.passes <= limits.ARGON2_PASSES_MAX
        and 8 * costs.lanes <= costs.memory_kib <= limits.ARGON2_MEMORY_KIB_MAX  # RFC 9106 section 3.1: m >= 8p
    )


def _associated(slot: Slot) -> bytes:
    return SLOT_VERSION.to_bytes(2, "big") + msgspec.msgpack.encode(msgspec.structs.replace(slot, sealed=b""))


def _cipher(slot: Slot, secret: Secret) -> AESGCM:
    if slot.costs is not None:
        if not len(secret):
            raise SecretError("the passphrase is empty; give at least one character")
        argon = Argon2id(
            salt=slot.salt,
            length=KEY_SIZE,
            iterations=slot.costs.passes,
            lanes=slot.costs.lanes,
            memory_cost=slot.costs.memory_kib,
        )
        return AESGCM(argon.derive(secret.reveal()))
    least = RECOVERY_SIZE if slot.kind is SlotKind.RECOVERY else KEY_FILE_MIN
    if len(secret) < least:
        raise SecretError(f"a {slot.kind.value} secret needs at least {least} random bytes, this one has {len(secret)}")
    info = b"icnfs/1/slot/" + slot.kind.value.encode()
    return AESGCM(hkdf_expand(hkdf_extract(slot.salt, secret.reveal()), info))


def _checksum(data: bytes) -> bytes:
    return blake2b(data, digest_size=_CHECKSUM_SIZE).digest()
