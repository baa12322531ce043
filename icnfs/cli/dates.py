"""Dates on the command line, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from icnfs.errors import UsageError

DATES: Final = ("%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")
"""How one may be given; a Z at its end is understood."""


def seconds_of(text: str, option: str) -> int:
    """The Unix second that an option means; UsageError for what is no date."""
    for form in DATES:
        try:
            return int(datetime.strptime(text.removesuffix("Z"), form).replace(tzinfo=UTC).timestamp())
        except ValueError:
            continue
    raise UsageError(f"{option} {text[:40]!r}: not a date; write 2030-12-31 or 2030-12-31T18:00, in UTC")
