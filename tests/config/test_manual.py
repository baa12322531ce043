"""The manual page documents the schema: no key without an entry, no entry without a key, and its example loads."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from icnfs.config import parse
from icnfs.config.schema import PROVIDER, TABLES
from icnfs.config.values import LOG_LEVELS, UNITS
from icnfs.providers.faults import FaultPlan

PAGE = Path(__file__).parents[2] / "man" / "icnfs.toml.5"
TEXT = PAGE.read_text()


def section(title: str) -> str:
    return TEXT.partition(f".Sh {title}\n")[2].partition("\n.Sh ")[0]


@pytest.mark.parametrize(
    ("title", "keys"),
    [*((f"THE TABLE [{name}]", keys) for name, keys in TABLES.items()), ("THE TABLES [provider.NAME]", PROVIDER)],
)
def test_every_key_has_an_entry_and_every_entry_a_key(title: str, keys: dict[str, object]) -> None:
    assert re.findall(r"^\.It Va (\w+) No = ", section(title), re.M) == list(keys)


def test_every_fault_unit_and_level_is_named() -> None:
    faults = section("THE TABLES [provider.NAME]").partition(".Ss Failing on purpose")[2]
    for field in dataclasses.fields(FaultPlan):
        assert re.search(rf"^\.Va {field.name}\b", faults, re.M)
    for word in (*UNITS, *LOG_LEVELS):
        assert re.search(rf"\b{word}\b", TEXT)


def test_example_is_a_configuration() -> None:
    example = section("EXAMPLES").partition(".Bd -literal -offset indent\n")[2].partition(".Ed")[0]
    config = parse("photos", Path("/etc/icnfs/photos.toml"), example.encode())
    assert (config.k, config.n, list(config.providers)) == (2, 3, ["north", "alps", "coast"])


def test_page_renders_without_a_warning() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed")
    ran = subprocess.run([groff, "-mandoc", "-Tutf8", "-ww", str(PAGE)], check=True, capture_output=True, text=True)
    assert ran.stderr == ""
    assert "publish_seconds = SECONDS" in re.sub(r"\x1b\[[0-9;]*m|.\x08", "", ran.stdout)
