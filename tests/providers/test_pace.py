"""Writing in steps: every byte in its place, whoever else writes, and whatever the system offers."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from icnfs.limits import MIB
from icnfs.providers import pace


def _written(path: Path, parts: Sequence[bytes | memoryview]) -> bytes:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        pace.write(fd, parts)
    finally:
        os.close(fd)
    return path.read_bytes()


@pytest.mark.parametrize("sizes", [[], [0], [1], [pace.STEP], [2080, 3 * MIB + 5], [MIB - 1, 2, 0, MIB]])
def test_all_parts_are_written_in_their_order(tmp_path: Path, sizes: list[int]) -> None:
    parts = [random.Random(size).randbytes(size) for size in sizes]
    assert _written(tmp_path / "f", parts) == b"".join(parts)


def test_no_more_than_a_step_is_left_to_the_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(pace, "_sync_file_range", lambda fd, start, length, flags: sent.append(start.value) or 0)
    _written(tmp_path / "f", [bytes(3 * MIB + 1)])
    assert sent == [0, MIB, 2 * MIB]


def test_a_system_without_the_call_writes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_sync_file_range", None)
    assert _written(tmp_path / "f", [b"x" * 3 * MIB]) == b"x" * 3 * MIB


def test_a_turn_that_never_comes_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "TURN_SECONDS", 0.01)
    device = os.stat(tmp_path).st_dev
    with pace._turns[device]:
        writer = threading.Thread(target=_written, args=(tmp_path / "f", [bytes(2 * MIB)]))
        writer.start()
        writer.join(30)
        assert not writer.is_alive()
    assert (tmp_path / "f").stat().st_size == 2 * MIB


@pytest.mark.parametrize(("number", "is_told"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_an_error_of_the_disk_is_told_and_a_call_that_is_unknown_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_told: bool
) -> None:
    """The kernel tells an error once: where this hears of it, fdatasync does not."""

    def fail(*_: object) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(pace, "_sync_file_range", fail)
    if is_told:
        with pytest.raises(OSError, match=os.strerror(number)):
            _written(tmp_path / "f", [bytes(MIB)])
    else:
        assert _written(tmp_path / "f", [bytes(MIB)]) == bytes(MIB)
