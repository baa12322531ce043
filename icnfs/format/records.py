"""The tables of a volume, byte for byte: keys and plain record values.

Keys are fixed-width and big-endian, so that LMDB's order is numeric order and a prefix is a range.  Values described
here are the *plain* ones; what lies in LMDB, runs and checkpoints is sealed (`crypto.sealing.RecordSealer`), bound to
its table and key.  Every `unpack_*` is total: any input gives a value or `FormatError`.

| table      | key                                   | plain value                                                   |
|------------|---------------------------------------|---------------------------------------------------------------|
| inodes     | inode (8)                             | `state.inode`                                                 |
| names      | parent (8), cookie (8)                | inode (8), type (1), name (1..255)                            |
| xattrs     | inode (8)                             | per attribute: name length (1), value length (4), name, value |
| chunks     | inode (8), index (8)                  | version (8), key id (8), salt id (4), length (4), tag (16)    |
| patches    | inode (8), index (8), version (8)     | kind (1), offset (4), bytes                                   |
| tombstones | inode (8), first index (8), bound (8) | nothing                                                       |
| keys       | key id (8)                            | file key (32), references (4)                                 |
| locations  | version (8)                           | segment (16), share (1), offset (4), length (4)               |
| segments   | segment (16)                          | `format.segment`                                              |
| orphans    | inode (8)                             | nothing                                                       |
| salts      | salt id (4)                           | salt (32), sealed under its own subkey                        |
| garbage    | version (8)                           | generation (8) in which it died, in clear; local              |
| settings   | name                                  | a document; local                                             |
| dirty      | generation (8), table (1), key        | nothing, in clear; local                                      |
| condemned  | time (8), random (8)                  | objects to be deleted at providers; local                     |
| snapshots  | generation (8)                        | `format.snapshot`                                             |
| shared     | version or key id (8)                 | generation (8) in which it was last marked                    |

A names cookie is a 59-bit keyed hash of (parent, name), then a 4-bit collision rank: 63 bits, never negative as an
off_t.  `chunks.length` is that of the sealed chunk.  A patch of kind DATA replaces bytes at its offset; one of kind CUT
ends the chunk there.  A patch counts only where its version is above the chunk's.  Versions and key ids are drawn from
one sequence of numbers, so a key of `shared` means one or the other: see `state.marks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from struct import error as struct_error
from typing import Final, NamedTuple

from icnfs.errors import FormatError
from icnfs.limits import CHUNK_SIZE, NAME_MAX


class Table(IntEnum):
    """Numbers of the tables, as bound into seals and written in runs; never reused."""

    INODES = 1
    NAMES = 2
    XATTRS = 3
    CHUNKS = 4
    PATCHES = 5
    TOMBSTONES = 6
    KEYS = 7
    LOCATIONS = 8
    SEGMENTS = 9
    ORPHANS = 10
    SALTS = 11
    GARBAGE = 12
    SETTINGS = 13
    DIRTY = 14
    CONDEMNED = 15
    SNAPSHOTS = 16
    SHARED = 17


PUBLISHED: Final = (*(t for t in Table if t <= Table.SALTS), Table.SNAPSHOTS, Table.SHARED)
"""Tables that runs and checkpoints carry, in the order they carry them."""

FEATURE_OF: Final = {Table.SNAPSHOTS: 1, Table.SHARED: 2}
"""Flags by published table that not every release knows: what carries rows of it requires its flag."""

FEATURES: Final = sum(FEATURE_OF.values())
"""Feature flags that this release understands, in runs, heads and local states."""

U64: Final = Struct(">Q")
U32: Final = Struct(">I")
PAIR: Final = Struct(">QQ")
TRIPLE: Final = Struct(">QQQ")
DIRTY_PREFIX: Final = Struct(">QB")

RANK_BITS: Final = 4
RANKS: Final = 1 << RANK_BITS

DATA: Final = 0
CUT: Final = 1


class Entry(NamedTuple):
    """One name in a directory; `kind` is the inode's type, S_IFMT >> 12."""

    cookie: int
    ino: int
    kind: int
    name: bytes


class Location(NamedTuple):
    """Where a version's sealed chunk lies: bytes of one data share's payload."""

    segment: bytes
    share: int
    offset: int
    length: int


