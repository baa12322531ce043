"""The errno and the log line of any exception."""

from __future__ import annotations

import errno
import logging

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import DamagedError, FsError
from icnfs.fuse import faults
from icnfs.fuse.faults import BURST, WINDOW, FaultLog, describe, errno_of, only_cancelled, passes_through

MISLEADING = {errno.ENOSYS, errno.EINTR, errno.EAGAIN, errno.ENOENT}


@given(st.integers() | st.none() | st.text())
def test_no_errno_reaches_the_kernel_that_it_refuses_or_misunderstands(code: object) -> None:
    answer = errno_of(OSError(code, "text"))
    assert 0 < answer < 512
    assert answer not in MISLEADING
    assert answer == code or answer == errno.EIO


@given(st.integers())
def test_a_reply_may_say_that_there_is_nothing(code: int) -> None:
    answer = errno_of(FsError(code) if -(2**31) <= code < 2**31 else FsError(5))
    assert 0 < answer < 512
    assert answer not in {errno.ENOSYS, errno.EINTR}
    assert errno_of(FsError(errno.ENOENT)) == errno.ENOENT


def test_a_group_answers_what_all_its_leaves_agree_on() -> None:
    full, other = OSError(errno.ENOSPC, "x"), OSError(errno.EROFS, "x")
    assert errno_of(ExceptionGroup("x", [full, ExceptionGroup("y", [full])])) == errno.ENOSPC
    assert errno_of(ExceptionGroup("x", [full, other])) == errno.EIO


def test_cancellation_and_exits_pass_through() -> None:
    cancelled = _cancelled()
    for exc in (cancelled, KeyboardInterrupt(), SystemExit(), GeneratorExit()):
        assert passes_through(exc)
        assert passes_through(BaseExceptionGroup("x", [ValueError(), exc]))
    assert not passes_through(ExceptionGroup("x", [ValueError()]))
    assert only_cancelled(BaseExceptionGroup("x", [cancelled, ValueError()]))
    assert not only_cancelled(BaseExceptionGroup("x", [cancelled, KeyboardInterrupt()]))


def _cancelled() -> trio.Cancelled:
    caught: list[trio.Cancelled] = []

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as exc:
                caught.append(exc)
                raise

    trio.run(main)
    return caught[0]


@given(st.text())
def test_a_message_stays_on_its_line(text: str) -> None:
    line = describe(DamagedError(text))
    assert line.isprintable()


def test_where_it_was_raised_is_told_and_its_text_is_not() -> None:
    try:
        raise KeyError("a-file-name")
    except KeyError as exc:
        told = describe(exc)
    assert told.startswith("KeyError at test_faults.py:")
    assert "test_where_it_was_raised" in told
    assert "a-file-name" not in told


def test_what_is_held_back_in_a_window_is_counted_after_it(caplog: pytest.LogCaptureFixture) -> None:
    log = FaultLog()
    for number in range(BURST + 7):
        log.tell("read", ValueError(), errno.EIO, number / 1000)
    log.tell("write", ValueError(), errno.EIO, 0.5)
    log.tell("read", ValueError(), errno.EIO, WINDOW + 1)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == BURST + 3
    assert messages[BURST + 1].startswith("read: 7 more of ValueError")


def test_a_fault_that_cannot_be_described_is_told_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(exc: BaseException) -> str:
        raise RecursionError

    monkeypatch.setattr(faults, "describe", fails)
    FaultLog().tell("read", ValueError("secret"), errno.EIO, 0.0)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "read answered 5; telling why failed: RecursionError"
