"""The object `volume` that marks a provider's place as taken.

    magic "icnfsvol" (8), format version (2), required features (4), token (16)

The token is a keyed hash of the provider's name in the TOML, so it tells the owner of the keys that the place belongs
to this volume and this provider, and tells nobody else that two places belong together.  Numbers are big-endian.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from icnfs.errors import FormatError, NewerFormatError

NAME: Final = "volume"
"""The object's name at every provider."""

MAGIC: Final = b"icnfsvol"
VERSION: Final = 1
FEATURES: Final = 0
TOKEN_SIZE: Final = 16

_MARKER: Final = Struct(f">8sHI{TOKEN_SIZE}s")


def pack_marker(token: bytes) -> bytes:
    return _MARKER.pack(MAGIC, VERSION, FEATURES, token)


def unpack_marker(raw: bytes) -> bytes:
    """The token; `FormatError` where `raw` is no marker, `NewerFormatError` where this release is too old for it."""
    if len(raw) < _MARKER.size or raw[: len(MAGIC)] != MAGIC:
        raise FormatError("not a marker of icnfs")
    _, version, features, token = _MARKER.unpack_from(raw)
    if version > VERSION or features & ~FEATURES:
        raise NewerFormatError(f"a place of format {version}, features {features:#x}; upgrade icnfs")
    if len(raw) != _MARKER.size or version != VERSION:
        raise FormatError("a marker of icnfs with a wrong length or version")
    assert isinstance(token, bytes)
    return token
