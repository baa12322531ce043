"""Secrets held in memory, and the one way keys are derived from a volume's master key.

Promises: a secret shows in no repr, traceback, pickle or copy; every subkey is bound to its use and its context, so
that no two uses ever share a key.  It cannot promise that a secret is wiped from memory: Python copies bytes at will
(hence no core dumps, see `hardening`).  It does not know where secrets come from or what the subkeys seal.
"""

from __future__ import annotations

import hmac
import secrets
import unicodedata
from typing import Final, NoReturn

KEY_SIZE: Final = 32
"""Bytes in the master key and in every subkey: AES-256 and HMAC-SHA-256."""

_HASH_SIZE: Final = 32
_INFO_PREFIX: Final = b"icnfs/1/"


class Secret:
    """Bytes that only `reveal` shows; equality takes the same time wherever two secrets differ."""

    __slots__ = ("_value",)
    __hash__ = None  # type: ignore[assignment]  # a hash would be a fingerprint of the secret

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    @classmethod
    def random(cls, size: int = KEY_SIZE) -> Secret:
        """`size` bytes from the kernel's generator."""
        return cls(secrets.token_bytes(size))

    def reveal(self) -> bytes:
        """The secret itself: keep it in no variable that outlives the call it is for."""
        return self._value

    def composed(self) -> Secret:
        """The same text in Unicode's composed form (NFC); the same secret where it is not UTF-8."""
        try:
            return Secret(unicodedata.normalize("NFC", self._value.decode()).encode())
        except UnicodeDecodeError:
            return self

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __repr__(self) -> str:
        return "<secret>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a secret is neither pickled nor copied")


def hkdf_extract(salt: bytes, material: bytes) -> bytes:
    """A pseudorandom key of 32 bytes from high-entropy material (RFC 5869 section 2.2, SHA-256)."""
    return hmac.digest(salt, material, "sha256")


def hkdf_expand(prk: bytes, info: bytes, length: int = KEY_SIZE) -> bytes:
    """`length` bytes bound to `info`, from a uniform key (RFC 5869 section 2.3, SHA-256; 1 <= length <= 8160).

    `hmac.digest` costs 1.6 us a block where cryptography's HKDFExpand costs 8.
    """
    if not 1 <= length <= 255 * _HASH_SIZE:
        raise ValueError(f"HKDF gives 1 to {255 * _HASH_SIZE} bytes, not {length}")
    block = okm = hmac.digest(prk, info + b"\x01", "sha256")
    for counter in range(2, -(-length // _HASH_SIZE) + 1):
        block = hmac.digest(prk, block + info + bytes((counter,)), "sha256")
        okm += block
    return okm[:length]


class MasterKey:
    """The volume's 32-byte root secret; everything else is derived from it by use and context."""

    __slots__ = ("_secret",)

    def __init__(self, secret: Secret) -> None:
        if len(secret) != KEY_SIZE:
            raise ValueError(f"a master key has {KEY_SIZE} bytes, not {len(secret)}")
        self._secret = secret

    @classmethod
    def random(cls) -> MasterKey:
        """The key of a new volume."""
        return cls(Secret.random(KEY_SIZE))

    @property
    def secret(self) -> Secret:
        """The key itself, for a key slot to wrap."""
        return self._secret

    def subkey(self, use: str, context: bytes = b"") -> bytes:
        """32 bytes for one use: HKDF-Expand with info `icnfs/1/USE NUL CONTEXT` (USE holds no NUL)."""
        if "\0" in use:
            raise ValueError("the name of a use holds no NUL")
        return hkdf_expand(self._secret.reveal(), _INFO_PREFIX + use.encode() + b"\0" + context)

    def __eq__(self, other: object) -> bool:
        return self._secret == other._secret if isinstance(other, MasterKey) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as for Secret

    def __repr__(self) -> str:
        return "<master key>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a master key is neither pickled nor copied")
