"""Collection: what no tree needs any more is deleted at the providers, slowly.

    dead versions --> needless segments --> condemned --> a head without them, and a grace --> deleted
    a head that was followed, runs that a later one took in, old places of shares that moved  ----^
    sparse segments --> emptied (see `compact`) --> needless

Promises:

1. Nothing is deleted that the last head names, or that any head named which was the last one within the grace.
2. Before each deletion the heads are listed: a machine that was overtaken deletes nothing.
3. What local state names is not deleted: a share that came back to its old place stays.
4. What a snapshot keeps stays, until a head is published that no longer has the snapshot.
5. A crash anywhere loses nothing and leaves at most orphans.
6. An older state that was safe does not go before what replaced it is: while the volume is not safe, nothing is deleted
   that was condemned since it last was, but at providers that refuse to store more, where it may take the room.

What is noted as condemned is local.  A recovery brings no notes of dead versions either: which are dead is found once
by looking at all of them; they count as having died then, so snapshots keep more of them than they need.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from functools import partial
from itertools import islice
from typing import Final

import trio

from icnfs.errors import FormatError, IcnfsError, ObjectMissingError, ProviderRefusedError
from icnfs.format.records import Table
from icnfs.format.segment import SegmentInfo
from icnfs.state import cut as cuts
from icnfs.state import garbage, marks
from icnfs.state.garbage import RELEASE_STEP, Census, Unnamed
from icnfs.state.marks import UNMARK_STEP, Count
from icnfs.state.store import Store
from icnfs.volume import condemned, milestones
from icnfs.volume import fence as fences
from icnfs.volume.compact import Compactor, Places, Tally, choose, gathered, tally
from icnfs.volume.condemned import Condemned
from icnfs.volume.fence import Fence
from icnfs.volume.heads import Heads
from icnfs.volume.network import Network
from icnfs.volume.publish import Publisher
from icnfs.volume.repair import Repair
from icnfs.volume.together import together

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 600.0
"""Between looks for what can go."""

STEP: Final = 1000
PAUSE_SECONDS: Final = 0.005
"""Rows looked at in one go, about 5 ms, and the pause after it: requests come first."""

SEGMENTS_AT_ONCE: Final = 1024
"""Needless segments that one round condemns, and notes that it carries out."""

HELD_AT_ONCE: Final = 16
"""Notes carried out while publisher and repair stand still."""

REFUSED_SECONDS: Final = 6 * 3600.0
"""A provider that refused to delete is asked again after so long: its credentials or a retention are why, and last."""

DELETE_SECONDS: Final = 15.0
DELETES_AT_ONCE: Final = 16

MILESTONES: Final = "milestones"
"""The setting that says since when heads have held which generation."""

MARKED: Final = "marked"
"""The setting that says that dead versions are noted from the first on."""


class Collector:
    """One open volume's; `still` keeps repair from moving shares."""

    def __init__(
        self,
        store: Store,
        network: Network,
        heads: Heads,
        fence: Fence,
        publisher: Publisher,
        repair: Repair,
        still: trio.Lock,
        find: Callable[[bytes], SegmentInfo | None],
        grace: float,
    ) -> None:
        """`find` gives the present description of a segment; `grace` is in seconds."""
        self._store = store
        self._network = network
        self._heads = heads
        self._fence = fence
        self._publisher = publisher
        self._repair = repair
        self._still = still
        self._find = find
        self._grace = grace
        self.compactor = Compactor(store, network, publisher, repair, store.segment)
        self.tally: Tally | None = None
        """What the segments of contents held when the last round looked."""
        self._spared = -1
        """`Committer.spared` when marks were last counted."""
        self.deleted = 0
        """Objects deleted by this mount."""
        self.refusals: dict[str, str] = {}
        """By provider that last refused to delete, why."""
        self._ask_again: dict[str, float] = {}
        self._safe = 0, 0
        """When the volume was last seen to be safe (Unix time, ns), and the generation of its head then."""

    async def run(self) -> None:
        """A round now and then, until the volume is fenced."""
        while self._store.fenced is None:
            await trio.sleep(ROUND_SECONDS)
            await self.round()

    async def round(self) -> None:
        """Condemn what is needless by now, and delete what has been condemned for long enough."""
        if self._store.read_only or self._fence.base is None:
            return
        try:
            await self._mark()
            await self._unmark()
            sparse = await self._condemn()
            await self._carry_out(await self._passed())
            await self.compactor.run(sparse)
        except IcnfsError as error:
            log.warning("collection waits: %s", error)

    # --- condemning ---------------------------------------------------------------------------------------------------

    async def _mark(self) -> None:
        """Note the dead versions that a recovery loaded, once."""
        if self._store.get_setting(MARKED) is not None:
            return
        cut = await self._quiet_cut()
        try:
            unnamed = Unnamed(cut)
            await walk(unnamed.steps())
        finally:
            cut.close()
        for at in range(0, len(unnamed.found), RELEASE_STEP):
            await self._store.task(partial(garbage.note_dead, unnamed.found[at : at + RELEASE_STEP]))
        await fences.keep(self._store, MARKED, b"1")

    async def _unmark(self) -> None:
        """Find out what of that which clones shared is shared no more, if anything may have changed."""
        store, spared = self._store, self._store.committer.spared
        if store.committer.keeping or spared == self._spared or not store.reader.count(Table.SHARED):
            return
        cut = await cuts.begin_cut(store)
        try:
            if store.committer.keeping:  # since it was asked for
                return
            count = Count(cut)
            await walk(count.steps())
        finally:
            cut.close()
        findings = count.findings()
        while some := list(islice(findings, UNMARK_STEP)):
            await store.task(partial(marks.unmark, some, cut.generation))
        self._spared = spared

    async def _quiet_cut(self) -> cuts.PublishCut:
        """A cut taken while nothing is published: all that a segment holds is in it."""
        async with self._publisher.standstill:
            return await cuts.begin_cut(self._store)

    async def _condemn(self) -> dict[bytes, Places]:
        """Condemn needless segments; what is to be moved out of sparse ones."""
        base = self._fence.base
        assert base is not None
        cut = await self._quiet_cut()
        if cut.has_changed(base.generation, Table.SNAPSHOTS):
            cut.close()
            return {}
        held: defaultdict[bytes, list[int]] = defaultdict(list)
        sparse: dict[bytes, Places] = {}
        try:
            census = Census(cut, base.generation, self._publisher.parts())
            await walk(census.steps())
            needless = census.needless()[:SEGMENTS_AT_ONCE]
            await walk(_sorted_out(census.versions(needless), held))
            self.tally = tally(census)
            await walk(gathered(census.living(choose(census, self._network.k)), sparse))
        finally:
            cut.close()
        for id in needless:
            await self._release(id, held[id], base.generation)
        if needless:
            log.info("%d segments hold nothing that lives and are condemned", len(needless))
        return sparse

    async def _release(self, id: bytes, versions: list[int], upto: int) -> None:
        """Forget a segment and what lay in it, with a note of what is to be deleted."""
        segment = self._store.segment(id)
        if segment is None:
            return
        for at in range(0, len(versions), RELEASE_STEP):
            if not await self._store.task(partial(garbage.release, id, versions[at : at + RELEASE_STEP], upto)):
                return
        async with self._still, self._publisher.standstill:
            segment = self._store.segment(id)
            if segment is None:
                return
            document = condemned.writer_of(Condemned(0, id, condemned.shares_of(self._network, segment)))
            key = condemned.make_key(time.time_ns())
            self._store.touch()
            try:
                await self._store.task(partial(garbage.forget_segment, id, key, document))
            finally:  # see `Publisher._mend`
                self._repair.drop([id])

    # --- carrying out -------------------------------------------------------------------------------------------------

    async def _passed(self) -> int:
        """The generation up to which what was condemned has waited for long enough; keeps a milestone."""
        base = self._fence.base
        assert base is not None
        kept = milestones.decode(self._store.get_setting(MILESTONES))
        now, grace = time.time_ns(), int(self._grace * 1e9)
        if kept != (extended := milestones.extended(kept, now, grace, base.generation)):
            await fences.keep(self._store, MILESTONES, milestones.encode(extended))
        return milestones.passed(extended, now, grace)

    async def _carry_out(self, upto: int) -> None:
        self._note_safe()
        due = self._due(upto)
        while some := list(islice(due, HELD_AT_ONCE)):
            async with self._still, self._publisher.standstill:
                if self._publisher.owes_head:
                    return
                await self._fence.pass_by(await self._heads.survey(self._fence.number))
                kept = self._kept()
                for key, note in some:
                    await self._delete(key, note, frozenset() if self._was_safe(key, note) else kept)

    def _due(self, upto: int) -> Iterator[tuple[bytes, Condemned]]:
        """What was condemned up to a generation, the oldest first, but for what only providers that are down hold."""
        until = time.time_ns() - int(self._grace * 1e9)
        lost, kept = self._passed_by(), self._kept()
        found: list[tuple[bytes, Condemned]] = []
        for key, _ in self._store.reader.rows(Table.CONDEMNED):
            if condemned.time_of(key) > until or len(found) >= SEGMENTS_AT_ONCE:
                break
            try:
                plain = self._store.reader.get(Table.CONDEMNED, key)
                note = condemned.decode(plain or b"")
            except FormatError as error:
                log.warning("%s", error)
                continue
            there = [provider for provider, _ in note.objects if provider in self._network.facts]
            passed_by = lost if self._was_safe(key, note) else lost | kept
            if note.generation <= upto and (not there or not passed_by.issuperset(there)):
                found.append((key, note))
        return iter(found)

    async def _delete(self, key: bytes, note: Condemned, kept: Set[str]) -> None:
        """Delete what nothing names; what a provider that is away holds is left for later."""
        named = self._named(note)
        left: list[tuple[str, str]] = []

        async def delete(provider: str, name: str) -> None:
            if provider in kept or provider in self._passed_by():
                left.append((provider, name))
                return
            self._network.forgo(provider, name)
            try:
                await self._network.transfer.delete_object(provider, name, deadline=DELETE_SECONDS)
                self.deleted += 1
                self.refusals.pop(provider, None)
            except ObjectMissingError:
                pass
            except ProviderRefusedError as error:
                self._refused(error)
                left.append((provider, name))
            except IcnfsError as error:
                log.debug("%s", error)
                left.append((provider, name))

        wanted = [
            (provider, name)
            for provider, name in note.objects
            if provider in self._network.facts and (provider, name) not in named
        ]
        await together((partial(delete, provider, name) for provider, name in wanted), DELETES_AT_ONCE)
        rest = condemned.encode(Condemned(note.generation, note.segment, tuple(sorted(left)))) if left else None
        await self._store.task(partial(garbage.settle, key, rest))

    def _passed_by(self) -> set[str]:
        """Providers that are not asked to delete anything now."""
        now = trio.current_time()
        return {*self._network.lost(), *(name for name, due in self._ask_again.items() if now < due)}

    def _kept(self) -> Set[str]:
        """Providers at which what was condemned since the volume was safe is kept, for it is not safe now.

        Contents of which too few shares are left become safe by nothing that is kept.
        """
        given_up = self._repair.hopeless - self._publisher.parts()
        if self._repair.unsafe_but(given_up) or self._repair.unsure:
            return self._network.facts.keys() - self._network.refusing().keys()
        return frozenset()

    def _note_safe(self) -> None:
        """Remember this moment where the volume is safe."""
        if self._fence.base is not None and not self._publisher.owes_head and not self._kept():
            self._safe = time.time_ns(), self._fence.base.generation

    def _was_safe(self, key: bytes, note: Condemned) -> bool:
        """Whether the volume was safe without it."""
        moment, generation = self._safe
        return condemned.time_of(key) <= moment and note.generation <= generation

    def _refused(self, error: ProviderRefusedError) -> None:
        """Nothing more is asked of it for a while: what it keeps waits, noted."""
        self._ask_again[error.provider] = trio.current_time() + REFUSED_SECONDS
        if self.refusals.get(error.provider) != error.detail:
            log.warning("provider %s refuses to delete, and keeps what is not needed: %s", error.provider, error.detail)
        self.refusals[error.provider] = error.detail

    def _named(self, note: Condemned) -> set[tuple[str, str]]:
        """Objects that local state or the last head names."""
        base = self._fence.base
        if not note.segment:
            return set(condemned.of_head(self._network, base).objects) if base is not None else set()
        segment = self._find(note.segment)
        return set(condemned.shares_of(self._network, segment)) if segment is not None else set()


def _sorted_out(versions: Iterator[tuple[bytes, int] | None], into: dict[bytes, list[int]]) -> Iterator[None]:
    """Versions by segment."""
    for found in versions:
        if found is not None:
            into[found[0]].append(found[1])
        yield


async def walk(steps: Iterator[object]) -> None:
    """Take all steps, in a thread, with pauses."""

    def some() -> bool:
        return sum(1 for _ in islice(steps, STEP)) == STEP

    more = True
    while more:
        more = await trio.to_thread.run_sync(some)
        await trio.sleep(PAUSE_SECONDS)
