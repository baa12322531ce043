from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import click
import pytest

from icnfs.cli import app
from icnfs.errors import DegradedError, Exit


def ended(command: Callable[[], object], capsys: pytest.CaptureFixture[str], debug: bool = False) -> tuple[int, str]:
    code = app.guarded(command, debug=debug)
    return code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


def test_a_verb_that_returns_ends_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: None, capsys) == (0, "")
    assert ended(lambda: 9, capsys) == (9, "")


def test_a_failure_of_ours_is_its_line_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(DegradedError("5 of 6\n\x1b[2J")), capsys) == (14, "icnfs: 5 of 6\\x0a\\x1b[2J\n")


def test_an_unforeseen_failure_keeps_its_text_for_debug(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = ended(raising(ValueError("canary")), capsys)
    assert (code, err.count("\n")) == (Exit.FAILED, 1)
    assert "ValueError" in err
    assert "canary" not in err
    _, err = ended(raising(ValueError("canary")), capsys, debug=True)
    assert "Traceback" in err
    assert "canary" in err


def test_a_system_error_tells_its_reason_and_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = ended(raising(OSError(28, "full", "/canary")), capsys)
    assert "No space left on device" in err
    assert "canary" not in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()], ids=["signal", "abort"])
def test_an_interrupt_ends_with_130(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(raising(error), capsys)[0] == 130


@pytest.mark.parametrize("line", ["bogus", "mount", "sync --bogus", "sync --deadline x", "sync --deadline 0"])
def test_a_wrong_command_line_is_one_line_and_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        app.main(line.split())
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_at_all_shows_the_verbs() -> None:
    done = subprocess.run([sys.executable, "-m", "icnfs.cli"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "recover" in done.stderr


def test_a_reader_that_went_away_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "icnfs.cli", "--help"], check=False, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_no_verb_is_loaded_before_it_is_called() -> None:
    heavy = ("pyfuse3", "lmdb", "cryptography")
    probe = f"import sys, icnfs.cli; print([m for m in sys.modules if 'verb_' in m or m in {heavy}])"
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_children_can_be_waited_for_whatever_the_parent_ignores() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        app._heed_signals()
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before[0])
        signal.signal(signal.SIGTERM, before[1])
