"""Keyed names: where an entry sorts in its directory, and what a provider sees in place of everything.

Promises: without the master key the values say nothing of what they name, and the names that two providers hold of the
same thing cannot be matched.  It does not know what a directory or a provider is.
"""

from __future__ import annotations

import hmac
from base64 import b32encode
from hashlib import blake2b
from struct import Struct
from typing import Final

from icnfs.crypto.keys import MasterKey

COOKIE_BITS: Final = 59
"""Bits of a name's hash: with 4 bits of collision rank they make the 63 of a readdir cookie (off_t is signed)."""

_COOKIES: Final = 2**COOKIE_BITS - 1
_U64: Final = Struct(">Q")
_PERSON: Final = b"icnfs-name"
SHARE_NAME_LENGTH: Final = 52
TOKEN_SIZE: Final = 16


class NameHash:
    """Keyed hashes of one volume's names.  Safe to share between threads."""

    __slots__ = ("_base", "_heads", "_places", "_shares")

    def __init__(self, master: MasterKey) -> None:
        self._base = blake2b(digest_size=8, key=master.subkey("names"), person=_PERSON)
        self._shares = master.subkey("share-names")
        self._places = master.subkey("places")
        self._heads = master.subkey("heads")

    def cookie_base(self, parent: int, name: bytes) -> int:
        """Where `name` sorts in directory `parent`: 1 to 2**59 - 1, for the lower 4 bits of rank to follow.

        Never 0: the cookies below 16 are left to "." and "..".  Takes 0.7 us (a prepared keyed state is copied,
        which is half of what keying BLAKE2b anew costs).
        """
        state = self._base.copy()
        state.update(_U64.pack(parent) + name)
        number: int = _U64.unpack(state.digest())[0]
        return number % _COOKIES + 1

    def share_name(self, segment_id: bytes, index: int, provider: str) -> str:
        """The object name of share `index` of a segment at `provider`: 52 characters of `a-z2-7`."""
        message = b"".join((segment_id, index.to_bytes(2, "big"), provider.encode()))
        return b32encode(hmac.digest(self._shares, message, "sha256"))[:SHARE_NAME_LENGTH].decode().lower()

    def place_token(self, provider: str) -> bytes:
        """16 bytes that mark a place as this volume's `provider`, for the `volume` object."""
        return hmac.digest(self._places, provider.encode(), "sha256")[:TOKEN_SIZE]

    def writer_tag(self, provider: str, writer: bytes) -> bytes:
        """16 bytes that stand for a writer (its 128 random bits) in the names of heads at `provider`."""
        message = len(writer).to_bytes(2, "big") + writer + provider.encode()
        return hmac.digest(self._heads, message, "sha256")[:TOKEN_SIZE]
