"""Sealing of records and documents with AES-256-GCM (chunks: see `chunks`).

A sealed record:    salt id (4, big-endian) || nonce (12) || ciphertext || tag (16)
A sealed document:  salt (32) || nonce (12) || ciphertext || tag (16)

Promises: bytes open only in the volume, table and place they were sealed for; anything else is a DamagedError.  Nonces
are random, drawn from the kernel for every seal.  (Drawing them in blocks would save 0.5 us, and would repeat them when
a virtual machine is resumed twice from one snapshot of its memory.)  It does not know what the plain bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable
from os import urandom
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from icnfs.crypto.chunks import ChunkSealer
from icnfs.crypto.keys import MasterKey
from icnfs.crypto.salts import SALT_SIZE, Salts
from icnfs.errors import DamagedError

if TYPE_CHECKING:
    from cryptography.utils import Buffer

__all__ = [
    "NONCE_SIZE",
    "RECORD_OVERHEAD",
    "SALT_SIZE",
    "TAG_SIZE",
    "VOLUME_ID_SIZE",
    "ChunkSealer",
    "RecordSealer",
    "Salts",
    "open_document",
    "seal_document",
]

NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
VOLUME_ID_SIZE: Final = 16
_SALT_ID_SIZE: Final = 4
_BODY: Final = _SALT_ID_SIZE + NONCE_SIZE

RECORD_OVERHEAD: Final = _BODY + TAG_SIZE
"""Bytes that sealing adds to a record: 32."""

_DOCUMENT_BODY: Final = SALT_SIZE + NONCE_SIZE

_Operation = Callable[["Buffer", "Buffer", "Buffer | None"], bytes]


class RecordSealer:
    """Seals the values of LMDB's tables and of runs.  Safe to share between threads.

    A 100-byte record takes 1.6 us to seal and 1.1 us to open.
    """

    def __init__(self, master: MasterKey, volume: bytes, salts: Salts) -> None:
        if len(volume) != VOLUME_ID_SIZE:
            raise ValueError(f"a volume's id has {VOLUME_ID_SIZE} bytes, not {len(volume)}")
        self._master = master
        self._salts = salts
        self._places = tuple(volume + bytes((table,)) for table in range(256))
        self._openers: dict[bytes, _Operation] = {}
        self._sealing: tuple[int, bytes, _Operation] | None = None

    def seal(self, table: int, key: bytes, plain: Buffer) -> bytes:
        """Seal a record for its place: table (0 to 255) and key.  RuntimeError where no salt is current."""
        salts = self._salts
        sealing = self._sealing
        if sealing is None or sealing[0] != salts.current:
            sealing = self._renew()
        nonce = urandom(NONCE_SIZE)
        salts.seals += 1
        return b"".join((sealing[1], nonce, sealing[2](nonce, plain, self._places[table] + key)))

    def open(self, table: int, key: bytes, sealed: bytes | memoryview) -> bytes:
        """The plain record.  Raises DamagedError for anything that was not sealed for this very place."""
        prefix = bytes(sealed[:_SALT_ID_SIZE])
        try:
            opener = self._openers.get(prefix) or self._opener(prefix)
            return opener(sealed[_SALT_ID_SIZE:_BODY], sealed[_BODY:], self._places[table] + key)
        except (InvalidTag, ValueError):
            raise DamagedError(f"a record of table {table} is damaged or not the one that belongs there") from None

    def seal_fixed(self, use: str, ad: bytes, plain: Buffer) -> bytes:
        """`seal_document` under this volume's master key."""
        return seal_document(self._master, use, ad, plain)

    def open_fixed(self, use: str, ad: bytes, sealed: bytes | memoryview) -> bytes:
        """`open_document` under this volume's master key."""
        return open_document(self._master, use, ad, sealed)

    def _renew(self) -> tuple[int, bytes, _Operation]:
        salt_id = self._salts.current
        if not salt_id:
            raise RuntimeError("no sealing salt was chosen")
        prefix = salt_id.to_bytes(_SALT_ID_SIZE, "big")
        self._sealing = sealing = (salt_id, prefix, self._cipher(salt_id).encrypt)
        return sealing

    def _opener(self, prefix: bytes) -> _Operation:
        if len(prefix) != _SALT_ID_SIZE:
            raise DamagedError("a sealed record is shorter than its header")
        opener = self._cipher(int.from_bytes(prefix, "big")).decrypt
        self._openers[prefix] = opener
        return opener

    def _cipher(self, salt_id: int) -> AESGCM:
        return AESGCM(self._master.subkey("records", self._salts.get(salt_id)))


def seal_document(master: MasterKey, use: str, ad: bytes, plain: Buffer) -> bytes:
    """Seal a document that stands outside the tables (a head, a run, a settings document).

    The key is the subkey of `use` for a fresh random salt, so it seals once.  `ad` says which document it is; the
    volume needs no mention, for the master key is the volume's own (and recovery opens the first head knowing
    nothing else).
    """
    salt = urandom(SALT_SIZE)
    nonce = urandom(NONCE_SIZE)
    return b"".join((salt, nonce, AESGCM(master.subkey(use, salt)).encrypt(nonce, plain, ad)))


def open_document(master: MasterKey, use: str, ad: bytes, sealed: bytes | memoryview) -> bytes:
    """The plain document.  Raises DamagedError for anything not sealed by this master key, for this use and `ad`."""
    if len(sealed) < _DOCUMENT_BODY + TAG_SIZE:
        raise DamagedError(f"a sealed document ({use}) is cut short")
    cipher = AESGCM(master.subkey(use, bytes(sealed[:SALT_SIZE])))
    try:
        return cipher.decrypt(sealed[SALT_SIZE:_DOCUMENT_BODY], sealed[_DOCUMENT_BODY:], ad)
    except InvalidTag:
        raise DamagedError(f"a sealed document ({use}) is damaged or not the one that belongs there") from None
