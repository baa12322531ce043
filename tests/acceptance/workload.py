"""Seeded mixed workloads: an endless stream of requests, each of which the tree so far lets succeed.

Every request is one change as the file system receives it, so that "a prefix of the requests" means something: a write
is at most 64 KiB, and nothing is opened and changed in one go.  The tree stays small, to be read back whole often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from tests.acceptance.model import Request, Tree

FILES_MAX: Final = 60
FILE_SIZE_MAX: Final = 400_000
WRITE_MAX: Final = 65536

WEIGHTS: Final[dict[str, float]] = {
    "create": 14,
    "write": 40,
    "truncate": 5,
    "rename": 8,
    "exchange": 2,
    "unlink": 5,
    "mkdir": 4,
    "rmdir": 1,
    "link": 3,
    "symlink": 3,
    "chmod": 3,
    "setxattr": 4,
    "fsync": 8,
    "fsyncdir": 1,
}


class Workload:
    """Requests for `tree`, which the caller changes by each one before it asks for the next."""

    def __init__(self, tree: Tree, seed: int, weights: dict[str, float] | None = None) -> None:
        self._tree = tree
        self._random = random.Random(seed)
        self._number = len(tree.nodes)
        self._prefix = f"{seed & 0xFFFFFF:x}"
        chosen = weights or WEIGHTS
        self._verbs = list(chosen)
        self._weights = list(chosen.values())

    def __iter__(self) -> Iterator[Request]:
        while True:
            verb = self._random.choices(self._verbs, self._weights)[0]
            maker: Callable[[], Request | None] = getattr(self, f"_{verb}")
            request = maker()
            if request is not None:
                yield request

    # --- one maker for each verb; None where the tree has nothing for it ----------------------------------------------

    def _create(self) -> Request | None:
        if len(self._tree.nodes) > FILES_MAX:
            return self._unlink()
        return "create", self._new_name("f"), self._random.choice((0o644, 0o600, 0o755))

    def _write(self) -> Request | None:
        path = self._file()
        if path is None:
            return None
        size = self._random.choice((1, 100, 4096, 4096, 20000, WRITE_MAX))
        end = self._tree.size(path)
        offset = self._random.choice(
            (0, end, end, self._random.randrange(end + 1), self._random.randrange(FILE_SIZE_MAX))
        )
        return "write", path, min(offset, FILE_SIZE_MAX), self._random.randint(1, size), self._random.getrandbits(32)

    def _truncate(self) -> Request | None:
        path = self._file()
        size = self._random.choice((0, self._random.randrange(FILE_SIZE_MAX)))
        return ("truncate", path, size) if path else None

    def _rename(self) -> Request | None:
        tree = self._tree
        if not tree.nodes:
            return None
        old = self._random.choice(list(tree.nodes))
        if not tree.is_folder(old) and self._random.random() < 0.5:
            others = [p for p in tree.nodes if not tree.is_folder(p)]
            return "rename", old, self._random.choice(others)
        new = self._new_name("r")
        return None if new.startswith(old + "/") else ("rename", old, new)

    def _exchange(self) -> Request | None:
        if len(self._tree.nodes) < 2:
            return None
        one, two = self._random.sample(list(self._tree.nodes), 2)
        nested = one.startswith(two + "/") or two.startswith(one + "/")
        return None if nested else ("exchange", one, two)

    def _unlink(self) -> Request | None:
        paths = [p for p in self._tree.nodes if not self._tree.is_folder(p)]
        return ("unlink", self._random.choice(paths)) if paths else None

    def _mkdir(self) -> Request | None:
        return ("mkdir", self._new_name("d"), 0o755) if len(self._tree.folders()) < 12 else self._rmdir()

    def _rmdir(self) -> Request | None:
        paths = [p for p in self._tree.folders() if self._tree.empty(p)]
        return ("rmdir", self._random.choice(paths)) if paths else None

    def _link(self) -> Request | None:
        path = self._file()
        return ("link", path, self._new_name("l")) if path else None

    def _symlink(self) -> Request | None:
        return "symlink", "t" * self._random.randint(1, 300), self._new_name("s")

    def _chmod(self) -> Request | None:
        path = self._file()
        return ("chmod", path, self._random.randrange(0o1000) | 0o600) if path else None

    def _setxattr(self) -> Request | None:
        path = self._file()
        name = f"user.{self._random.choice('abc')}"
        return ("setxattr", path, name, self._random.getrandbits(32), self._random.randint(0, 300)) if path else None

    def _fsync(self) -> Request | None:
        path = self._file()
        return ("fsync", path) if path else None

    def _fsyncdir(self) -> Request | None:
        return "fsyncdir", self._random.choice(["", *self._tree.folders()])

    def _sync(self) -> Request | None:
        return ("sync",)

    # --- choices ---------------------------------------------------------------------------------------------------

    def _file(self) -> str | None:
        files = self._tree.files()
        return self._random.choice(files) if files else None

    def _new_name(self, letter: str) -> str:
        self._number += 1
        folder = self._random.choice(["", "", *self._tree.folders()])
        if folder.count("/") > 3:
            folder = ""
        name = f"{letter}{self._prefix}-{self._number}"
        return f"{folder}/{name}" if folder else name
