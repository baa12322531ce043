"""How verbs speak: facts as a table on a terminal, as plain lines elsewhere, as JSON when asked for.

Facts go to stdout and all else to stderr, so output can be piped.  Text from outside is escaped: no provider's error
and no path drives the terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from icnfs.control import protocol
from icnfs.control.log import escape
from icnfs.errors import IcnfsError

json_option = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")

LINE_EVERY: Final = 5.0
"""Seconds between two lines of progress where there is no terminal."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def print_json(document: object) -> None:
    """One JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")


@contextmanager
def shown_once(lost: str) -> Iterator[None]:
    """What is printed within is kept nowhere: where stdout does not take it, an IcnfsError says so, and what to do."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or it is tried again at exit, and that told as well
        raise IcnfsError(f"the recovery key could not be written to stdout ({error.strerror}): {lost}") from None


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """`key: value`, one a line; keys line up on a terminal."""
    width = max((len(key) for key, _ in facts), default=0) + 1 if sys.stdout.isatty() else 0
    for key, value in facts:
        print(f"{key + ':':<{width}} {escape(value)}")


def print_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere a line a row, cells apart by tabs, beneath the head."""
    if not sys.stdout.isatty():
        for row in (head, *rows):
            print("\t".join(escape(cell) for cell in row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(title)
    for row in rows:
        table.add_row(*(Text(escape(cell)) for cell in row))
    Console().print(table)


def say(message: str) -> None:
    """A line for the person who called, on stderr."""
    print(escape(message), file=sys.stderr)


def size(count: int | None) -> str:
    """Bytes for people: three digits or so and a binary unit."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def rate(per_second: float | None) -> str:
    """Bytes per second for people."""
    return "-" if per_second is None else f"{size(round(per_second))}/s"


def age(seconds: float | None) -> str:
    """A span of time for people."""
    if seconds is None:
        return "never"
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"


def moment(time_ns: int) -> str:
    """A moment in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_ns / 1e9))


Show = Callable[[protocol.Progress], None]


@contextmanager
def watching(what: str, *, left: bool = False) -> Iterator[Show]:
    """Show progress while the block runs: a bar on a terminal, elsewhere a line every LINE_EVERY seconds.

    The bar says how much time has passed, or how much is `left`.
    """
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    span = TimeRemainingColumn() if left else TimeElapsedColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), span)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(now: protocol.Progress) -> None:
            bar.update(task, description=_phase(what, now), completed=now.done, total=now.total or None)

        yield show


def _phase(what: str, now: protocol.Progress) -> str:
    if now.waiting:
        return f"{what}: {now.shares_left} shares left, waiting: {escape(now.waiting)}"
    if now.shares_left:
        return f"{what}: {now.shares_left} shares left"
    if now.files:
        return f"{what}: {now.files} files"
    if now.missing_shares and now.done >= now.total:
        return f"{what}: waiting for {now.missing_shares} shares to be safe"
    return what


class _Lines:
    """Progress where nobody draws."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + LINE_EVERY
        self._short = False
        """Whether the last line told of less than all."""

    def __call__(self, now: protocol.Progress) -> None:
        if time.monotonic() >= self._next or (self._short and now.done >= now.total):
            self._next = time.monotonic() + LINE_EVERY
            self._short = now.done < now.total
            told = "" if now.files else f": {size(now.done)} of {size(now.total)}"
            say(f"{_phase(self._what, now)}{told}")
