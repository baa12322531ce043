from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.cli import output
from icnfs.cli.dates import seconds_of
from icnfs.cli.verb_recover import NUMBER_MAX, head_number
from icnfs.control.protocol import Progress
from icnfs.errors import UsageError


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (128 * 1024, "128.0 KiB"), (2**63, "8.0 EiB")],
)
def test_sizes_are_short(count: int | None, shown: str) -> None:
    assert output.size(count) == shown


@given(st.integers(0, 2**70))
def test_any_size_is_shown(count: int) -> None:
    assert len(output.size(count)) <= 16


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "never"), (0.4, "0 s"), (119, "119 s"), (600, "10 min"), (1e6, "12 d")]
)
def test_ages_are_short(seconds: float | None, shown: str) -> None:
    assert output.age(seconds) == shown


def test_rows_without_a_terminal_are_lines_with_tabs_and_hold_no_control_character(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output.print_rows(("a", "b"), [("1", "x\ty\x1b[2J\n")])
    assert capsys.readouterr().out == "a\tb\n1\tx\\x09y\\x1b[2J\\x0a\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LINE_EVERY", 0.0)
    with output.watching("Publishing demo") as show:
        show(Progress(1024, 4096))
        show(Progress(4096, 4096, 3))
    assert capsys.readouterr().err.splitlines() == [
        "Publishing demo: 1.0 KiB of 4.0 KiB",
        "Publishing demo: waiting for 3 shares to be safe: 4.0 KiB of 4.0 KiB",
    ]


def test_the_last_line_of_progress_tells_of_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "LINE_EVERY", 0.0)
    with output.watching("Publishing demo") as show:
        monkeypatch.setattr(output, "LINE_EVERY", 1000.0)
        for done in (1024, 2048, 4096, 4096):
            show(Progress(done, 4096))
    assert capsys.readouterr().err.splitlines() == [
        "Publishing demo: 1.0 KiB of 4.0 KiB",
        "Publishing demo: 4.0 KiB of 4.0 KiB",
    ]


def test_heads_are_numbered_as_status_shows_them() -> None:
    assert head_number("3-17", "--at-least", 0) == (3, 17)
    assert head_number("3", "--at-least", 0) == (3, 0)
    assert head_number("3", "--at-most", NUMBER_MAX) == (3, NUMBER_MAX)


def test_dates_are_utc() -> None:
    assert seconds_of("1970-01-02", "--as-of") == seconds_of("1970-01-02T00:00Z", "--as-of") == 86_400
    with pytest.raises(UsageError, match="--as-of 'soon': not a date"):
        seconds_of("soon", "--as-of")


@given(st.text())
def test_any_text_is_a_head_or_a_usage_error(text: str) -> None:
    try:
        epoch, sequence = head_number(text, "--at-least", 0)
    except UsageError:
        return
    assert epoch >= 0 and sequence >= 0
