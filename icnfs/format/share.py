"""A share as a provider stores it: a header, the list of leaf hashes, the payload.

    0   8   magic "icnfs-sh"
    8   2   format version (1)                                all numbers big-endian
    10  2   feature flags (0; a bit that is not known is a NewerFormatError)
    12  4   leaf size in bytes (LEAF_SIZE)
    16  8   payload length in bytes
    24  8   zeros
    32      leaf hashes, 32 bytes each (`erasure.hashtree`)
    ..      payload

Promises: two shares' headers differ in nothing but sizes, so two providers cannot match theirs by them.  Parsers take
any bytes and give a value or a FormatError.  They do not verify hashes: whoever knows the root does (`hashtree`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from icnfs.erasure import hashtree
from icnfs.errors import FormatError, NewerFormatError
from icnfs.limits import LEAF_SIZE, SEGMENT_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC: Final = b"icnfs-sh"
VERSION: Final = 1
FEATURES: Final = 0
"""Feature flags that this release knows."""

_HEADER: Final = struct.Struct(">8sHHIQ8s")
FIXED_SIZE: Final = _HEADER.size
_ZEROS: Final = bytes(8)


@dataclass(frozen=True, slots=True)
class Share:
    """A share taken apart; its hashes are not verified yet.  `payload` looks into the bytes it was parsed from."""

    leaf_hashes: bytes
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Span:
    """Where in the share's file the whole leaves lie that hold a range of its payload."""

    first_leaf: int
    file_offset: int
    file_length: int
    skip: int
    """Bytes before the wanted range in the leaves; it is `leaves[skip : skip + length]`."""


def header_size(payload_len: int) -> int:
    """Bytes before the payload: the fixed header and the leaf hashes, read and verified as one piece."""
    return FIXED_SIZE + hashtree.HASH_SIZE * hashtree.leaf_count(payload_len)


def file_size(payload_len: int) -> int:
    """Bytes of the whole stored share."""
    return header_size(payload_len) + payload_len


def span_for(payload_len: int, offset: int, length: int) -> Span:
    """The span of a non-empty range that lies in the payload (ValueError)."""
    if offset < 0 or length < 1 or offset + length > payload_len:
        raise ValueError(f"{length} bytes at {offset} do not lie in a share of {payload_len}")
    first = offset // LEAF_SIZE
    start = first * LEAF_SIZE
    end = min(hashtree.leaf_count(offset + length) * LEAF_SIZE, payload_len)
    return Span(first, header_size(payload_len) + start, end - start, offset - start)


def pack_header(payload_len: int, leaf_hashes: bytes) -> bytes:
    """All that precedes the payload, so that the payload itself need not be copied."""
    if len(leaf_hashes) != hashtree.HASH_SIZE * hashtree.leaf_count(payload_len):
        raise ValueError("the list of leaf hashes does not fit the payload's length")
    return _HEADER.pack(MAGIC, VERSION, 0, LEAF_SIZE, payload_len, _ZEROS) + leaf_hashes


def pack(payload: Buffer) -> tuple[bytes, bytes]:
    """(the share's file, its root)."""
    hashes, root = hashtree.tree(payload)
    return b"".join((pack_header(memoryview(payload).nbytes, hashes), payload)), root


def parse_header(data: Buffer) -> tuple[int, bytes]:
    """(payload length, leaf hashes) from exactly what precedes the payload (`header_size` bytes).

    Raises NewerFormatError for a later version or an unknown feature, FormatError for anything else.
    """
    view = memoryview(data).cast("B")
    payload_len = parse_fixed(view[:FIXED_SIZE])
    if len(view) != header_size(payload_len):
        raise FormatError("a share's header is cut short or too long")
    return payload_len, bytes(view[FIXED_SIZE:])


def parse_fixed(data: Buffer) -> int:
    """The payload's length from the first FIXED_SIZE bytes; raises as `parse_header` does."""
    view = memoryview(data).cast("B")
    if len(view) != FIXED_SIZE:
        raise FormatError("a share is shorter than its header")
    magic, version, features, leaf_size, payload_len, zeros = _HEADER.unpack(view)
    if magic != MAGIC:
        raise FormatError("this is no share: its first bytes are not a share's")
    if version != VERSION:
        raise NewerFormatError(f"a share has format version {version}, this release knows {VERSION}; upgrade icnfs")
    if features & ~FEATURES:
        raise NewerFormatError(f"a share uses features ({features:#x}) that this release does not know; upgrade icnfs")
    if leaf_size != LEAF_SIZE or payload_len > SEGMENT_MAX or zeros != _ZEROS:
        raise FormatError("a share's header is malformed")
    return int(payload_len)


def parse(data: Buffer) -> Share:
    """The whole share's file, taken apart; raises as `parse_header` does."""
    view = memoryview(data).cast("B")
    payload_len = parse_fixed(view[:FIXED_SIZE])
    if len(view) != file_size(payload_len):
        raise FormatError(f"a share of {file_size(payload_len)} bytes came with {len(view)}")
    split = header_size(payload_len)
    return Share(bytes(view[FIXED_SIZE:split]), view[split:])
