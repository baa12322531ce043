"""The model that crash tests lean on agrees with a real file system, request by request."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from tests.acceptance.model import Tree, tree_digest
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
