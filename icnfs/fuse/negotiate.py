"""INIT, the first request of a mount, and what is changed in its answer.

libfuse answers INIT by itself and pyfuse3 offers no say in it.  So for that one request the session's descriptor is a
socket: INIT is handed to libfuse through it, its answer is amended on the way back, and the descriptor is the device
again before anything else is read.

What is added (include/uapi/linux/fuse.h), where the kernel offers it:

- FUSE_HANDLE_KILLPRIV_V2 (Linux 5.11).  Without it the kernel asks for the attribute security.capability before every
  write, and for the attributes before every chown.  With it the kernel does so once, and leaves set-id bits to the file
  system: chown clears them; a write or a truncation clears them unless the caller has CAP_FSETID; where the kernel
  itself sees that they must go, it sends a SETATTR that changes nothing else.
- FUSE_POSIX_ACL (4.9): the kernel judges by access control lists and asks for an inode's once, as the attributes
  system.posix_acl_access and system.posix_acl_default; what they do to modes is the file system's.
- FUSE_DONT_MASK (2.6.31): modes come as the caller gave them, beside its umask, which a directory's default list
  replaces.

Two flags that libfuse sets are taken out:

- FUSE_ATOMIC_O_TRUNC: an open that truncates is one request with it, which the kernel sends before it asks whether the
  file is a running program: the program would be emptied, and the open then refused with ETXTBSY.  Without it the
  kernel truncates by a SETATTR once it may.
- FUSE_AUTO_INVAL_DATA: with it the kernel drops a file's cached pages whenever it learns of another mtime, its own
  writes' among them.  FUSE_EXPLICIT_INVAL_DATA (Linux 5.2) takes its place: contents change by the kernel's requests
  alone, for one mount writes a volume at a time, and what clones and snapshots bring appears as new inodes.

Nothing here may keep a mount from coming up: what is not understood goes through as it is.
"""

from __future__ import annotations

import logging
import os
import socket
from struct import Struct
from typing import Final

ATOMIC_O_TRUNC: Final = 1 << 3
AUTO_INVAL_DATA: Final = 1 << 12
DONT_MASK: Final = 1 << 6
POSIX_ACL: Final = 1 << 20
EXPLICIT_INVAL_DATA: Final = 1 << 25
HANDLE_KILLPRIV_V2: Final = 1 << 28

TAKEN_OUT: Final = ATOMIC_O_TRUNC | AUTO_INVAL_DATA
ADDED: Final = EXPLICIT_INVAL_DATA | HANDLE_KILLPRIV_V2 | POSIX_ACL | DONT_MASK
"""Where the kernel offers them."""

_REQUEST: Final = Struct("=IIQQIIIHH" + "IIII")
"""struct fuse_in_header, then of struct fuse_init_in: major, minor, max_readahead, flags."""

_REPLY: Final = Struct("=IiQ" + "IIII")
"""struct fuse_out_header, then of struct fuse_init_out: major, minor, max_readahead, flags."""

_FLAGS: Final = Struct("=I")
_FLAGS_AT: Final = _REPLY.size - _FLAGS.size

_INIT: Final = 26
_MOST: Final = 1 << 21
"""The kernel refuses to fill a buffer that could not hold the largest request."""

log = logging.getLogger(__name__)


class Negotiation:
    """Begun before libfuse reads its first request from `fd`; to be finished when it has answered that."""

    def __init__(self, fd: int) -> None:
        """Takes INIT from the device and puts a socket in its place.  Raises OSError as reading the device does."""
        self._fd = fd
        request = os.read(fd, _MOST)
        self._device = os.dup(fd)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), fd, inheritable=False)
        self._ours.send(request)
        self._request = request

    def finish(self) -> None:
        """Sends libfuse's answer, amended, and makes `fd` the device again."""
        self._ours.setblocking(False)
        try:
            os.write(self._device, amended(self._request, self._ours.recv(_MOST)))
        except OSError as exc:  # the mount is gone, or libfuse gave up: it says so
            log.debug("INIT was not answered: %s", exc.strerror)
        os.dup2(self._device, self._fd, inheritable=False)
        os.close(self._device)
        self._ours.close()


def amended(request: bytes, answer: bytes) -> bytes:
    """`answer` to the INIT `request`, without the flags that are taken out and with those that are added.  Total."""
    if len(request) < _REQUEST.size or len(answer) < _REPLY.size:
        return answer
    *_, offered = _REQUEST.unpack_from(request)
    opcode = _REQUEST.unpack_from(request)[1]
    _, error, _, _, _, _, flags = _REPLY.unpack_from(answer)
    if opcode != _INIT or error:
        return answer
    if not offered & HANDLE_KILLPRIV_V2:
        log.debug("the kernel does not leave set-id bits to the file system: it asks before each write")
    flags = flags & ~TAKEN_OUT | offered & ADDED
    return answer[:_FLAGS_AT] + _FLAGS.pack(flags) + answer[_REPLY.size :]
