"""A tree in memory, the requests that change it, and a digest that tells two trees apart.

The digest is a sum over the names of a tree, so a request costs only what it changes, and the digest after each of
thousands of requests can be kept.  A tree read back from a volume is one of those states or it is no prefix.
Times are left out: the model cannot know them.
"""

from __future__ import annotations

import hashlib
import random
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

Request = tuple[str | int, ...]
"""A verb and its arguments, of kinds that JSON keeps: see `Tree.apply`."""

PAGE: Final = 4096

_MODULUS: Final = 1 << 128


class Entry(NamedTuple):
    """What one name of a tree shows."""

    mode: int
    nlink: int
    content: bytes
    """Digest of a file's bytes; a symlink's target; nothing for a directory."""
    xattrs: tuple[tuple[str, bytes], ...]

    def digest(self, path: str) -> int:
        text = repr((path, self.mode, self.nlink, self.content, self.xattrs))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def content_digest(data: bytes | bytearray) -> bytes:
    """Of a file's bytes; an empty file's is told from none."""
    return b"%d:" % len(data) + hashlib.blake2b(data, digest_size=16).digest()


def tree_digest(entries: Mapping[str, Entry]) -> int:
    return sum(entry.digest(path) for path, entry in entries.items()) % _MODULUS


def written(seed: int, size: int) -> bytes:
    """The bytes that a write request of this seed carries."""
    return random.Random(seed).randbytes(size)


def as_received(request: Request) -> list[Request]:
    """The requests that the kernel makes of one: a write that begins within a page that is not cached is cut there."""
    if request[0] != "write":
        return [request]
    _, path, offset, size, seed = request
    assert isinstance(offset, int) and isinstance(size, int)
    first = -offset % PAGE
    if not 0 < first < size:
        return [request]
    return [("piece", path, offset, *span, size, seed) for span in ((0, first), (first, size))]


@dataclass(eq=False)
class _Node:
    mode: int
    data: bytearray = field(default_factory=bytearray)
    target: str = ""
    xattrs: dict[str, bytes] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)
    content: bytes | None = None

    def entry(self, nlink: int) -> Entry:
        if self.content is None:
            self.content = content_digest(self.data) if stat.S_ISREG(self.mode) else self.target.encode()
        return Entry(self.mode, nlink, self.content, tuple(sorted(self.xattrs.items())))


