"""A run: the sorted records that one publish adds, as a stream of sealed frames.

The stream's plain bytes are a header and then rows; they are cut into frames of FRAME_SIZE, each sealed by itself with
the run's id, its number and whether it is the last bound to it, so that frames cannot be altered, exchanged, repeated,
reordered or cut off without notice.  Frames never straddle the parts (segments) that a run is stored in.

    frame    last (1: 0 or 1), sealed length (4), sealed bytes
    seal     associated data: run id (16), frame number (4), last (1); plain: FRAME_SIZE bytes, fewer only in the last
    header   magic "icnfsrun" (8), format version (2), required features (4)
    row      table (1), key length (2), value length (4; 2^32-1: deleted, no value follows), key, value

All numbers are big-endian.  Rows are in strictly ascending order of (table, key).  This module knows neither keys nor
what a row means: values are the sealed records of `format.records`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from icnfs.errors import FormatError, NewerFormatError
from icnfs.format.records import FEATURES
from icnfs.limits import KIB, MIB

MAGIC: Final = b"icnfsrun"
VERSION: Final = 1
FRAME_SIZE: Final = 256 * KIB
"""Plain bytes in a frame: AES-GCM holds the interpreter lock for the whole call."""

FRAME_OVERHEAD_MAX: Final = 256
"""No seal adds more than this to a frame."""

KEY_MAX: Final = 511
"""LMDB's longest key."""

VALUE_MAX: Final = MIB
"""Longest value: an inode's extended attributes, sealed, with room to spare."""

_HEADER: Final = Struct(">8sHI")
_ROW: Final = Struct(">BHI")
_FRAME: Final = Struct(">BI")
_BIND: Final = Struct(">IB")
_DELETED: Final = 0xFFFFFFFF

ROW_OVERHEAD: Final = _ROW.size

Seal: TypeAlias = Callable[[bytes, bytes], bytes]
"""(associated data, plain) -> sealed."""

Open: TypeAlias = Callable[[bytes, bytes], bytes]
"""(associated data, sealed) -> plain, or DamagedError."""


class Row(NamedTuple):
    """One record of a run; `value` is None where the record was deleted."""

    table: int
    key: bytes
    value: bytes | None


def write_frames(
    rows: Iterable[tuple[int, bytes, bytes | None]], seal: Seal, run: bytes, features: int = 0
) -> Iterator[bytes]:
    """The frames of a run that requires `features`; `rows` must be in order (ValueError when they are not)."""
    buffer = bytearray(_HEADER.pack(MAGIC, VERSION, features))
    number = 0
    last: tuple[int, bytes] = (0, b"")
    for table, key, value in rows:
        if (table, key) <= last:
            raise ValueError("rows of a run are out of order")
        last = (table, key)
        buffer += _pack_row(table, key, value)
        while len(buffer) > FRAME_SIZE:
            yield _frame(seal, run, number, bytes(buffer[:FRAME_SIZE]), 0)
            del buffer[:FRAME_SIZE]
            number += 1
    yield _frame(seal, run, number, bytes(buffer), 1)


class RunReader:
    """Reads a run's parts, fed in order; any bytes give rows or one `FormatError`."""

    def __init__(self, unseal: Open, run: bytes) -> None:
        self._open = unseal
        self._run = run
        self._number = 0
        self._buffer = bytearray()
        self._started = False
        self._ended = False
        self._last: tuple[int, bytes] = (0, b"")

    def feed(self, part: bytes) -> Iterator[Row]:
        """The rows that end in `part`, the payload of the next part without its padding."""
        at = 0
        while at < len(part):
            if self._ended:
                raise FormatError("a run goes on after its last frame")
            if at + _FRAME.size > len(part):
                raise FormatError("a run's frame is cut short")
            last, length = _FRAME.unpack_from(part, at)
            at += _FRAME.size
            if last > 1 or length > FRAME_SIZE + FRAME_OVERHEAD_MAX or at + length > len(part):
                raise FormatError("a run's frame reaches beyond its part")
            self._take(part[at : at + length], last)
            at += length
            yield from self._rows()

    def close(self) -> None:
        """To be called after the last part; a run that lacks its end is refused."""
        if not self._ended or self._buffer:
            raise FormatError("a run ends before its last frame")

    def _take(self, sealed: bytes, last: int) -> None:
        plain = self._open(_bind(self._run, self._number, last), sealed)
        if len(plain) > FRAME_SIZE or (not last and len(plain) < FRAME_SIZE):
            raise FormatError("a run's frame has a wrong size")
        self._number += 1
        self._ended = bool(last)
        self._buffer += plain

    def _rows(self) -> Iterator[Row]:
        buffer, at = self._buffer, 0
        if not self._started:
            at = _check_header(buffer)
            self._started = True
        while at + _ROW.size <= len(buffer):
            table, key_size, value_size = _ROW.unpack_from(buffer, at)
            deleted = value_size == _DELETED
            if key_size > KEY_MAX or not (deleted or value_size <= VALUE_MAX):
                raise FormatError("a run's row is larger than any can be")
            start = at + _ROW.size
            end = start + key_size + (0 if deleted else value_size)
            if end > len(buffer):
                break
            key = bytes(buffer[start : start + key_size])
            if (table, key) <= self._last:
                raise FormatError("a run's rows are out of order")
            self._last = (table, key)
            yield Row(table, key, None if deleted else bytes(buffer[start + key_size : end]))
            at = end
        del buffer[:at]


def _pack_row(table: int, key: bytes, value: bytes | None) -> bytes:
    if len(key) > KEY_MAX or (value is not None and len(value) > VALUE_MAX):
        raise ValueError("a row is larger than a run can hold")
    if value is None:
        return _ROW.pack(table, len(key), _DELETED) + key
    return b"".join((_ROW.pack(table, len(key), len(value)), key, value))


def _frame(seal: Seal, run: bytes, number: int, plain: bytes, last: int) -> bytes:
    sealed = seal(_bind(run, number, last), plain)
    return _FRAME.pack(last, len(sealed)) + sealed


def _bind(run: bytes, number: int, last: int) -> bytes:
    return run + _BIND.pack(number, last)


def _check_header(buffer: bytearray) -> int:
    if len(buffer) < _HEADER.size:
        raise FormatError("a run lacks its header")
    magic, version, features = _HEADER.unpack_from(buffer)
    if magic != MAGIC:
        raise FormatError("not a run")
    if version > VERSION or features & ~FEATURES:
        raise NewerFormatError(f"a run of format {version}, features {features:#x}; upgrade icnfs")
    return _HEADER.size
