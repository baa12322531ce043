"""Sizes, countries and what an error shows of a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.config.countries import COUNTRIES
from icnfs.config.values import SIZE_MAX, UNITS, BadValueError, in_units, read_size, show


@pytest.mark.parametrize(
    ("text", "size"),
    [("10GiB", 10 << 30), ("0B", 0), ("1kB", 1000), ("1.5MiB", 3 << 19), ("7 TB", 7 * 10**12), ("0.0000001kB", 0)],
)
def test_size_with_unit(text: str, size: int) -> None:
    assert read_size(text) == size


@given(st.integers(0, SIZE_MAX))
def test_size_survives_being_written(size: int) -> None:
    assert read_size(size) == size
    assert read_size(in_units(size).strip('"')) == size


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{1,25}(\.[0-9]+)? ?[kKMGTiB]{1,3}", fullmatch=True))
def test_size_reader_is_total(text: str) -> None:
    try:
        assert 0 <= read_size(text) <= SIZE_MAX
    except BadValueError as error:
        assert "\n" not in str(error)


def test_units_are_what_they_say() -> None:
    assert {unit: size for unit, size in UNITS.items() if unit.endswith("iB")} == {
        "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
    }  # fmt: skip


@given(st.text() | st.lists(st.text()) | st.dates() | st.binary() | st.floats())
def test_shown_value_is_one_short_printable_line(value: object) -> None:
    assert show(value).isprintable() and show(value).isascii() and len(show(value)) <= 60


def test_countries_are_all_there() -> None:
    assert len(COUNTRIES) == 249
    assert {"DE", "FI", "CH", "US", "GB", "FR", "SE"} <= COUNTRIES
