"""The recovery key: 160 random bits as a person copies them on paper, shown once at `init`.

Form: 36 characters of Crockford's base32 in six groups of six, `XXXXXX-XXXXXX-...`: 32 characters of key, then a
check of 20 bits.  Lower case, spaces, dashes, and the look-alikes O, I and L are taken for what they look like.

Promises: one wrong character, two neighbours exchanged, and any damage within four characters in a row are always told
apart from a wrong key (a cyclic code of degree 20 detects every burst of up to 20 bits); other damage but once in a
million times.
"""

from __future__ import annotations

from typing import Final

from icnfs.crypto.keys import Secret
from icnfs.errors import SecretError

RECOVERY_SIZE: Final = 20
"""Bytes of a recovery key: 160 bits need no slow derivation and may be known to every provider in wrapped form."""

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford: no I, L, O, U
_VALUES: Final = {char: value for value, char in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_GROUP: Final = 6
_CHECK_BITS: Final = 20
_CHECK_POLYNOMIAL: Final = (1 << 20) | (1 << 3) | 1  # x^20 + x^3 + 1, primitive
_LENGTH: Final = (RECOVERY_SIZE * 8 + _CHECK_BITS) // 5


def new_recovery_key() -> Secret:
    """A fresh recovery key of 160 bits."""
    return Secret.random(RECOVERY_SIZE)


def format_recovery_key(key: Secret) -> str:
    """The key as it is shown to a person: 41 characters."""
    if len(key) != RECOVERY_SIZE:
        raise ValueError(f"a recovery key has {RECOVERY_SIZE} bytes, not {len(key)}")
    number = _with_check(int.from_bytes(key.reveal(), "big"))
    text = "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))
    return "-".join(text[at : at + _GROUP] for at in range(0, _LENGTH, _GROUP))


def parse_recovery_key(text: str) -> Secret:
    """The key that a person typed.  Raises SecretError, without quoting it, where it was mistyped."""
    number = length = 0
    for char in text.upper():
        if char.isspace() or char == "-":
            continue
        if char not in _VALUES:
            raise SecretError("the recovery key holds a character that recovery keys do not use; check it for typos")
        number = number << 5 | _VALUES[char]
        length += 1
        if length > _LENGTH:
            raise SecretError(f"the recovery key is longer than {_LENGTH} characters; check it for typos")
    if length < _LENGTH:
        raise SecretError(f"the recovery key has {length} of {_LENGTH} characters; check it for typos")
    if _with_check(number >> _CHECK_BITS) != number:
        raise SecretError("the recovery key was mistyped: its check does not fit; compare it with what you wrote down")
    return Secret((number >> _CHECK_BITS).to_bytes(RECOVERY_SIZE, "big"))


def _with_check(key: int) -> int:
    """The key followed by the remainder that makes the whole divisible by the polynomial, over GF(2)."""
    shifted = remainder = key << _CHECK_BITS
    for bit in range(RECOVERY_SIZE * 8 + _CHECK_BITS - 1, _CHECK_BITS - 1, -1):
        if remainder >> bit & 1:
            remainder ^= _CHECK_POLYNOMIAL << (bit - _CHECK_BITS)
    return shifted | remainder
