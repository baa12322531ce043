"""The socket pair and the memory that crosses beside it."""

from __future__ import annotations

import mmap
import os
import socket

import pytest
import trio

from icnfs.errors import FormatError
from icnfs.limits import MESSAGE_MAX
from icnfs.transfer import bulk
from icnfs.transfer.wire import Wire, socket_pair


def test_packets_keep_their_bounds_and_descriptors_cross() -> None:
    async def main() -> None:
        a, b = map(Wire, socket_pair())
        with bulk.closing(bulk.holding([b"bulk ", b"bytes"], "test")) as fd:
            await a.send(b"first", fd)
        await a.send(bytes(MESSAGE_MAX))
        packet, received = await b.receive()
        assert packet == b"first" and received is not None
        with bulk.closing(received):
            assert not os.get_inheritable(received)
            assert bulk.view(received, 10) == b"bulk bytes"
        assert await b.receive() == (bytes(MESSAGE_MAX), None)
        a.close()
        with pytest.raises(trio.EndOfChannel):
            await b.receive()
        with pytest.raises(trio.BrokenResourceError):
            await b.send(b"nobody")
        b.close()

    trio.run(main)


def test_surplus_descriptors_and_overlong_packets_are_refused_and_closed() -> None:
    async def main() -> None:
        raw, end = socket_pair()
        wire = Wire(end)
        before = _open_descriptors()
        with bulk.closing(bulk.holding([b"x"], "test")) as fd:
            socket.send_fds(raw, [b"two"], [fd, fd])
            socket.send_fds(raw, [b"many"], [fd] * 9)
        raw.send(bytes(MESSAGE_MAX + 1))
        for _ in range(3):
            with pytest.raises(FormatError):
                await wire.receive()
        assert _open_descriptors() == before
        wire.close()
        raw.close()

    trio.run(main)


def test_sealed_memory_cannot_change() -> None:
    with bulk.closing(bulk.holding([b"as it was"], "test")) as fd:
        for change in (lambda: os.pwrite(fd, b"!", 0), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 99)):
            with pytest.raises(PermissionError):
                change()
        bulk.seal(fd)
        assert bytes(bulk.view(fd, 9)) == b"as it was"


def test_memory_that_still_can_change_is_refused() -> None:
    with bulk.closing(bulk.create("test")) as fd:
        os.write(fd, b"loose")
        with pytest.raises(FormatError, match="not sealed"):
            bulk.view(fd, 5)
        with mmap.mmap(fd, 5), pytest.raises(ValueError, match="cannot be sealed"):
            bulk.seal(fd)


def test_memory_shorter_than_announced_and_other_files_are_refused() -> None:
    with bulk.closing(bulk.holding([b"short"], "test")) as fd, pytest.raises(FormatError, match="announced"):
        bulk.view(fd, 6)
    with bulk.closing(os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)) as fd:
        os.ftruncate(fd, 2 << 20)
        bulk.seal(fd)
        with pytest.raises(FormatError, match="cannot be mapped"):
            bulk.view(fd, 100)
    with bulk.closing(os.open("/dev/null", os.O_RDONLY)) as fd, pytest.raises(FormatError, match="no memfd"):
        bulk.view(fd, 0)


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
