"""The model that crash tests lean on agrees with a real file system, request by request."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from tests.acceptance.model import Tree, as_received, tree_digest
from tests.acceptance.on_files import Files, read_tree
from tests.acceptance.workload import Workload


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_model_agrees_with_the_local_file_system(tmp_path: Path, seed: int) -> None:
    tree, files = Tree(), Files(str(tmp_path))
    mask = os.umask(0)
    try:
        for number, request in enumerate(islice(Workload(tree, seed), 1500)):
            files.apply(request)
            tree.apply(request)
            if number % 100 == 0:
                assert read_tree(str(tmp_path)) == tree.entries()
                assert tree_digest(tree.entries()) == tree.digest
    finally:
        os.umask(mask)
    assert read_tree(str(tmp_path)) == tree.entries()


def test_a_write_in_pieces_is_the_same_write() -> None:
    request = ("write", "f", 100_001, 60_000, 7)
    whole, pieces = Tree(), Tree()
    for tree in (whole, pieces):
        tree.apply(("create", "f", 0o644))
    whole.apply(request)
    parts = as_received(request)
    assert len(parts) == 2
    for part in parts:
        assert pieces.digest != whole.digest
        pieces.apply(part)
    assert pieces.digest == whole.digest
    assert as_received(("write", "f", 4096, 60_000, 7)) == [("write", "f", 4096, 60_000, 7)]
