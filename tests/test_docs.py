"""The documentation tells the truth: commands that the README shows exist, every verb and option has its manual page.

The manual pages are rendered by mandoc, which packaging/setup installs for tests.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from icnfs.errors import Exit

ROOT = Path(__file__).resolve().parents[1]
MAN = ROOT / "man"
VERBS = (
    "init",
    "mount",
    "umount",
    "sync",
    "status",
    "health",
    "info",
    "recover",
    "clone",
    "snapshot",
    "scrub",
    "drill",
    "key",
    "provider",
    "policy",
)
ACTIONS = {
    "snapshot": ("create", "lock", "list", "diff", "restore", "delete"),
    "key": ("add", "list", "remove"),
    "provider": ("test", "add", "list", "drain", "remove"),
    "policy": ("check", "adopt"),
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
PAGES = sorted(MAN.glob("*.[0-9]"))


@cache
def help_of(*verbs: str) -> str:
    """What `icnfs VERB... --help` prints."""
    command = [sys.executable, "-c", "from icnfs.cli import main; main()", *verbs, "--help"]
    environment = os.environ | {"COLUMNS": "120", "TERM": "dumb", "NO_COLOR": "1"}
    return subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, text=True).stdout


@cache
def rendered(page: Path) -> str:
    """`page` as plain text, without overstrikes."""
    command = ["mandoc", "-T", "ascii", "-O", "width=120", page]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.sub(r".\x08", "", text)


def page_of(verb: str) -> Path:
    return MAN / f"icnfs-{verb}.1"


def console_commands() -> list[list[str]]:
    """Every command of the README's console blocks, as words."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [shlex.split(line[2:]) for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_readme_shows_both_commands() -> None:
    programs = [words[0] for words in console_commands()]
    assert {"packaging/demo", "packaging/test", "icnfs"} <= set(programs)
    assert all((ROOT / program).is_file() for program in programs if program.startswith("packaging/"))


@pytest.mark.parametrize("words", [w for w in console_commands() if w[0] == "icnfs"], ids=" ".join)
def test_commands_of_the_readme_exist(words: list[str]) -> None:
    verb, arguments = words[1], words[2:]
    assert verb in VERBS
    path = (verb, arguments[0]) if verb in ACTIONS else (verb,)
    assert verb not in ACTIONS or arguments[0] in ACTIONS[verb]
    assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= set(OPTION.findall(help_of(*path)))


def test_help_lists_every_verb() -> None:
    assert set(VERBS) <= set(re.findall(r"^\s+([a-z]+)\b", help_of(), re.MULTILINE))


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_stands_in_the_verbs_manual_page(verb: str) -> None:
    options = set(OPTION.findall(help_of(verb)))
    for action in ACTIONS.get(verb, ()):
        options |= set(OPTION.findall(help_of(verb, action)))
    assert options - {"--help"} <= set(OPTION.findall(rendered(page_of(verb))))


def test_exit_codes_of_the_manual_are_those_of_the_program() -> None:
    text = rendered(MAN / "icnfs.1")
    section = text[text.index("\nEXIT STATUS") :]
    section = section[: next((m.start() for m in re.finditer(r"\n[A-Z]", section[1:])), len(section)) + 1]
    assert {int(number) for number in re.findall(r"^\s+(\d+)\s", section, re.MULTILINE)} == {int(code) for code in Exit}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_manual_pages_are_well_formed(page: Path) -> None:
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", page], check=False, capture_output=True, text=True)
    assert [line for line in lint.stdout.splitlines() if "missing date" not in line] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_pages_that_are_referred_to_exist(page: Path) -> None:
    text = page.read_text() if page.suffix == ".md" else rendered(page)
    named = {f"{name}.{section}" for name, section in re.findall(r"\b(icnfs[\w.-]*)\((\d)\)", text)}
    assert {name for name in named if not (MAN / name).exists()} == set()
