"""What no argument and no option takes: it is a wrong command line, whatever there is to act on."""

from __future__ import annotations

import pytest

from icnfs.cli.app import guarded, icnfs
from icnfs.errors import Exit


def run(*arguments: str) -> int:
    return guarded(lambda: icnfs.main(list(arguments), standalone_mode=False))


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-1", "0"])
@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--deadline", "sync"),
        ("--deadline", "umount ."),
        ("--deadline", "provider drain demo a"),
        ("--deadline", "snapshot create demo"),
        ("--rate", "scrub demo"),
    ],
)
def test_a_number_is_one_above_zero(option: str, line: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split(), option, number) == Exit.USAGE
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("named", "line"),
    [
        ("PATH", ["info", ""]),
        ("NAME|PATH", ["sync", ""]),
        ("SRC", ["clone", "", "there"]),
        ("DST", ["clone", ".", ""]),
        ("DIR", ["mount", "demo", ""]),
        ("DIR", ["umount", ""]),
        ("PATH", ["snapshot", "restore", "demo", "s1", "", "--to", "there"]),
        ("--to", ["snapshot", "restore", "demo", "s1", "here", "--to", ""]),
        ("--as", ["snapshot", "create", "demo", "--as", ""]),
        ("--without", ["drill", "demo", "--without", ""]),
        ("--keyfile", ["init", "demo", "--keyfile", ""]),
        ("--credentials", ["provider", "add", "demo", "h", "file:///h", "--credentials", ""]),
    ],
)
def test_an_empty_argument_acts_on_nothing(named: str, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line) == Exit.USAGE
    message = capsys.readouterr().err
    assert named in message and "empty" in message
