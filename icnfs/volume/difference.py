"""How two trees of one volume differ, by their records: paths added, removed, renamed, and changed in what.

Numbers of inodes and versions are never reused, so the same number is the same thing: an inode that bears another name
was renamed, and a file whose chunks have the same versions holds the same bytes.  No contents are read.  A record that
is the very same, as sealed, need not be opened.

Both trees are walked together, directory by directory, and differences come as they are found.  Memory is taken for the
directories that are still to be walked and for what was renamed.  A file with several names counts by each.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from icnfs.errors import FormatError
from icnfs.format.records import RANK_BITS, U64, Entry, Table
from icnfs.state.inode import Inode
from icnfs.state.loader import ROOT_INO
from icnfs.state.reader import Reader

log = logging.getLogger(__name__)

ADDED: Final = "added"
REMOVED: Final = "removed"
RENAMED: Final = "renamed"
CHANGED: Final = "changed"

CONTENTS: Final = "contents"
ATTRIBUTES: Final = "attributes"
TIMES: Final = "times"

DIRECTORY: Final = 0o04


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that differs; `before` is its old one where it was renamed, `what` of it has changed (not for one that
    was added or removed)."""

    kind: str
    path: bytes
    before: bytes = b""
    what: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """One name, in the tree before, after, or both; `ino` is the inode's."""

    in_before: bool
    in_after: bool
    path: bytes
    ino: int


@dataclass(frozen=True, slots=True)
class _Pair:
    """A directory that is still to be walked: in both trees, or in one of them."""

    before: int | None
    after: int | None
    path_before: bytes
    path_after: bytes


