"""The two LMDB environments of a volume's local state, their lock, and the disk's reserve.

`meta` holds every table of `format.records`; `data` holds sealed chunks by version.  Both commit with `sync=True`;
`data` leaves its meta page to the next flush (`metasync=False`), so before `meta` may name a version, `sync_data` must
have run.  (Recorded writes replayed into crash states: both settings lost nothing; `sync=False` corrupted synced data;
`writemap=True` dies of SIGBUS on a full disk.)

One process opens a volume's state at a time, by a lock on the file `lock` that ends with the process.  The file
`reserve` keeps blocks of the disk occupied, to be given up when a commit would otherwise fail for want of room.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from errno import EACCES, EIO, ENOSPC
from pathlib import Path
from typing import Any, Final

import lmdb

from icnfs.errors import DamagedError, FormatError, LocalDiskError, MountedError, NewerFormatError, NoVolumeError
from icnfs.format.records import FEATURES, Table
from icnfs.limits import GIB, MIB

FORMAT_VERSION: Final = 1
"""Version of the local state's layout."""

META_MAP: Final = 256 * GIB
DATA_MAP: Final = 4096 * GIB
"""Address space, not disk: LMDB's files grow as they fill, and the cache budget bounds them long before."""

RESERVE: Final = 32 * MIB
"""Room for a few dozen batches: an accepted batch is at most ACCEPTED_MAX and its meta records."""

SLACK: Final = 8 * MIB
"""What is to be free beside the reserve for it to be taken."""

_DAMAGE: Final = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)

IDENTITY: Final = b"\0volume"
"""Key of the one record in clear: layout version (2), features (8), chunk size (4), volume (16)."""


class Environments:
    """The open environments.  `meta_dbs[table]` and `data_db` are LMDB's handles."""

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.root = root
        if not create and not (root / "meta" / "data.mdb").exists():
            raise NoVolumeError(f"{root}: no volume's local state here; run `icnfs init` or `icnfs recover`")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(root)
        self._lock = _lock(root / "lock")
        try:
            self.meta = _open(root / "meta", META_MAP, len(Table) + 1, metasync=True)
            self.data = _open(root / "data", DATA_MAP, 1, metasync=False)
            self.meta_dbs = {t: self.meta.open_db(t.name.lower().encode()) for t in Table}
            self.data_db = self.data.open_db(b"chunks")
        except lmdb.Error as error:
            os.close(self._lock)
            if isinstance(error, _DAMAGE):
                remedy = "move it away and run `icnfs recover`, which loses what was not published"
                raise DamagedError(f"{root}: the local state is damaged ({error}); {remedy}") from None
            raise LocalDiskError(f"{root}: LMDB cannot open the local state: {error}; check the disk", EIO) from None
        self.has_reserve = self.lacks_reserve = False
        """Whether blocks are kept for commits on a full disk, and whether those that were are in use."""
        self.take_reserve()

    def close(self) -> None:
        """Every transaction must have ended."""
        self.meta.close()
        self.data.close()
        os.close(self._lock)

    def sync_data(self) -> None:
        """Make every committed transaction of `data` durable."""
        self.data.sync(True)

    def free_bytes(self) -> int:
        """Bytes that the local disk has left for us."""
        stat = os.statvfs(self.root)
        return stat.f_bavail * stat.f_frsize

    def reason(self, error: Exception) -> str:
        """Why a commit failed: LMDB calls a write that a full disk cut short an input/output error."""
        return os.strerror(ENOSPC) if self.free_bytes() < MIB else str(error)

    def take_reserve(self) -> None:
        """Occupy the reserve if there is ample room for it; where it cannot be had all the same, go on without."""
        path = self.root / "reserve"
        if path.exists() and path.stat().st_size == RESERVE:
            self.has_reserve, self.lacks_reserve = True, False
        elif self.free_bytes() >= RESERVE + SLACK:
            self.lacks_reserve = False
            with contextlib.suppress(OSError):  # no inode, a quota, a file system that occupies nothing beforehand
                fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, RESERVE)
                    self.has_reserve = True
                except OSError as error:
                    self.lacks_reserve = error.errno == ENOSPC  # somebody was quicker
                    os.unlink(path)
                finally:
                    os.close(fd)

    def give_up_reserve(self) -> bool:
        """Free the reserve's blocks, for what was accepted or makes room; false when they are gone already."""
        self.has_reserve, self.lacks_reserve = False, True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root / "reserve")
            return True
        return False


def check_identity(raw: bytes | None, root: Path) -> tuple[bytes, int, int]:
    """The (volume, chunk size, features) of an identity record; refuses what this release does not know."""
    if raw is None or len(raw) != 30:
        raise FormatError(f"{root}: the local state names no volume; `icnfs recover` rebuilds it from the providers")
    version = int.from_bytes(raw[:2], "big")
    features = int.from_bytes(raw[2:10], "big")
    if version > FORMAT_VERSION or features & ~FEATURES:
        raise NewerFormatError(f"{root}: local state of format {version}, features {features:#x}; upgrade icnfs")
    return raw[14:], int.from_bytes(raw[10:14], "big"), features


def pack_identity(volume: bytes, chunk_size: int) -> bytes:
    return FORMAT_VERSION.to_bytes(2, "big") + bytes(8) + chunk_size.to_bytes(4, "big") + volume


def require(meta: lmdb.Transaction, settings: Any, features: int) -> None:
    """Have releases that do not know `features` refuse this local state from the commit of `meta` on."""
    raw = bytes(meta.get(IDENTITY, db=settings) or b"")
    known = int.from_bytes(raw[2:10], "big")
    if known | features != known:
        meta.put(IDENTITY, raw[:2] + (known | features).to_bytes(8, "big") + raw[10:], db=settings)


def _make_private(root: Path) -> None:
    """Refuse a folder of another user's; close one of ours to others: sizes and counts are in it."""
    status = root.stat()
    if status.st_uid != os.geteuid():
        raise LocalDiskError(f"{root}: the local state belongs to another user (uid {status.st_uid})", EACCES)
    if status.st_mode & 0o077:
        root.chmod(0o700)


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise MountedError(
            f"{path.parent}: the volume is in use by another process of this machine; unmount it first"
        ) from None
    return fd


def _open(path: Path, size: int, tables: int, *, metasync: bool) -> lmdb.Environment:
    path.mkdir(mode=0o700, exist_ok=True)
    return lmdb.open(
        str(path), map_size=size, max_dbs=tables, metasync=metasync, mode=0o600, max_readers=64, max_spare_txns=4
    )