class Tree:
    """Names relative to the root, which is itself not among them."""

    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {}
        self._digests: dict[str, int] = {}
        self._subfolders: dict[str, int] = {}
        self.digest = 0

    def entries(self) -> dict[str, Entry]:
        return {path: node.entry(self._nlink(path, node)) for path, node in self.nodes.items()}

    def files(self) -> list[str]:
        return [path for path, node in self.nodes.items() if stat.S_ISREG(node.mode)]

    def folders(self) -> list[str]:
        return [path for path, node in self.nodes.items() if stat.S_ISDIR(node.mode)]

    def size(self, path: str) -> int:
        return len(self.nodes[path].data)

    def is_folder(self, path: str) -> bool:
        return stat.S_ISDIR(self.nodes[path].mode)

    def is_symlink(self, path: str) -> bool:
        return stat.S_ISLNK(self.nodes[path].mode)

    def empty(self, folder: str) -> bool:
        return not any(path.startswith(folder + "/") for path in self.nodes)

    def apply(self, request: Request) -> None:
        """One request that is known to succeed; `fsync`, `fsyncdir` and `sync` change nothing."""
        verb, *arguments = request
        getattr(self, f"_do_{verb}")(*arguments)

    # --- requests --------------------------------------------------------------------------------------------------

    def _do_create(self, path: str, mode: int) -> None:
        self._add(path, _Node(stat.S_IFREG | mode))

    def _do_mkdir(self, path: str, mode: int) -> None:
        self._add(path, _Node(stat.S_IFDIR | mode))

    def _do_symlink(self, target: str, path: str) -> None:
        self._add(path, _Node(stat.S_IFLNK | 0o777, target=target))

    def _do_link(self, old: str, new: str) -> None:
        self._add(new, self.nodes[old])

    def _do_write(self, path: str, offset: int, size: int, seed: int) -> None:
        data = self.nodes[path].data
        if offset > len(data):
            data.extend(bytes(offset - len(data)))
        data[offset : offset + size] = written(seed, size)
        self._changed(path)

    def _do_piece(self, path: str, offset: int, start: int, end: int, size: int, seed: int) -> None:
        """Bytes `start` to `end` of what a write at `offset` carries."""
        data = self.nodes[path].data
        if offset + start > len(data):
            data.extend(bytes(offset + start - len(data)))
        data[offset + start : offset + end] = written(seed, size)[start:end]
        self._changed(path)

    def _do_truncate(self, path: str, size: int) -> None:
        data = self.nodes[path].data
        if size < len(data):
            del data[size:]
        else:
            data.extend(bytes(size - len(data)))
        self._changed(path)

    def _do_chmod(self, path: str, mode: int) -> None:
        node = self.nodes[path]
        node.mode = stat.S_IFMT(node.mode) | mode
        self._changed(path)

    def _do_setxattr(self, path: str, name: str, seed: int, size: int) -> None:
        self.nodes[path].xattrs[name] = written(seed, size)
        self._changed(path)

    def _do_unlink(self, path: str) -> None:
        self._remove(path)

    def _do_rmdir(self, path: str) -> None:
        self._remove(path)

    def _do_rename(self, old: str, new: str) -> None:
        if old == new or self.nodes.get(new) is self.nodes[old]:
            return
        if new in self.nodes:
            self._remove(new)
        self._move({old: new})

    def _do_exchange(self, one: str, two: str) -> None:
        if self.nodes[one] is not self.nodes[two]:
            self._move({one: two, two: one})

    def _do_fsync(self, path: str) -> None:
        assert path in self.nodes

    def _do_fsyncdir(self, path: str) -> None:
        assert not path or path in self.nodes

    def _do_sync(self) -> None:
        """`icnfs sync`."""

    # --- upkeep of the digest --------------------------------------------------------------------------------------

    def _nlink(self, path: str, node: _Node) -> int:
        return 2 + self._subfolders.get(path, 0) if stat.S_ISDIR(node.mode) else len(node.paths)

    def _note(self, path: str) -> None:
        """Brings the digest up to date for one name."""
        self.digest -= self._digests.pop(path, 0)
        if (node := self.nodes.get(path)) is not None:
            self._digests[path] = node.entry(self._nlink(path, node)).digest(path)
            self.digest += self._digests[path]
        self.digest %= _MODULUS

    def _changed(self, path: str) -> None:
        node = self.nodes[path]
        node.content = None
        for name in node.paths:
            self._note(name)

    def _count_folder(self, path: str, step: int) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self._subfolders[parent] = self._subfolders.get(parent, 0) + step
            self._note(parent)

    def _add(self, path: str, node: _Node) -> None:
        assert path not in self.nodes
        self.nodes[path] = node
        node.paths.add(path)
        if stat.S_ISDIR(node.mode):
            self._count_folder(path, 1)
        for name in node.paths:
            self._note(name)

    def _remove(self, path: str) -> _Node:
        node = self.nodes.pop(path)
        node.paths.discard(path)
        self._note(path)
        if stat.S_ISDIR(node.mode):
            self._count_folder(path, -1)
        for name in node.paths:
            self._note(name)
        return node

    def _move(self, moves: Mapping[str, str]) -> None:
        """Takes out whole subtrees, then puts them under their new names, parents first."""
        taken: dict[str, _Node] = {}
        for old, new in moves.items():
            inside = sorted((p for p in self.nodes if p == old or p.startswith(old + "/")), reverse=True)
            for path in inside:
                taken[new + path[len(old) :]] = self._remove(path)
        for path in sorted(taken):
            self._add(path, taken[path])
