"""Compaction: what still lives in segments that are mostly dead is packed anew, so that these can go.

    sparse segments --> live chunks, verified --> new segment, stored and safe --> locations changed --> a head --> ...

The old segment then holds nothing that lives, and goes the way of every needless one (`collect`): condemned, a head
without it, the grace.  Promises:

1. A chunk's location changes only once its new segment is safe; recovery from a head that knows nothing of it finds the
   old one, which no machine deletes before a later head and the grace.
2. Chunks move as ciphertext, vouched for by their shares' hash trees; neither the dirty data nor the local copies have
   any part in it.  So versions that only snapshots keep move like all others.
3. A crash leaves nothing behind: a new segment is condemned before it is uploaded, and acquitted when it is named.

What is moved, and what that costs.  Where u of a segment lives, u is moved to free 1 - u of it: u / (1 - u) for each
byte freed.  Overwriting at random for ever frees, in the long run, what it writes.  Uniform overwriting lets all
segments decay alike, from 1 to the u at which they are moved, so that the providers hold ln(1/u) / (1 - u) times what
lives: 1.3 for u = 0.58, which moves 1.37 bytes for each one written; 1.9 for u = 0.23, which moves 0.3.  No rule has
both small for ever.  The rule here is: while all segments together are above TARGET times what lives, those below half
live, the emptiest first; where that frees less than it moves (a few chunks that would fill no more of their shares
than before), nothing.  So moving never costs more than it frees, a volume comes to rest, and holds no more than twice
what lives then, but for shares that are badly filled; and while less than TARGET - 1 of it has been overwritten since
it was written, nothing moves at all.  Skewed overwriting is cheaper: what is written together mostly dies together, and
what survives is packed apart from what is new, in order of age.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from icnfs.errors import IcnfsError
from icnfs.format.records import Location
from icnfs.format.segment import SegmentInfo
from icnfs.limits import CHUNK_SIZE, GIB, LEAF_SIZE, MIB, SEGMENT_SIZE
from icnfs.state import cut as cuts
from icnfs.state import garbage
from icnfs.state.garbage import Census
from icnfs.state.store import Store
from icnfs.transfer import bulk
from icnfs.volume import condemned
from icnfs.volume import pack as packs
from icnfs.volume.condemned import Condemned
from icnfs.volume.network import Network
from icnfs.volume.pack import Pack
from icnfs.volume.publish import Publisher
from icnfs.volume.repair import Repair
from icnfs.volume.stow import Stow
from icnfs.volume.together import together

log = logging.getLogger(__name__)

TARGET: Final = 1.23
"""Bytes held for each one that lives, above which something is moved.  What waits out its grace comes on top.  In a
week of Zipf overwriting of 5 % a day, 1.271 were held at worst, the grace's included, for 11 % more traffic; with 1.2
here, 1.285 for 31 % (`python -m tests.simulation.week zipf`)."""

ROUND_BYTES: Final = GIB
ROUND_CHUNKS: Final = 1 << 16
"""What one round moves at most; 200 bytes are kept of each chunk meanwhile."""

READ_SECONDS: Final = 60.0
READS_AT_ONCE: Final = 4
READ_MOST: Final = MIB
"""Bytes of one read.  With two packs being filled, compaction takes some 60 MB at most."""

FAILURES: Final = 8
"""Segments that may prove unreadable in one round."""

Places = list[tuple[int, Location]]
"""(version, where it lies)."""


@dataclass(frozen=True)
class Tally:
    """Bytes of the data shares of all segments in which something lives, and of the sealed chunks that do."""

    held: int
    live: int


def tally(census: Census) -> Tally:
    return Tally(sum(size for id, size in census.size.items() if census.live[id]), census.live.total())


def choose(census: Census, k: int) -> list[bytes]:
    """The segments to be emptied now, the emptiest first; none where that would not pay."""
    now = tally(census)
    surplus = now.held - TARGET * now.live
    sparse = [id for id, size in census.size.items() if 0 < 2 * census.live[id] < size]
    sparse.sort(key=lambda id: (census.live[id] / census.size[id], id))
    chosen: list[bytes] = []
    freed = moved = chunks = 0
    for id in sparse:
        if freed - moved >= surplus or moved >= ROUND_BYTES or chunks >= ROUND_CHUNKS:
            break
        chosen.append(id)
        freed += census.size[id]
        moved += census.live[id]
        chunks += census.held[id] - census.dead[id]
    filling = (k - 1) * CHUNK_SIZE * (moved // SEGMENT_SIZE + 1)  # a pack's longest share may be a chunk beyond others
    return chosen if freed - moved - filling >= moved else []


@dataclass(frozen=True)
class Stretch:
    """A range of one share that holds chunks, and perhaps a little between them."""

    share: int
    offset: int
    end: int
    places: Places = field(default_factory=list)


def stretches(places: Places) -> Iterator[Stretch]:
    """Ranges that hold these chunks of one segment: those less than a leaf apart are read together."""
    held: Stretch | None = None
    for version, location in sorted(places, key=lambda place: (place[1].share, place[1].offset)):
        end = location.offset + location.length
        if (
            held is not None
            and held.share == location.share
            and location.offset < held.end + LEAF_SIZE
            and end - held.offset <= READ_MOST
        ):
            held = Stretch(held.share, held.offset, max(end, held.end), [*held.places, (version, location)])
            continue
        if held is not None:
            yield held
        held = Stretch(location.share, location.offset, end, [(version, location)])
    if held is not None:
        yield held


class Compactor:
    """One open volume's; used by its collector alone."""

    def __init__(
        self,
        store: Store,
        network: Network,
        publisher: Publisher,
        repair: Repair,
        find: Callable[[bytes], SegmentInfo | None],
    ) -> None:
        """`find` gives the present description of a segment."""
        self._store = store
        self._network = network
        self._publisher = publisher
        self._repair = repair
        self._find = find
        self._stow = Stow(network, repair, publisher.rotation)
        self.read = 0
        """Bytes of shares read by this mount, without what lies between them and the ends of leaves."""
        self.stored = 0
        """Bytes of shares that it stored."""

    async def run(self, plan: Mapping[bytes, Places]) -> None:
        """Move these chunks out of their segments, as far as nothing else is more urgent; raises what stands in the
        way of storing."""
        pending: dict[int, tuple[Location, bytes]] = {}
        failures = 0
        for id in sorted(plan, key=lambda id: min(version for version, _ in plan[id])):
            segment = self._find(id)
            if segment is None:
                continue
            if not self._may() or failures >= FAILURES:
                return
            try:
                await self._read(segment, plan[id], pending)
            except IcnfsError as error:
                failures += 1
                log.warning("segment %s is not compacted: %s", id.hex(), error)
            if sum(len(sealed) for _, sealed in pending.values()) >= SEGMENT_SIZE:
                await self._put(pending, all_of_them=False)
        if pending and self._may():
            await self._put(pending, all_of_them=True)

    def _may(self) -> bool:
        """Whether the volume is at peace: requests, publishing and repair come first."""
        store, network = self._store, self._network
        amiss = network.vacant or network.doubted or network.gone_back or not network.lost().isdisjoint(network.homes)
        troubled = amiss or self._repair.unsafe
        return not (store.read_only or store.congested or self._publisher.failure or troubled)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, segment: SegmentInfo, places: Places, into: dict[int, tuple[Location, bytes]]) -> None:
        names = self._network.names_of(segment)
        got: dict[int, tuple[Location, bytes]] = {}

        async def read(stretch: Stretch) -> None:
            length = stretch.end - stretch.offset
            data = await self._network.transfer.fetch(
                segment, names, stretch.share, stretch.offset, length, verified=True, deadline=READ_SECONDS
            )
            self.read += length
            for version, location in stretch.places:
                start = location.offset - stretch.offset
                got[version] = location, data[start : start + location.length]

        await together((partial(read, stretch) for stretch in stretches(places)), READS_AT_ONCE)
        into.update(got)

    # --- storing ------------------------------------------------------------------------------------------------------

    async def _put(self, pending: dict[int, tuple[Location, bytes]], *, all_of_them: bool) -> None:
        """Pack what was read, oldest first, and keep for later what fills no pack unless it is `all_of_them`."""
        made = packs.plan(((version, len(pending[version][1])) for version in sorted(pending)), self._network.k)
        for pack in made if all_of_them else made[:-1]:
            await self._store_pack(pack, pending)
            for version in pack.versions:
                del pending[version]

    async def _store_pack(self, pack: Pack, pending: Mapping[int, tuple[Location, bytes]]) -> None:
        k = self._network.k
        meant = self._stow.choose(pack.id, k * pack.share_len, pack.share_len, self._publisher.rotation.chunks)
        key = await self._condemn(meant)
        emptied = self._publisher.emptied.times.copy()
        fd = await trio.to_thread.run_sync(packs.fill, pack, k, lambda version: pending[version][1])
        with bulk.closing(fd):
            info = await self._stow.put(meant, fd, all_shares=True)
        self.stored += info.n * info.share_len
        async with self._publisher.standstill:
            if self._publisher.emptied.since(emptied) or not self._network.is_safe_now(info):
                await self._condemn(info)
                log.info("compaction waits: a new segment is not safe")
                return
            moves = [(version, pending[version][0], place) for version, place in pack.places]
            try:
                await cuts.move_chunks(self._store, info, moves)
                await self._store.task(partial(garbage.settle, key, None))
            finally:  # see `Publisher._mend`
                self._repair.note([info])
        log.info("%d chunks, %d bytes, were moved out of segments that are mostly dead", len(pack), pack.size)

    async def _condemn(self, info: SegmentInfo) -> bytes:
        """Have the shares of a segment deleted after the grace unless something names it; the note's key."""
        key = condemned.make_key(time.time_ns())
        document = condemned.writer_of(Condemned(0, info.id, condemned.shares_of(self._network, info)))
        await self._store.task(partial(garbage.condemn, [(key, document)]))
        return key


def gathered(living: Iterator[tuple[int, Location] | None], into: dict[bytes, Places]) -> Iterator[None]:
    """What a census finds living, by segment."""
    for found in living:
        if found is not None:
            into.setdefault(found[1].segment, []).append(found)
        yield
