from __future__ import annotations

import io
import logging
import os
import socket
import stat
import subprocess
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from icnfs.control import log
from icnfs.errors import DamagedError

icnfs_log = logging.getLogger("icnfs.part")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def logged(path: Path, level: str, *calls: tuple[int, str, object]) -> list[str]:
    with log.logging_to(log.PrivateFile(path), level):
        for severity, message, argument in calls:
            icnfs_log.log(severity, message, argument)
    return lines(path)


@given(st.text())
def test_whatever_is_logged_stays_one_printable_line(text: str) -> None:
    record = logging.LogRecord("icnfs", logging.INFO, "", 0, "seen name=%s", (text,), None)
    line = log.LineFormatter(verbose=False).format(record)
    assert line.isprintable()
    assert len(line) <= log.LINE_MAX


def test_control_characters_are_shown_not_sent() -> None:
    assert log.escape("a\x1b[2Jb\nc\u202ed\ud800") == "a\\x1b[2Jb\\nc".replace("\\n", "\\x0a") + "\\u202ed\\ud800"


def test_levels_choose_what_is_written(tmp_path: Path) -> None:
    calls = ((logging.DEBUG, "small n=%d", 1), (logging.INFO, "big n=%d", 2))
    assert [line.split(" ", 1)[1] for line in logged(tmp_path / "a", "info", *calls)] == ["info icnfs.part big n=2"]
    assert len(logged(tmp_path / "b", "debug", *calls)) == 2


def test_a_foreign_exceptions_text_is_kept_back_above_debug(tmp_path: Path) -> None:
    for level, shown in (("info", False), ("debug", True)):
        with log.logging_to(log.PrivateFile(tmp_path / level), level):
            try:
                raise ValueError("canary /home/user/name")
            except ValueError:
                icnfs_log.exception("failed")
        (line,) = lines(tmp_path / level)
        assert ("canary" in line) is shown
        assert "error=ValueError at=test_log.py:" in line


def test_our_own_exceptions_say_what_happened(tmp_path: Path) -> None:
    with log.logging_to(log.PrivateFile(tmp_path / "log"), "info"):
        try:
            raise ExceptionGroup("many", [DamagedError("share 3 is damaged"), OSError(28, "No space", "canary")])
        except ExceptionGroup:
            icnfs_log.exception("failed")
    (line,) = lines(tmp_path / "log")
    assert "share 3 is damaged" in line
    assert "No space left on device" in line
    assert "canary" not in line


def test_the_file_is_for_its_owner_alone_even_when_it_was_not(tmp_path: Path) -> None:
    (tmp_path / "log").touch(mode=0o644)
    logged(tmp_path / "log", "info", (logging.INFO, "x%s", ""))
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_an_uncaught_exception_of_a_thread_is_one_line(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyError("canary")

    with log.logging_to(log.PrivateFile(tmp_path / "log"), "info"):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    (line,) = lines(tmp_path / "log")
    assert "critical icnfs.uncaught uncaught error=KeyError" in line


def test_what_a_child_writes_to_stderr_is_logged(tmp_path: Path) -> None:
    with log.logging_to(log.PrivateFile(tmp_path / "log"), "info"):
        with log.stderr_logged():
            subprocess.run(["sh", "-c", r"printf 'fusermount3: \033[1mno\n' >&2"], check=True)
            (reader,) = (thread for thread in threading.enumerate() if thread.name == "stderr")
        reader.join(10)
    assert [line.split(" ", 1)[1] for line in lines(tmp_path / "log")] == [
        "warning icnfs.stderr fusermount3: \\x1b[1mno"
    ]


def test_journald_gets_priority_and_fields(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.settimeout(5)
        sink = log.background_sink("demo", tmp_path / "log", journal=str(tmp_path / "journal"))
        with log.logging_to(sink, "info"):
            icnfs_log.error("lost provider=%s", "a\nPRIORITY=0")
        fields = journal.recv(1 << 16).decode().splitlines()
    assert fields[:3] == ["SYSLOG_IDENTIFIER=icnfs", "ICNFS_VOLUME=demo", "PRIORITY=3"]
    assert fields[3:] == ["MESSAGE=error icnfs.part lost provider=a\\x0aPRIORITY=0"]
    assert not (tmp_path / "log").exists()


def test_a_journal_that_went_away_stops_nobody(tmp_path: Path) -> None:
    with log.logging_to(log.Journal("demo", str(tmp_path / "none")), "info"):
        icnfs_log.info("said to nobody")


def test_a_stuck_reader_never_stops_the_caller_and_the_loss_is_counted() -> None:
    reader, writer = os.pipe()
    stuck = logging.StreamHandler(os.fdopen(writer, "w"))
    received = io.StringIO()
    with log.logging_to(stuck, "info"):
        for number in range(log.QUEUE_MAX + 3000):
            icnfs_log.info("line n=%d %s", number, "x" * 100)

        def drain() -> None:
            with os.fdopen(reader) as stream:
                for line in stream:
                    received.write(line)

        thread = threading.Thread(target=drain)
        thread.start()
        while "n=5000 " not in received.getvalue():
            thread.join(0.01)
        icnfs_log.info("after")
    stuck.stream.close()
    thread.join(10)
    assert "after dropped_lines=" in received.getvalue()
