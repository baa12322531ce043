"""What is held for readers that read files in order: stripes of segments, on their way or come.

A stripe is the same range of all k data shares of a segment, whole leaves: reading one takes from k providers at once,
and nothing beside it must be read to verify it.  Which leaves of which segments a file's next chunks lie on is worked
out here, and what has been asked for is asked for once.  Stripes lie side by side, so a chunk may reach over two.

Memory: STRIPES_MAX in all, of which each reader has an equal part.  What came and was read is dropped at once; what is
not read, when its reader is well beyond it or is said to be gone, or when others need the room.  Pure: it knows
ranges, not providers.  What it hands out is unchecked, as what a provider answers is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from icnfs.errors import FormatError
from icnfs.format.records import Location
from icnfs.format.segment import SegmentInfo
from icnfs.limits import LEAF_SIZE, MIB

log = logging.getLogger(__name__)

STRIPES_MAX: Final = 128 * MIB
"""Bytes of stripes, on their way or come: eight segments.  They come in another order than they are read in, and while
one is late the others fill up to here: with half of it all lines stood still for a tenth of a second now and then."""

LEAVES: Final = 9
"""Leaves of each share in one stripe: five such requests fit on a line at once (`transfer.turns`), so that it is full
while one ends and the next begins; with 4-of-6, 2.25 MiB come together."""

MARGIN: Final = MIB
"""What stripes hold beside the chunks that are announced: they end with a leaf of every share."""

PASSED: Final = 4 * MIB
"""Bytes by which a reader may be beyond a stripe that it will still read from: its reads overtake each other."""

DENSE: Final = 2
"""Stripes are asked for where at least one byte in so many is wanted."""

Reader = int


@dataclass(eq=False, slots=True)
class Stripe:
    """`length` bytes from `offset` on of each data share; `data` holds them one after another once they came."""

    segment: SegmentInfo
    offset: int
    length: int
    reader: Reader
    place: int
    """Bytes fetched for the reader before it."""
    wanted: set[tuple[int, int]] = field(default_factory=set)
    """(share, offset) of the chunks announced in it and not taken yet."""
    data: memoryview | None = None
    settled: trio.Event = field(default_factory=trio.Event)
    """Set when it has come, or will not."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """What it is fetched in."""

    @property
    def size(self) -> int:
        return self.length * self.segment.k

    def piece(self, location: Location) -> tuple[int, int]:
        """(start, end) in the share of the part of `location` that lies in it."""
        return max(location.offset, self.offset), min(location.offset + location.length, self.offset + self.length)


class Stripes:
    """All stripes, by the leaves that they hold."""

    def __init__(self) -> None:
        self._leaves: dict[tuple[bytes, int], Stripe] = {}
        self._stripes: dict[Stripe, None] = {}
        self._places: dict[Reader, int] = {}

    @property
    def size(self) -> int:
        """Bytes of all stripes, those on their way included."""
        return sum(stripe.size for stripe in self._stripes)

    def room(self, reader: Reader) -> int:
        """Bytes of chunks that may be announced on a reader's behalf now."""
        readers = {stripe.reader for stripe in self._stripes} | {reader}
        own = sum(stripe.size for stripe in self._stripes if stripe.reader == reader)
        return max(0, min(STRIPES_MAX // len(readers) - own, self._free(reader)) - MARGIN)

    def _free(self, reader: Reader) -> int:
        """Bytes that are not held, or for others and may be dropped."""
        others = sum(one.size for one in self._stripes if one.reader != reader and one.data is not None)
        return STRIPES_MAX - self.size + others

    def want(
        self, reader: Reader, locations: Iterable[Location], segment_of: Callable[[bytes], SegmentInfo | None]
    ) -> list[Stripe]:
        """Stripes that are new, and to be fetched, for these locations; `keep` or `give_up` must follow for each.

        They are as many as there is room for, from the first location on; where a segment holds little of what is
        wanted there are none.
        """
        new: list[Stripe] = []
        for segment, wanted in _by_segment(locations, segment_of):
            for stripe in self._missing(reader, segment, wanted):
                if stripe.size > self._free(reader):
                    break
                new.append(stripe)
                self._add(stripe)
            for location in wanted:
                if self._covered(location):
                    for stripe in self._over(location):
                        stripe.wanted.add((location.share, location.offset))
        return new

    def coming(self, location: Location) -> trio.Event | None:
        """What to wait for until all of `location` is held, or will not be; None too where part of it never was wanted.

        A reader's first chunks come one by one, and the last of them may end in the first stripe.
        """
        for stripe in self._over(location) if self._covered(location) else ():
            if stripe.data is None:
                return stripe.settled
        return None

    def take(self, location: Location) -> bytes | None:
        """The bytes of `location`, if they are held; they count as read."""
        if not self._covered(location):
            return None
        stripes = list(self._over(location))
        parts: list[memoryview] = []
        for stripe in stripes:
            if stripe.data is None:
                return None
            start, end = stripe.piece(location)
            base = location.share * stripe.length - stripe.offset
            parts.append(stripe.data[base + start : base + end])
        taken = b"".join(parts)
        for stripe in stripes:
            stripe.wanted.discard((location.share, location.offset))
            if not stripe.wanted:
                self._drop(stripe)
        self._pass(stripes[0])
        return taken

    def keep(self, stripe: Stripe, data: memoryview) -> None:
        """It has come."""
        if stripe in self._stripes:
            stripe.data = data
        stripe.settled.set()

    def give_up(self, stripe: Stripe) -> None:
        """It has not come, and will not."""
        if stripe.data is None:
            self._drop(stripe)
        stripe.settled.set()

    def forget(self, reader: Reader) -> None:
        """A reader wants no more of what was asked for on its behalf."""
        for stripe in [stripe for stripe in self._stripes if stripe.reader == reader]:
            self._drop(stripe)
            stripe.scope.cancel()
        self._places.pop(reader, None)

    def distrust(self, location: Location) -> None:
        """What is held of it is wrong."""
        for stripe in list(self._over(location)):
            self._drop(stripe)

    def _covered(self, location: Location) -> bool:
        return all((location.segment, leaf) in self._leaves for leaf in _leaves(location))

    def _over(self, location: Location) -> Iterator[Stripe]:
        """The stripes that `location` reaches over, in order."""
        before: Stripe | None = None
        for leaf in _leaves(location):
            stripe = self._leaves.get((location.segment, leaf))
            if stripe is not None and stripe is not before:
                yield stripe
            before = stripe

    def _missing(self, reader: Reader, segment: SegmentInfo, wanted: list[Location]) -> Iterator[Stripe]:
        leaves = sorted({leaf for location in wanted for leaf in _leaves(location)})
        if sum(location.length for location in wanted) * DENSE < len(leaves) * LEAF_SIZE * segment.k:
            return
        new = [leaf for leaf in leaves if (segment.id, leaf) not in self._leaves]
        while new:
            count = next((i for i in range(1, len(new)) if new[i] != new[0] + i or i == LEAVES), len(new))
            offset = new[0] * LEAF_SIZE
            length = min(count * LEAF_SIZE, segment.share_len - offset)
            yield Stripe(segment, offset, length, reader, self._places.get(reader, 0))
            del new[:count]

    def _add(self, stripe: Stripe) -> None:
        for old in [held for held in self._stripes if held.reader != stripe.reader and held.data is not None]:
            if self.size + stripe.size <= STRIPES_MAX:
                break
            self._drop(old)
        self._stripes[stripe] = None
        self._places[stripe.reader] = stripe.place + stripe.size
        for leaf in range(stripe.offset // LEAF_SIZE, -(-(stripe.offset + stripe.length) // LEAF_SIZE)):
            self._leaves[stripe.segment.id, leaf] = stripe

    def _pass(self, read: Stripe) -> None:
        """A reader is at `read`: what it left out before that it does not want."""
        for stripe in [held for held in self._stripes if held.reader == read.reader and held.data is not None]:
            if stripe.place + stripe.size + PASSED < read.place:
                self._drop(stripe)

    def _drop(self, stripe: Stripe) -> None:
        if stripe not in self._stripes:
            return
        del self._stripes[stripe]
        stripe.data = None
        for leaf in range(stripe.offset // LEAF_SIZE, -(-(stripe.offset + stripe.length) // LEAF_SIZE)):
            del self._leaves[stripe.segment.id, leaf]


def _leaves(location: Location) -> range:
    return range(location.offset // LEAF_SIZE, -(-(location.offset + location.length) // LEAF_SIZE))


def _by_segment(
    locations: Iterable[Location], segment_of: Callable[[bytes], SegmentInfo | None]
) -> Iterator[tuple[SegmentInfo, list[Location]]]:
    """The locations that lie where something can be, segment by segment, in the order in which they come first."""
    found: dict[bytes, list[Location]] = {}
    for location in locations:
        found.setdefault(location.segment, []).append(location)
    for id, wanted in found.items():
        try:
            segment = segment_of(id)
        except FormatError as error:
            log.debug("nothing is read ahead in a segment: %s", error)
            continue
        if segment is not None:
            yield (
                segment,
                [one for one in wanted if one.share < segment.k and one.offset + one.length <= segment.share_len],
            )
