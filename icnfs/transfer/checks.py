"""Checking that a provider still holds a share: as a whole, by a few of its leaves, or by its list of leaf hashes.

Outcomes are kept apart, so that nobody is blamed for what nobody knows:

    present    what was looked at is, byte for byte, what was stored
    missing    the provider answers that it has no such object
    altered    it answers, and what it gives is not what was stored: altered, cut short, extended, exchanged
    down       it does not answer, or not in time
    unknown    anything else: it refuses, speaks no sense at all, or is not one that the TOML names

The header and the list of leaf hashes are read anew each time.  That an object has grown at its end harms no read; it
shows in a check of the whole, or of the last leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from icnfs.erasure import hashtree
from icnfs.errors import (
    DamagedError,
    FormatError,
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderLiesError,
)
from icnfs.format import share as share_format
from icnfs.limits import LEAF_SIZE
from icnfs.transfer.lane import Lane
from icnfs.transfer.shares import Segment, Shares

PRESENT: Final = "present"
MISSING: Final = "missing"
ALTERED: Final = "altered"
DOWN: Final = "down"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class Looked:
    """What a check found; `bytes` were read for it, and `detail` says what is wrong, "" where nothing is."""

    outcome: str
    bytes: int
    detail: str = ""


async def check(shares: Shares, segment: Segment, index: int, leaves: Sequence[int] | None, until: float) -> Looked:
    """Check leaves of a share until `until` (a trio time): () for all of it, None for the list of leaf hashes alone.

    FormatError for leaves that the share does not have.
    """
    count = hashtree.leaf_count(segment.info.share_len)
    if index >= segment.info.n or any(leaf >= count for leaf in leaves or ()):
        raise FormatError("a leaf is to be checked that its segment does not have")
    lane = shares.lane(segment.info.shares[index].provider)
    if lane is None:
        return Looked(UNKNOWN, 0, "the TOML does not name its provider")
    looking = _Looking(shares, segment, index, lane)
    found = Looked(DOWN, 0, "no answer in time")
    with trio.move_on_at(until):
        found = await looking.outcome(leaves)
    if found.outcome in (MISSING, ALTERED):
        shares.note(segment, index, "missing" if found.outcome == MISSING else "bad", found.detail)
    elif found.outcome == PRESENT and leaves is not None and not leaves:
        shares.note(segment, index, "mended", "it is whole again")
    return found


class _Looking:
    """One check."""

    def __init__(self, shares: Shares, segment: Segment, index: int, lane: Lane) -> None:
        self._shares = shares
        self._info = segment.info
        self._root = segment.info.shares[index].root
        self._name = segment.names[index]
        self._lane = lane
        self._bytes = 0

    async def outcome(self, leaves: Sequence[int] | None) -> Looked:
        try:
            if leaves is not None and not leaves:
                await self._whole()
            else:
                await self._leaves(sorted(set(leaves or ())))
        except ObjectMissingError as error:
            return Looked(MISSING, self._bytes, error.detail)
        except FormatError as error:
            return Looked(ALTERED, self._bytes, str(error))
        except ProviderLiesError as error:
            return await self._lied(error)
        except ProviderAwayError as error:
            return Looked(DOWN, self._bytes, error.detail)
        except ProviderError as error:
            return Looked(UNKNOWN, self._bytes, error.detail)
        return Looked(PRESENT, self._bytes)

    async def _lied(self, lie: ProviderLiesError) -> Looked:
        """A share that is cut short, or an answer that has nothing to do with shares: who knows its size tells."""
        try:
            await self._lane.size(self._name)
        except ObjectMissingError as error:
            return Looked(MISSING, self._bytes, error.detail)
        except ProviderAwayError as error:
            return Looked(DOWN, self._bytes, error.detail)
        except ProviderError:
            return Looked(UNKNOWN, self._bytes, lie.detail)
        return Looked(ALTERED, self._bytes, lie.detail)

    async def _leaves(self, leaves: Sequence[int]) -> None:
        length = self._info.share_len
        header = await self._get(0, share_format.header_size(length))
        payload_len, listed = share_format.parse_header(header)
        if payload_len != length:
            raise FormatError(f"the share says that it has {payload_len} bytes, not {length}")
        hashtree.verify_leaves(listed, length, self._root)
        for leaf in leaves:
            start = leaf * LEAF_SIZE
            span = share_format.span_for(length, start, min(LEAF_SIZE, length - start))
            data = await self._get(span.file_offset, span.file_length)
            hashtree.verify_data(listed, length, leaf, data)
            if start + LEAF_SIZE >= length:
                await self._ends()

    async def _whole(self) -> None:
        length = self._info.share_len
        await self._ends()
        file = await self._get(0, share_format.file_size(length))
        await self._shares.compute(len(file), partial(_verify, file, length, self._root))

    async def _ends(self) -> None:
        size, due = await self._lane.size(self._name), share_format.file_size(self._info.share_len)
        if size != due:
            raise DamagedError(f"the share has {size} bytes, not {due}")

    async def _get(self, offset: int, length: int) -> bytes:
        data = await self._lane.get(self._name, offset, length)
        self._bytes += len(data)
        return data


def _verify(file: bytes, length: int, root: bytes) -> None:
    share = share_format.parse(file)
    hashtree.verify_leaves(share.leaf_hashes, length, root)
    hashtree.verify_data(share.leaf_hashes, length, 0, share.payload)
