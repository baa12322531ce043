"""The curves come out, with every figure, at sizes of seconds.  What they are is for `python -m tests.bench.scale`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import scale
from tests.bench.scale import MIB, Bench, Row


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(scale, "AFTERMATH", 0.1)
    monkeypatch.setattr(scale, "DENSE_MAX", MIB)
    return Bench(tmp_path, tmp_path / "lock")


def above_zero(row: Row) -> bool:
    return all(value > 0 for value in row.values() if isinstance(value, float))


@pytest.mark.mount
def test_a_point_of_many_files_comes_out(bench: Bench) -> None:
    row = scale.many_files(bench, 1200, 100)
    assert len(row) == 20
    assert above_zero(row)
    assert float(str(row["publish one KiB"])) < 100
    assert float(str(row["front MiB"])) < 100


@pytest.mark.mount
def test_points_of_many_entries_come_out(bench: Bench) -> None:
    rows: list[Row] = []
    scale.many_entries(bench, [1, 300], rows)
    assert [row["entries"] for row in rows] == [1, 300]
    assert all(map(above_zero, rows))


@pytest.mark.mount
def test_points_of_file_sizes_come_out(bench: Bench) -> None:
    rows: list[Row] = []
    scale.sizes(bench, [1024, 200 * MIB], rows)
    assert [row["kind"] for row in rows] == ["dense", "a hole", "scattered chunks", "every chunk"]
    assert rows[-1]["chunks"] == 1600
    assert all(map(above_zero, rows))


def test_sizes_are_read_as_they_are_shown() -> None:
    for size in (1, 1024, 3 << 20, 100 << 30):
        shown = scale.show_size(size)
        assert scale.read_size(shown.removesuffix(" B").replace(" ", "")) == size


def test_a_table_has_a_column_for_each_figure_of_any_row() -> None:
    lines = scale.table([{"a": 1, "b": 0.5}, {"a": 20000, "c": 1234.5}]).splitlines()
    assert lines[0] == "| a | b | c |"
    assert lines[2:] == ["| 1 | 0.50 |  |", "| 20,000 |  | 1,234 |"]