class ChunkRecord:
    """The sealed state of a chunk; salt, length and tag are filled in when the committer seals it."""

    __slots__ = ("key_id", "length", "salt_id", "tag", "version")

    def __init__(self, version: int, key_id: int, salt_id: int = 0, length: int = 0, tag: bytes = b"") -> None:
        self.version = version
        self.key_id = key_id
        self.salt_id = salt_id
        self.length = length
        self.tag = tag

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChunkRecord) and pack_chunk(self) == pack_chunk(other)

    __hash__ = None  # type: ignore[assignment]


class Patch(NamedTuple):
    """A change to a chunk smaller than the chunk: DATA puts `data` at `offset`, CUT ends the chunk at `offset`."""

    version: int
    kind: int
    offset: int
    data: bytes


_ENTRY: Final = Struct(">QB")
_NAME_AT: Final = _ENTRY.size
_NO_NAMES: Final = frozenset((b".", b".."))
_new = tuple.__new__
_CHUNK: Final = Struct(">QQII16s")
_PATCH: Final = Struct(">BI")
PATCH_HEADER: Final = _PATCH.size
"""Bytes of a patches record besides its data."""

_LOCATION: Final = Struct(">16sBII")
_KEY: Final = Struct(">32sI")
_XATTR: Final = Struct(">BI")


def pack_entry(entry: Entry) -> bytes:
    return _ENTRY.pack(entry.ino, entry.kind) + entry.name


def unpack_entry(cookie: int, plain: bytes) -> Entry:
    """`FormatError` also for a name that POSIX does not allow: hostile metadata must not escape its directory."""
    if len(plain) < _NAME_AT:
        raise FormatError("a names record is cut short")
    ino, kind = _ENTRY.unpack_from(plain)
    name = plain[_NAME_AT:]
    if not 0 < len(name) <= NAME_MAX or b"/" in name or b"\0" in name or name in _NO_NAMES:
        raise FormatError("a names record holds a name that no file may have")
    return _new(Entry, (cookie, ino, kind, name))  # half of what Entry(...) costs


def pack_chunk(record: ChunkRecord) -> bytes:
    return _CHUNK.pack(record.version, record.key_id, record.salt_id, record.length, record.tag)


def unpack_chunk(plain: bytes) -> ChunkRecord:
    try:
        return ChunkRecord(*_CHUNK.unpack(plain))
    except struct_error:
        raise FormatError("a chunks record has a wrong length") from None


def pack_patch(patch: Patch) -> bytes:
    return _PATCH.pack(patch.kind, patch.offset) + patch.data


def unpack_patch(version: int, plain: bytes) -> Patch:
    if len(plain) < _PATCH.size:
        raise FormatError("a patches record is cut short")
    kind, offset = _PATCH.unpack_from(plain)
    data = plain[_PATCH.size :]
    if kind not in (DATA, CUT) or (kind == CUT and data) or offset + len(data) > CHUNK_SIZE:
        raise FormatError("a patches record reaches outside its chunk")
    return Patch(version, kind, offset, data)


def pack_location(location: Location) -> bytes:
    return _LOCATION.pack(*location)


def unpack_location(plain: bytes) -> Location:
    try:
        return Location(*_LOCATION.unpack(plain))
    except struct_error:
        raise FormatError("a locations record has a wrong length") from None


def pack_key(file_key: bytes, references: int) -> bytes:
    return _KEY.pack(file_key, references)


def unpack_key(plain: bytes) -> tuple[bytes, int]:
    """The file key and the number of inodes that refer to it."""
    try:
        file_key, references = _KEY.unpack(plain)
    except struct_error:
        raise FormatError("a keys record has a wrong length") from None
    return file_key, references


def pack_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    return b"".join(
        part for name, value in xattrs.items() for part in (_XATTR.pack(len(name), len(value)), name, value)
    )


def unpack_xattrs(plain: bytes) -> dict[bytes, bytes]:
    return dict(_iter_xattrs(plain))


def _iter_xattrs(plain: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(plain):
        if at + _XATTR.size > len(plain):
            raise FormatError("an xattrs record is cut short")
        name_size, value_size = _XATTR.unpack_from(plain, at)
        at += _XATTR.size
        end = at + name_size + value_size
        if not name_size or end > len(plain):
            raise FormatError("an xattrs record is cut short")
        yield plain[at : at + name_size], plain[at + name_size : end]
        at = end
