"""python -m tests.bench compare OLD NEW [--quick] [--reps N] [--work FOLDER] [--json]

Two commits of icnfs, measured alternately in one run, with the same steps, the same packages and this checkout's bench:
medians, and how many times better the second is.  OLD and NEW are commits of this repository (they are unpacked into
a temporary folder), folders that hold a checkout, or two files that `--json` printed, whose columns icnfs are compared.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.harness import REPO, Volume
from tests.bench.figures import REMOVAL, STEPS, Scale
from tests.bench.run import Say, place_in, step
from tests.bench.table import Table


def saved(old: Path, new: Path) -> Table:
    """Both files in one table, figures that only one has left out."""
    both = {"old": Table.from_json(old.read_text()), "new": Table.from_json(new.read_text())}
    table = Table()
    for figure, unit in both["old"].units.items():
        if figure not in both["new"].units:
            continue
        for column, found in both.items():
            for value in found.values[figure].get("icnfs", []):
                table.add(figure, unit, column, value)
    return table


@contextmanager
def checkout(named: str, work: Path) -> Iterator[Path]:
    """A folder with the package of a commit (or of a folder, as it is)."""
    if Path(named, "icnfs").is_dir():
        yield Path(named).resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="checkout-", dir=work))
    try:
        packed = subprocess.run(
            ["git", "-C", REPO, "archive", "--format=tar", named, "icnfs"], check=True, capture_output=True
        )
        subprocess.run(["tar", "xf", "-", "-C", folder], input=packed.stdout, check=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class OfCheckout(Volume):
    """A volume that the icnfs of another folder serves, with the packages of this environment."""

    code: Path

    @property
    def env(self) -> dict[str, str]:
        return super().env | {"PYTHONPATH": str(self.code)}


def measure(code: Path, column: str, work: Path, scale: Scale, table: Table, say: Say) -> None:
    """One repetition of one commit below `work`, an empty folder."""
    with OfCheckout(work / "volume") as volume:
        volume.code = code
        volume.init()
        volume.mount()
        _assert_served_by(volume, code)
        places = {column: place_in(volume, scale)}
        for name, figure in STEPS.items():
            step(name, figure, places, table, say)
        step(*REMOVAL, places, table, say)


def _assert_served_by(volume: Volume, code: Path) -> None:
    assert volume.front is not None
    served = Path(f"/proc/{volume.front.pid}/environ").read_bytes().split(b"\0")
    assert f"PYTHONPATH={code}".encode() in served


def commits(old: str, new: str, work: Path, scale: Scale, reps: int, say: Say) -> Table:
    """Both, alternately; every other repetition begins with the other."""
    table = Table()
    with checkout(old, work) as first, checkout(new, work) as second:
        pair = [(first, "old"), (second, "new")]
        for repetition in range(reps):
            for code, column in pair if repetition % 2 == 0 else pair[::-1]:
                folder = Path(tempfile.mkdtemp(prefix=f"{column}-", dir=work))
                try:
                    measure(code, column, folder, scale, table, say)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
    return table
