"""Bulk bytes between front and transfer: anonymous shared memory (memfd), sealed against change.

Whoever maps another process's memfd trusts that it neither shrinks (that would be a SIGBUS) nor changes under its
eyes; so the sender seals it and the receiver looks.  Sealing is for good: a sealed memfd can only be read.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from icnfs.errors import FormatError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MFD_NOEXEC_SEAL: Final = 0x0008
"""memfd_create(2), Linux 6.3: never executable.  Older kernels answer EINVAL and are asked without it."""


def create(what: str) -> int:
    """A new empty memfd that can be sealed; `what` shows in /proc only.  The caller closes it."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(f"icnfs-{what}", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(f"icnfs-{what}", flags)


def seal(fd: int) -> None:
    """Make the memfd's size and bytes final.  Raises ValueError for one that still has a writable mapping."""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS:
        return
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_SEAL)
    except OSError as error:
        raise ValueError(f"a memfd that cannot be sealed: {error}") from error


def holding(pieces: Sequence[Buffer], what: str) -> int:
    """A sealed memfd that holds the pieces, one after another.  The caller closes it."""
    fd = create(what)
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            while rest:
                rest = rest[os.write(fd, rest) :]
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """`fd` for the block, closed after it."""
    try:
        yield fd
    finally:
        os.close(fd)


def view(fd: int, size: int) -> memoryview:
    """The first `size` bytes of a received memfd, mapped read-only; `fd` may be closed at once.

    The mapping lasts as long as the view and its slices.  Raises FormatError for an unsound memfd.
    """
    _check(fd, size)
    try:
        return memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else b"")
    except OSError as error:  # huge pages map in whole ones only
        raise FormatError(f"a memfd that cannot be mapped: {error}") from error


def _check(fd: int, size: int) -> None:
    try:
        seals, real = fcntl.fcntl(fd, fcntl.F_GET_SEALS), os.fstat(fd).st_size
    except OSError as error:
        raise FormatError(f"a descriptor that is no memfd: {error}") from error
    if seals & _SEALS != _SEALS:
        raise FormatError("a memfd that its sender has not sealed")
    if real < size:
        raise FormatError(f"a memfd of {real} bytes, where {size} were announced")
