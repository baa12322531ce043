"""The records that a publish adds to those of its cut: where the chunks that it uploads lie, and in which segments.

There may be a million of them, so they are sealed while they are gone through, each time anew, unless they are few.  A
record that was sealed twice says the same.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator
from heapq import merge
from itertools import chain, islice
from typing import Final

from icnfs.format import run as run_format
from icnfs.format.segment import SegmentInfo
from icnfs.state import cut as cuts
from icnfs.state.cut import Row
from icnfs.state.store import Store
from icnfs.volume.pack import Pack

KEPT_MAX: Final = 1 << 16
"""So many rows are sealed once and kept, 300 bytes each."""


class Added:
    """Rows of `packs` and `segments`; of the packs' chunks only the `wanted` ones, None for all.

    To be gone through in a thread, by one at a time.
    """

    def __init__(
        self,
        store: Store,
        packs: Collection[Pack],
        segments: Iterable[SegmentInfo],
        wanted: Container[int] | None = None,
    ) -> None:
        self._store = store
        self._packs = packs
        self._wanted = wanted
        self._segments = sorted(cuts.seal_segment(store, info) for info in segments)
        self._few = sum(map(len, packs)) <= KEPT_MAX
        self._kept: list[Row] | None = None

    def __iter__(self) -> Iterator[Row]:
        """All, by table and key: as a run carries them."""
        return chain(self._locations(), self._segments)

    def to_commit(self) -> Iterator[Row]:
        """All, every segment before the locations that lie in it."""
        return chain(self._segments, self._locations())

    def weight(self) -> int:
        """Bytes that they take in a run, about."""
        locations = sum(map(len, self._packs)) * sum(map(row_size, islice(self._locations(), 1)))
        return locations + sum(map(row_size, self._segments))

    def _locations(self) -> Iterator[Row]:
        if not self._few:
            return self._sealed()
        if self._kept is None:
            self._kept = list(self._sealed())
        return iter(self._kept)

    def _sealed(self) -> Iterator[Row]:
        for version, place in merge(*(pack.ascending() for pack in self._packs)):
            if self._wanted is None or version in self._wanted:
                yield cuts.seal_location(self._store, version, place)


def row_size(row: Row) -> int:
    """Bytes of a row in a run."""
    return run_format.ROW_OVERHEAD + len(row[1]) + len(row[2] or b"")
