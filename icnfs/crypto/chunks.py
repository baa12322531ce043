"""Sealing of chunks, in blocks that open one by one.

A sealed chunk:  nonce (12) || tags (16 each, one a block) || ciphertext (as long as the plain chunk)

Block `i` (16 KiB; the last may be shorter) is AES-256-GCM under the chunk key, with the nonce's first 8 bytes followed
by its last 4, as a big-endian number, plus `i` modulo 2**32, and the associated data
    volume (16) || key id (8) || salt id (4) || salt (32) || version (8) || i (4) || plain length of the chunk (4).
The chunk key is HKDF-Expand(file key, "icnfs/1/chunk" NUL salt).  The chunk's tag, which its `chunks` record holds, is
    BLAKE2b-128(nonce || tags || plain length (4)).

Promises: opening checks the chunk's tag first, then each block that is needed; anything else than what was sealed for
this key, salt and version is a DamagedError.  It knows neither inode nor index: those are vouched for by the record
that holds the tag, so sealed chunks can be cloned and moved without being opened.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from os import urandom
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from icnfs.crypto.keys import hkdf_expand
from icnfs.crypto.salts import Salts
from icnfs.errors import DamagedError
from icnfs.limits import BLOCK_SIZE, CHUNK_SIZE

if TYPE_CHECKING:
    from cryptography.utils import Buffer

NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
CHUNK_TAG_SIZE: Final = 16

CHUNK_KEYS_CACHED: Final = 4096
"""Chunk keys held ready, some 1 KiB each: deriving one costs 4 us, so a walk over more files than that loses little."""

_INFO: Final = b"icnfs/1/chunk\0"
_COUNTER: Final = 2**32
_PART: Final = Struct(">QII")


class _ChunkKey(NamedTuple):
    cipher: AESGCM
    place: bytes  # volume || key id || salt id || salt


class ChunkSealer:
    """Seals and opens chunks.  Safe to share between threads.

    A 128 KiB chunk takes 37 us to seal and 40 us to open, a 4 KiB range of it 8 us, and a 100-byte chunk 4 us.
    """

    def __init__(self, volume: bytes, salts: Salts) -> None:
        self._volume = bytes(volume)
        self._salts = salts
        self._key = lru_cache(maxsize=CHUNK_KEYS_CACHED)(self._derive)

    def seal(self, file_key: bytes, key_id: int, salt_id: int, version: int, plain: Buffer) -> tuple[bytes, bytes]:
        """Seal 1 to CHUNK_SIZE plain bytes: (sealed chunk, its tag of 16 bytes).

        `salt_id` is that of the salt that was current a moment ago; another one may have become so since.
        """
        view = memoryview(plain).cast("B")
        total = len(view)
        if not 1 <= total <= CHUNK_SIZE:
            raise ValueError(f"a chunk has 1 to {CHUNK_SIZE} bytes, not {total}")
        if not salt_id:
            raise RuntimeError("no sealing salt was chosen")
        key = self._key(file_key, key_id, salt_id)
        nonce = urandom(NONCE_SIZE)
        tags, bodies = [nonce], []
        for block, start in enumerate(range(0, total, BLOCK_SIZE)):
            ad = _associated(key.place, version, block, total)
            sealed = memoryview(key.cipher.encrypt(_block_nonce(nonce, block), view[start : start + BLOCK_SIZE], ad))
            tags.append(sealed[-TAG_SIZE:])  # type: ignore[arg-type]  # join takes any buffer
            bodies.append(sealed[:-TAG_SIZE])
        self._salts.seals += len(bodies)
        head = b"".join(tags)
        return b"".join((head, *bodies)), _chunk_tag(head, total)

    def open(
        self, file_key: bytes, key_id: int, salt_id: int, version: int, tag: bytes, sealed: bytes | memoryview
    ) -> bytes:
        """The whole plain chunk.  Raises DamagedError unless `sealed` is the chunk that `tag` was given for."""
        total = self._checked_size(tag, sealed, version)
        return self._open_blocks(self._key(file_key, key_id, salt_id), version, sealed, total, 0, total)

    def open_range(
        self,
        file_key: bytes,
        key_id: int,
        salt_id: int,
        version: int,
        tag: bytes,
        sealed: bytes | memoryview,
        start: int,
        end: int,
    ) -> bytes:
        """Plain bytes `start` to `end` of the chunk, opening only the blocks they lie in.

        The range must lie in the chunk (ValueError).  Raises DamagedError as `open` does, for these blocks.
        """
        if not 0 <= start <= end <= self.plain_size(len(sealed)):
            raise ValueError(f"bytes {start} to {end} do not lie in a chunk of {len(sealed)} when sealed")
        return self.open_part(file_key, key_id, salt_id, version, tag, sealed, start, end)

    def open_part(
        self,
        file_key: bytes,
        key_id: int,
        salt_id: int,
        version: int,
        tag: bytes,
        sealed: bytes | memoryview,
        start: int,
        end: int,
    ) -> bytes:
        """As `open_range`, of what there is from `start` (0 or more) to `end`: nothing past the chunk's end."""
        total = self._checked_size(tag, sealed, version)
        if end > total:
            end = total
        if start >= end:
            return b""
        first = start - start % BLOCK_SIZE
        last = end + -end % BLOCK_SIZE
        if last > total:
            last = total
        plain = self._open_blocks(self._key(file_key, key_id, salt_id), version, sealed, total, first, last)
        return plain if last - first == end - start else plain[start - first : end - first]

    @staticmethod
    def sealed_size(plain_len: int) -> int:
        """Bytes that a chunk of `plain_len` bytes (1 to CHUNK_SIZE) takes when sealed."""
        return NONCE_SIZE + TAG_SIZE * -(-plain_len // BLOCK_SIZE) + plain_len

    @staticmethod
    def plain_size(sealed_len: int) -> int:
        """Plain bytes in a sealed chunk of that size; DamagedError where no chunk has that size when sealed."""
        blocks = -(-(sealed_len - NONCE_SIZE) // (BLOCK_SIZE + TAG_SIZE))
        plain_len = sealed_len - NONCE_SIZE - TAG_SIZE * blocks
        if not (max(blocks - 1, 0) * BLOCK_SIZE < plain_len <= CHUNK_SIZE):
            raise DamagedError(f"{sealed_len} bytes are no sealed chunk: it was cut or extended")
        return plain_len

    def _derive(self, file_key: bytes, key_id: int, salt_id: int) -> _ChunkKey:
        salt = self._salts.get(salt_id)
        place = b"".join((self._volume, key_id.to_bytes(8, "big"), salt_id.to_bytes(4, "big"), salt))
        return _ChunkKey(AESGCM(hkdf_expand(file_key, _INFO + salt)), place)

    def _checked_size(self, tag: bytes, sealed: bytes | memoryview, version: int) -> int:
        total = self.plain_size(len(sealed))
        if _chunk_tag(sealed[: len(sealed) - total], total) != tag:
            raise DamagedError(f"chunk version {version} is damaged or not the one that its record names")
        return total

    @staticmethod
    def _open_blocks(
        key: _ChunkKey, version: int, sealed: bytes | memoryview, total: int, first: int, last: int
    ) -> bytes:
        """Open whole blocks: plain bytes `first` (a multiple of BLOCK_SIZE) to `last` (the same, or `total`)."""
        view = memoryview(sealed)
        nonce = bytes(view[:NONCE_SIZE])
        body = len(view) - total
        opened = []
        for start in range(first, last, BLOCK_SIZE):
            block = start // BLOCK_SIZE
            tag_at = NONCE_SIZE + TAG_SIZE * block
            stop = start + BLOCK_SIZE
            if stop > last:
                stop = last
            text = b"".join((view[body + start : body + stop], view[tag_at : tag_at + TAG_SIZE]))
            try:
                ad = _associated(key.place, version, block, total)
                opened.append(key.cipher.decrypt(_block_nonce(nonce, block), text, ad))
            except InvalidTag:
                raise DamagedError(f"block {block} of chunk version {version} is damaged") from None
        return opened[0] if len(opened) == 1 else b"".join(opened)


def _associated(place: bytes, version: int, block: int, total: int) -> bytes:
    return place + _PART.pack(version, block, total)


def _block_nonce(nonce: bytes, block: int) -> bytes:
    if not block:
        return nonce
    return nonce[:8] + ((int.from_bytes(nonce[8:], "big") + block) % _COUNTER).to_bytes(4, "big")


def _chunk_tag(head: bytes | memoryview, total: int) -> bytes:
    """A chunk's tag from its nonce and block tags.  No secret, so `!=` may compare it: GCM's tags are the MAC."""
    return blake2b(bytes(head) + total.to_bytes(4, "big"), digest_size=CHUNK_TAG_SIZE).digest()
