"""One end of the socket pair between front and transfer: whole packets, each with at most one file descriptor.

SOCK_SEQPACKET keeps packets whole and says when the other end is gone.  Descriptors cross by SCM_RIGHTS, are closed
on exec here, and belong to whoever receives them.  This module does not know what the packets say.
"""

from __future__ import annotations

import os
import socket
from array import array
from typing import Final

import trio

from icnfs.errors import FormatError
from icnfs.limits import MESSAGE_MAX, MIB

_FD_SIZE: Final = array("i").itemsize
_ANCILLARY: Final = socket.CMSG_SPACE(4 * _FD_SIZE)
"""Room for more descriptors than are ever sent, so that surplus ones are seen and closed."""

_TRUNCATED: Final = socket.MSG_TRUNC | socket.MSG_CTRUNC


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, with room for a few packets in flight as far as the kernel's wmem_max allows."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    return ends


class Wire:
    """One end; one task may send while another receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = trio.socket.from_stdlib_socket(end)

    async def send(self, packet: bytes, fd: int | None = None) -> None:
        """Send one packet, and a duplicate of `fd`.  Raises trio.BrokenResourceError when the other end is gone."""
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]).tobytes())]
        try:
            await self._socket.sendmsg([packet], rights)
        except OSError as error:
            raise trio.BrokenResourceError("the other end of the transfer socket is gone") from error

    async def receive(self) -> tuple[bytes, int | None]:
        """The next packet and its descriptor, if any, which the caller must close.

        Raises trio.EndOfChannel when the other end is gone, FormatError for a packet that no honest peer sends.
        """
        try:
            packet, ancillary, flags, _ = await self._socket.recvmsg(
                MESSAGE_MAX + 1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise trio.EndOfChannel from error
        fds = _descriptors(ancillary)
        if flags & _TRUNCATED or len(packet) > MESSAGE_MAX or len(fds) > 1:
            _close_all(fds)
            raise FormatError("an overlong packet between front and transfer")
        if not packet:
            _close_all(fds)
            raise trio.EndOfChannel
        return packet, fds[0] if fds else None

    def close(self) -> None:
        """Close this end; the other one then reads an end of channel."""
        self._socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return fds.tolist()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
