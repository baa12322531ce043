"""The hash tree over one share: it names a bad share before it is decoded, and lets single leaves be audited.

Leaf i:  SHA-256(0x00 || i (4) || length (4) || bytes)            a leaf holds LEAF_SIZE bytes, the last what is left
Root:    SHA-256(0x01 || payload length (8) || all leaf hashes)

Two levels are enough: the largest share has 1,024 leaves, 32 KiB of hashes, read in one piece.  Promises: what passes
`verify_leaves` and `verify_range` is, byte for byte and in its place, what the root was made of; anything else is a
DamagedError.  It does not know whose share it is.
"""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from icnfs.errors import DamagedError
from icnfs.limits import LEAF_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer

HASH_SIZE: Final = 32
_LEAF: Final = b"\x00"
_ROOT: Final = b"\x01"


def leaf_count(payload_len: int) -> int:
    """Leaves of a share with that many bytes."""
    return -(-payload_len // LEAF_SIZE)


def leaves(payload: Buffer, first_leaf: int = 0) -> bytes:
    """The hashes of all leaves, 32 bytes each, one after the other; of a piece, from the leaf that it begins with."""
    return _hash_from(first_leaf, memoryview(payload).cast("B"))


def root(leaf_hashes: Buffer, payload_len: int) -> bytes:
    """The 32 bytes that stand for the whole share."""
    state = sha256(_ROOT + payload_len.to_bytes(8, "big"))
    state.update(leaf_hashes)
    return state.digest()


def tree(payload: Buffer) -> tuple[bytes, bytes]:
    """(leaf hashes, root) of a share."""
    hashes = leaves(payload)
    return hashes, root(hashes, memoryview(payload).nbytes)


def verify_leaves(leaf_hashes: Buffer, payload_len: int, expected_root: bytes) -> None:
    """Check the list of leaf hashes against the root.  Raises DamagedError."""
    if memoryview(leaf_hashes).nbytes != HASH_SIZE * leaf_count(payload_len):
        raise DamagedError("a share's list of leaf hashes has the wrong length")
    if not compare_digest(root(leaf_hashes, payload_len), expected_root):
        raise DamagedError("a share's leaf hashes do not fit its root")


def verify_data(leaf_hashes: Buffer, payload_len: int, first_leaf: int, data: Buffer) -> None:
    """Check whole leaves, from `first_leaf` on, against a list of hashes that `verify_leaves` has passed.

    `data` must end where a leaf ends (or the payload does).  Raises DamagedError.
    """
    view = memoryview(data).cast("B")
    start = first_leaf * LEAF_SIZE
    end = start + len(view)
    if first_leaf < 0 or end > payload_len or (end % LEAF_SIZE and end != payload_len):
        raise DamagedError("a range of a share does not lie on its leaves")
    listed = memoryview(leaf_hashes).cast("B")[HASH_SIZE * first_leaf : HASH_SIZE * leaf_count(end)]
    if not compare_digest(_hash_from(first_leaf, view), listed):
        raise DamagedError("a share's bytes do not fit its leaf hashes")


def verify_range(leaf_hashes: Buffer, payload_len: int, expected_root: bytes, first_leaf: int, data: Buffer) -> None:
    """Check whole leaves against the root: `verify_leaves`, then `verify_data`.  Raises DamagedError."""
    verify_leaves(leaf_hashes, payload_len, expected_root)
    verify_data(leaf_hashes, payload_len, first_leaf, data)


def verify_whole(payload: Buffer, expected_root: bytes) -> None:
    """Check a whole share against the root alone.  Raises DamagedError."""
    if not compare_digest(tree(payload)[1], expected_root):
        raise DamagedError("a share's bytes do not fit its root")


def _hash_from(first_leaf: int, view: memoryview) -> bytes:
    hashes = []
    for index, at in enumerate(range(0, len(view), LEAF_SIZE), first_leaf):
        leaf = view[at : at + LEAF_SIZE]
        state = sha256(_LEAF + index.to_bytes(4, "big") + len(leaf).to_bytes(4, "big"))
        state.update(leaf)
        hashes.append(state.digest())
    return b"".join(hashes)
