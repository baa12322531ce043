"""Constants that more than one module leans on, each with its reason and, where measured, its figure."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- what POSIX and the kernel allow -------------------------------------------------------------------------------

NAME_MAX: Final = 255
"""Bytes in one name (Linux NAME_MAX; any byte but '/' and NUL)."""

SYMLINK_MAX: Final = 4095
"""Bytes in a symbolic link's target (Linux PATH_MAX less its NUL)."""

XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 64 * KIB
"""Linux XATTR_NAME_MAX and XATTR_SIZE_MAX."""

XATTR_LIST_MAX: Final = 64 * KIB
"""Bytes of an inode's attribute names, each with a NUL: Linux's own limit for listing them, xattr(7)."""

XATTRS_MAX: Final = 256 * KIB
"""All attributes of one inode, names and values: they are one record."""

LINK_MAX: Final = 2**31 - 1

# --- contents -------------------------------------------------------------------------------------------------------

CHUNK_SIZE: Final = 128 * KIB
"""Plain bytes in a chunk: fixed at init, stored in the volume's document."""

BLOCK_SIZE: Final = 16 * KIB
"""A chunk is sealed in blocks of this size, so that a random 4 KiB read opens 16 KiB and not 128."""

FILE_SIZE_MAX: Final = 2**63 - 1 - CHUNK_SIZE
"""The largest offset a file may reach: off_t less a chunk, so that index arithmetic never overflows."""

PATCH_LIMIT: Final = 32 * KIB
"""A change above this seals the whole chunk, and a chunk whose patches pass it is folded; one that is in memory may
have a whole chunk of them (`state.hot`)."""

ACCEPTED_MAX: Final = 8 * MIB
"""Bytes accepted from writers and not yet in the data environment; past it writers wait."""

# --- segments and shares --------------------------------------------------------------------------------------------

SEGMENT_SIZE: Final = 16 * MIB
"""Target size of a segment's payload."""

SEGMENT_MAX: Final = 64 * MIB
"""No descriptor may claim a larger payload: caps what a forged head makes us allocate."""

LEAF_SIZE: Final = 64 * KIB
"""Bytes of a share under one leaf of its hash tree."""

SHARES_MAX: Final = 64
"""Largest n."""

OBJECT_MAX: Final = 64 * MIB
"""No object read from a provider may be larger."""

LIST_PAGE: Final = 1000
"""Names per page of a provider's listing."""

# --- front and transfer ---------------------------------------------------------------------------------------------

MESSAGE_MAX: Final = 180 * KIB
"""Bytes of one packet between front and transfer: below the kernel's default socket buffer of 208 KiB."""

INLINE_MAX: Final = 160 * KIB
"""Bulk bytes up to this ride inside a message (a sealed chunk does); larger ones cross in a memfd."""

IN_PLACE_MAX: Final = MIB
"""Bulk bytes up to this are copied into or out of a memfd where they are, in about 0.2 ms; a thread takes more."""

READS_PER_PROVIDER: Final = 16
WRITES_PER_PROVIDER: Final = 4
"""Requests in flight at one provider.  Each provider has its own, so one that hangs holds up nobody else."""

HEDGE_SECONDS: Final = 2.0
"""A read that one provider has not answered by then is rebuilt from the others as well."""

# --- key derivation -------------------------------------------------------------------------------------------------

ARGON2_MEMORY_KIB: Final = 64 * KIB
ARGON2_PASSES: Final = 3
ARGON2_LANES: Final = 4
"""RFC 9106's second recommended choice: 64 MiB, three passes, four lanes."""

ARGON2_MEMORY_KIB_MAX: Final = 256 * KIB
ARGON2_PASSES_MAX: Final = 16
ARGON2_LANES_MAX: Final = 16
"""Costs read from a slot above these are refused before anything is computed: a small machine can pay them, for a slot
that somebody made up as well."""

SEALS_PER_KEY: Final = 2**30
"""Seals under one random-nonce AES-GCM subkey before it changes (NIST SP 800-38D asks for at most 2**32)."""
