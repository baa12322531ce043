"""Each verb's manual page and its options agree, both ways; the table of exit codes is errors.Exit."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from icnfs.cli.app import VERBS, icnfs
from icnfs.errors import Exit

MAN = Path(__file__).resolve().parents[2] / "man"


def commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group) and command is not icnfs:
        for name in command.commands:
            yield from commands(command.commands[name])


def options(command: click.Command) -> set[str]:
    context = click.Context(command, help_option_names=["-h", "--help"])
    return {
        name
        for each in commands(command)
        for parameter in each.get_params(context)
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }


def documented(page: Path) -> set[str]:
    """Options that head an item: `.It Fl f , Fl Fl foreground`."""
    items = re.findall(r"^\.It (Fl .*)$", page.read_text(), re.MULTILINE)
    return {f"--{long}" if long else f"-{short}" for item in items for long, short in _flags(item)}


def _flags(item: str) -> list[tuple[str, str]]:
    return re.findall(r"Fl (?:Fl ([a-z-]+)|([a-z])\b)", item)


@pytest.mark.parametrize("verb", VERBS)
def test_page_and_verb_name_the_same_options(verb: str) -> None:
    command = importlib.import_module(f"icnfs.cli.verb_{verb}").verb
    assert documented(MAN / f"icnfs-{verb}.1") == options(command)


def test_the_overview_names_the_options_before_the_verb() -> None:
    assert documented(MAN / "icnfs.1") == options(icnfs)


def test_the_overview_lists_every_verb() -> None:
    assert re.findall(r"^\.It Cm ([a-z]+)$", (MAN / "icnfs.1").read_text(), re.MULTILINE) == list(VERBS)


def test_exit_codes_are_those_of_the_program_in_order() -> None:
    numbers = re.findall(r"^\.It (\d+)$", (MAN / "icnfs.1").read_text(), re.MULTILINE)
    assert list(map(int, numbers)) == sorted(Exit)