class Differences:
    """Those from tree `before` to tree `after`; iterate once."""

    def __init__(self, before: Reader, after: Reader) -> None:
        self._before = before
        self._after = after
        self._dead = {reader: _tombstones(reader) for reader in (before, after)}

    def __iter__(self) -> Iterator[Difference]:
        """A name that cannot be read is left out, with a warning."""
        olds, news = self._renamed()
        moved = dict(zip(news, olds, strict=True))
        left = set(olds)
        for seen in self._walk():
            place = seen.ino, seen.path
            if seen.in_before and seen.in_after:
                what = self._changes(seen.ino)
                if what:
                    yield Difference(CHANGED, seen.path, what=what)
            elif seen.in_before:
                if place not in left:
                    yield Difference(REMOVED, seen.path)
            elif place in moved:
                yield Difference(RENAMED, seen.path, moved[place][1], self._changes(seen.ino))
            else:
                yield Difference(ADDED, seen.path)

    def _renamed(self) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
        """(inode, path) before and after of what bears another name: one list by the other."""
        gone: defaultdict[int, list[bytes]] = defaultdict(list)
        come: defaultdict[int, list[bytes]] = defaultdict(list)
        for seen in self._walk():
            if seen.in_before != seen.in_after and self._is_in_both(seen.ino):
                (gone if seen.in_before else come)[seen.ino].append(seen.path)
        pairs = [
            ((ino, old), (ino, new)) for ino, paths in gone.items() for old, new in zip(paths, come[ino], strict=False)
        ]
        return [old for old, _ in pairs], [new for _, new in pairs]

    def _is_in_both(self, ino: int) -> bool:
        return _is_named(self._before, ino) and _is_named(self._after, ino)

    # --- walking ------------------------------------------------------------------------------------------------------

    def _walk(self) -> Iterator[_Seen]:
        """Every name below the root that differs or may; the root itself, as b"/", first."""
        yield _Seen(True, True, b"/", ROOT_INO)
        waiting = [_Pair(ROOT_INO, ROOT_INO, b"", b"")]
        walked: set[tuple[int | None, int | None]] = set()
        while waiting:
            pair = waiting.pop()
            if (pair.before, pair.after) in walked:  # a directory that records put into itself
                continue
            walked.add((pair.before, pair.after))
            try:
                for old, new in self._entries(pair):
                    yield from self._see(pair, old, new, waiting)
            except FormatError as error:
                where = pair.path_after or pair.path_before or b"/"
                log.warning("%s: %s", where.decode("utf-8", "backslashreplace"), error)

    def _see(self, pair: _Pair, old: Entry | None, new: Entry | None, waiting: list[_Pair]) -> Iterator[_Seen]:
        if old is not None and new is not None and old.ino == new.ino:
            path = pair.path_after + b"/" + new.name
            yield _Seen(True, True, path, new.ino)
            if new.kind == DIRECTORY:
                waiting.append(_Pair(old.ino, new.ino, pair.path_before + b"/" + old.name, path))
            return
        if old is not None:
            path = pair.path_before + b"/" + old.name
            yield _Seen(True, False, path, old.ino)
            if old.kind == DIRECTORY and not _is_named(self._after, old.ino):
                waiting.append(_Pair(old.ino, None, path, b""))
        if new is not None:
            path = pair.path_after + b"/" + new.name
            yield _Seen(False, True, path, new.ino)
            if new.kind == DIRECTORY:
                before = self._path_before(new.ino)
                waiting.append(_Pair(None if before is None else new.ino, new.ino, before or b"", path))

    def _entries(self, pair: _Pair) -> Iterator[tuple[Entry | None, Entry | None]]:
        """The entries of both directories by name.  Names of one directory have the same hash in both trees."""
        olds = self._before.entries(pair.before, 0) if pair.before is not None else iter(())
        news = self._after.entries(pair.after, 0) if pair.after is not None else iter(())
        old, new = next(olds, None), next(news, None)
        while old is not None or new is not None:
            at = min(entry.cookie >> RANK_BITS for entry in (old, new) if entry is not None)
            before: dict[bytes, Entry] = {}
            after: dict[bytes, Entry] = {}
            while old is not None and old.cookie >> RANK_BITS == at:
                before[old.name] = old
                old = next(olds, None)
            while new is not None and new.cookie >> RANK_BITS == at:
                after[new.name] = new
                new = next(news, None)
            for name in before | after:
                yield before.get(name), after.get(name)

    def _path_before(self, directory: int) -> bytes | None:
        """Where a directory was in the tree before; None where there was none of that number."""
        path = b""
        ino = directory
        for _ in range(2048):
            if ino == ROOT_INO:
                return path
            node = self._before.inode(ino)
            if node is None or not node.is_dir:
                return None
            names = (entry.name for entry in self._before.entries(node.parent, 0) if entry.ino == ino)
            name = next(names, None)
            if name is None:
                return None
            path = b"/" + name + path
            ino = node.parent
        raise FormatError("directories lie within one another without end")

    # --- what has changed ---------------------------------------------------------------------------------------------

    def _changes(self, ino: int) -> tuple[str, ...]:
        """What of an inode that is in both trees has changed."""
        key = U64.pack(ino)
        if self._before.raw(Table.INODES, key) == self._after.raw(Table.INODES, key):
            return ()
        try:
            old, new = self._before.inode(ino), self._after.inode(ino)
            if old is None or new is None:
                return ()
            found = []
            if old.is_file and (old.size != new.size or not self._is_same(ino)):
                found.append(CONTENTS)
            if _attributes(old) != _attributes(new) or self._before.xattrs(ino) != self._after.xattrs(ino):
                found.append(ATTRIBUTES)
            if old.mtime != new.mtime and not new.is_dir and CONTENTS not in found:
                found.append(TIMES)
        except FormatError as error:
            log.warning("inode %d: %s", ino, error)
            return ()
        return tuple(found)

    def _is_same(self, ino: int) -> bool:
        """Whether a file's chunks and patches are the same."""
        olds, news = self._held(self._before, ino), self._held(self._after, ino)
        while True:
            old = next(olds, None)
            if old != next(news, None):
                return False
            if old is None:
                return True

    def _held(self, reader: Reader, ino: int) -> Iterator[tuple[int, int, int]]:
        """(0 or 1, index, version) of a file's chunks and then its patches, but for those that a cut has ended."""
        cuts = self._dead[reader].get(ino, ())

        def lives(index: int, version: int) -> bool:
            return not any(index >= first and version <= bound for first, bound in cuts)

        for index, record in reader.chunks(ino):
            if lives(index, record.version):
                yield 0, index, record.version
        for index, version in reader.patch_versions(ino):
            if lives(index, version):
                yield 1, index, version


def _is_named(reader: Reader, ino: int) -> bool:
    """Whether an inode is there, and not only for those who hold it open."""
    key = U64.pack(ino)
    return reader.raw(Table.INODES, key) is not None and reader.raw(Table.ORPHANS, key) is None


def _attributes(node: Inode) -> tuple[object, ...]:
    return node.mode, node.uid, node.gid, node.rdev, node.target


def _tombstones(reader: Reader) -> dict[int, list[tuple[int, int]]]:
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for ino, first, bound in reader.tombstones():
        found[ino].append((first, bound))
    return found
