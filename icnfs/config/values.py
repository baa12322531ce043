"""How one value of the TOML is read: total functions from what TOML gave to what the product uses.

Each takes a value of any TOML type and returns it checked, or raises `BadValueError` with what is wrong and what to
write instead; the caller adds file and key.  Nothing is touched outside: paths are not looked at, urls not opened.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Final

from icnfs.config.countries import COUNTRIES, MISTAKEN
from icnfs.limits import SHARES_MAX
from icnfs.providers.open import parse_url, without_secrets

TEXT_MAX: Final = 200
"""Characters in an owner's name or a site's: one line of a table."""

PATH_CHARACTERS_MAX: Final = 4000
"""Characters in a path or url (Linux PATH_MAX is 4096 bytes)."""

SIZE_MAX: Final = 2**60
"""Bytes of the largest size: 1 EiB, so that sums stay below 2**63."""

UNITS: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

LOG_LEVELS: Final = ("debug", "info", "warning", "error")

_SIZE: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,3})")
_CODE: Final = re.compile(r"([0-9]{1,4})-of-([0-9]{1,4})")
_CREDENTIAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PROFILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@:/+-]{0,126}[A-Za-z0-9]|[A-Za-z0-9]")


class BadValueError(ValueError):
    """What is wrong with a value; remedy."""


def show(value: object) -> str:
    """`value` as its reader wrote it, near enough: one line of plain ASCII, cut at 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError):  # dates and times, which TOML has and JSON has not
        text = ascii(str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_code(value: object) -> tuple[int, int]:
    """`"K-of-N"` -> (K, N) with 2 <= K < N <= SHARES_MAX."""
    form = f'write it as "K-of-N" with 2 <= K < N <= {SHARES_MAX}'
    match = _CODE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise BadValueError(f"{show(value)} is no code; {form}")
    k, n = int(match[1]), int(match[2])
    if k > n:
        raise BadValueError(f"{show(value)} asks for more shares than there are; {form}")
    if k == n:
        raise BadValueError(f"{show(value)} survives no loss; {form}")
    if k < 2:
        raise BadValueError(f"{show(value)} gives every owner all there is; {form}")
    if n > SHARES_MAX:
        raise BadValueError(f"{show(value)} has too many shares; {form}")
    return k, n


def read_size(value: object) -> int:
    """Bytes: an integer >= 0, or a string of a number and a unit of UNITS."""
    size = -1
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2] in UNITS:
        size = int(Decimal(match[1]) * UNITS[match[2]])
    if not 0 <= size <= SIZE_MAX:
        raise BadValueError(f'{show(value)} is no size; write bytes, or a number and a unit, as in "10GiB"')
    return size


def size_of(least: int, most: int = SIZE_MAX) -> Callable[[object], int]:
    """A reader of sizes from `least` to `most` bytes."""

    def read(value: object) -> int:
        size = read_size(value)
        if not least <= size <= most:
            bound = f"at least {in_units(least)}" if size < least else f"at most {in_units(most)}"
            raise BadValueError(f"{show(value)} is out of range; write {bound}")
        return size

    return read


def in_units(size: int) -> str:
    """`size` bytes as a TOML string with the largest binary unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % UNITS[unit] == 0:
            return f'"{size // UNITS[unit]}{unit}"'
    return f'"{size}B"'


def _is_endless(value: int | float) -> bool:
    """Whether it is a float without a finite value; integers, however long, have one."""
    return isinstance(value, float) and not math.isfinite(value)


def number_of(least: float, most: float, what: str) -> Callable[[object], float]:
    """A reader of finite numbers from `least` to `most`; `what` names them, with their unit."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or _is_endless(value):
            raise BadValueError(f"{show(value)} is no number; write {what} from {least:g} to {most:g}")
        if not least <= value <= most:
            raise BadValueError(f"{show(value)} is out of range; write {what} from {least:g} to {most:g}")
        return float(value)

    return read


def integer_of(least: int, most: int, what: str) -> Callable[[object], int]:
    """A reader of integers from `least` to `most`."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadValueError(f"{show(value)} does not fit; write {what} from {least} to {most}")
        return value

    return read


def read_text(value: object) -> str:
    """A line of printable characters, not empty, TEXT_MAX at most, without blanks around it."""
    if not isinstance(value, str) or not value.strip() or len(value) > TEXT_MAX:
        raise BadValueError(f"{show(value)} is no text; write 1 to {TEXT_MAX} characters in quotes")
    if not value.isprintable() or value != value.strip():
        raise BadValueError(f"{show(value)} holds control characters or outer blanks; remove them")
    return value


def read_country(value: object) -> str:
    """An ISO 3166-1 alpha-2 code in use."""
    if isinstance(value, str) and value in MISTAKEN:
        raise BadValueError(f"{show(value)} is no country's code in ISO 3166; write {MISTAKEN[value]}")
    if not isinstance(value, str) or value not in COUNTRIES:
        raise BadValueError(f'{show(value)} is no country; write its two-letter code (ISO 3166), as in "DE"')
    return value


def read_countries(value: object) -> frozenset[str]:
    """A list of country codes."""
    if not isinstance(value, list):
        raise BadValueError(f'{show(value)} is no list; write codes in brackets, as in ["DE", "CH"]')
    return frozenset(map(read_country, value))


def read_url(value: object) -> str:
    """A url that some kind of provider answers to."""
    if not isinstance(value, str) or not value:
        raise BadValueError("that is no url; write file:///PATH")
    shown = show(without_secrets(value))
    if len(value) > PATH_CHARACTERS_MAX:
        raise BadValueError(f"{shown} is too long; write {PATH_CHARACTERS_MAX} characters at most")
    try:
        parse_url(value)
    except ValueError as error:
        raise BadValueError(f"{shown} {error}") from None
    return value


def read_path(value: object) -> PurePosixPath:
    """A path, absolute or relative to the TOML's folder."""
    if not isinstance(value, str) or not value or len(value) > PATH_CHARACTERS_MAX or not value.isprintable():
        raise BadValueError(f"{show(value)} is no path; write one in quotes")
    return PurePosixPath(value)


def read_credential(value: object) -> str:
    """A systemd credential's name: a file's name, so no slash (systemd.exec(5))."""
    if not isinstance(value, str) or _CREDENTIAL.fullmatch(value) is None:
        raise BadValueError(f"{show(value)} names no credential; write the name that LoadCredential= gives it")
    return value


def read_profile(value: object) -> str:
    """The name of a section of the shared credentials file."""
    if not isinstance(value, str) or _PROFILE.fullmatch(value) is None:
        raise BadValueError(f"{show(value)} names no profile; write the name of a section of ~/.aws/credentials")
    return value


def read_bool(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise BadValueError(f"{show(value)} is neither; write true or false, without quotes")
    return value


def read_level(value: object) -> str:
    """A log level."""
    if not isinstance(value, str) or value not in LOG_LEVELS:
        raise BadValueError(f"{show(value)} is no level; write one of {', '.join(LOG_LEVELS)}")
    return value
