"""What arguments and options may be: click's own types, without the values that it lets through and nobody means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import click


class Above(click.FloatRange):
    """A number above 0, `most` at most.  NaN, which no bound refuses, is none."""

    def __init__(self, most: float) -> None:
        super().__init__(0, most, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's own complaint, which names the option."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


class Named(click.Path):
    """A path that says something: an empty one would be the folder one is in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or a complaint that names the argument."""
        if value in ("", b""):
            self.fail("it is empty; write a path.", param, ctx)
        return super().convert(value, param, ctx)


class Filled(click.types.StringParamType):
    """A text that says something: an empty one would count as if it were left out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text, or a complaint that names the argument."""
        text = super().convert(value, param, ctx)
        if not text.strip():
            self.fail("it is empty; write what is meant, or leave it out.", param, ctx)
        return text


TEXT: Final = Filled()
PATH: Final = Named(path_type=Path)
FILE: Final = Named(dir_okay=False, path_type=Path)
