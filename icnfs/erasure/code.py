"""Reed-Solomon coding of a segment: any k of its n shares give back the others.

The code is systematic (shares 0 to k-1 are the data) and works byte column by byte column: the same range of any k
shares gives the same range of the others.  Promises: the result of `rebuild` is right where its input is right; it
cannot tell whether it is (see `hashtree`: verify first).  It does not know what a segment or a provider is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import zfec

from icnfs.limits import KIB, SHARES_MAX

if TYPE_CHECKING:
    from typing_extensions import Buffer

COLUMN: Final = 256 * KIB
"""Bytes of each share coded at a time, whole leaves: bounds what zfec allocates beside the result.  From 16 KiB to 1
MiB the size makes no difference: 4-of-6 codes 670 MB/s of data and rebuilds two of its shares at 550 MB/s."""


class Code:
    """A k-of-n code, 1 <= k <= n <= SHARES_MAX (ValueError).  zfec lets go of the interpreter lock while it codes."""

    def __init__(self, k: int, n: int) -> None:
        if not 1 <= k <= n <= SHARES_MAX:
            raise ValueError(f"no code has {k} of {n} shares: 1 <= k <= n <= {SHARES_MAX}")
        self.k = k
        self.n = n
        self._encoder = zfec.Encoder(k, n)
        self._decoder = zfec.Decoder(k, n)

    def __repr__(self) -> str:
        return f"Code({self.k}, {self.n})"

    def encode(self, shares: Sequence[Buffer]) -> list[bytes]:
        """The n - k parity shares of the k data shares (all of one length), in the order of their index."""
        if len(shares) != self.k:
            raise ValueError(f"{len(shares)} data shares given to a code of {self.k}")
        return self._parity(_views(shares), tuple(range(self.k, self.n)))

    def rebuild(self, shares: Mapping[int, Buffer], want: Sequence[int]) -> dict[int, bytes]:
        """The wanted shares, from at least k others of one length, by index; more than k are not looked at.

        Every share may be the same range of the whole.  ValueError where there are fewer than k, the lengths differ
        or an index is out of range.
        """
        if any(not 0 <= index < self.n for index in (*shares, *want)):
            raise ValueError(f"a share's index lies outside 0 to {self.n - 1}")
        if len(shares) < self.k:
            raise ValueError(f"{len(shares)} shares cannot rebuild what {self.k} are needed for")
        parity = tuple(index for index in want if index >= self.k and index not in shares)
        needed = range(self.k) if parity else [index for index in want if index not in shares]
        data = self._data(shares, needed)
        made = {index: bytes(share) for index, share in {**shares, **data}.items() if index in want}
        made.update(zip(parity, self._parity([data[index] for index in needed], parity), strict=True))
        return made

    def _data(self, shares: Mapping[int, Buffer], needed: Sequence[int]) -> dict[int, memoryview]:
        """The needed data shares: those at hand as they are, the others decoded."""
        have = tuple(sorted(shares)[: self.k])  # the lowest: data shares need no decoding
        views = _views([shares[index] for index in have])
        missing = [index for index in needed if index not in shares]
        data = {index: view for index, view in zip(have, views, strict=True) if index in needed}
        if missing:
            pieces = [self._decoder.decode(column, have) for column in _columns(views)]
            data |= {index: memoryview(b"".join([piece[index] for piece in pieces])) for index in missing}
        return data

    def _parity(self, data: Sequence[memoryview], indexes: tuple[int, ...]) -> list[bytes]:
        if not indexes:
            return []
        pieces = [self._encoder.encode(column, indexes) for column in _columns(data)]
        return [b"".join(rows) for rows in zip(*pieces, strict=True)] if pieces else [b""] * len(indexes)


def _views(shares: Sequence[Buffer]) -> list[memoryview]:
    views = [memoryview(share).cast("B") for share in shares]
    if len({len(view) for view in views}) > 1:
        raise ValueError("shares of one segment have one length, or are the same range of it")
    return views


def _columns(views: Sequence[memoryview]) -> list[tuple[memoryview, ...]]:
    """The same piece of every share, piece after piece; views only, nothing is copied."""
    return [tuple(view[at : at + COLUMN] for view in views) for at in range(0, len(views[0]), COLUMN)]
