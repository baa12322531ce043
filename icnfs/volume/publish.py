"""The publisher: when the tree is published, and what becomes of it when that fails.

It publishes every so many seconds if anything changed, at so many bytes of dirty data, when the local disk is full of
it, and when asked.  While the mount is busy it takes more bytes, a quarter of what may be dirty: a publish wants the
processors and the disk that people wait for, and what they overwrite or delete meanwhile needs none.  One publish runs
at a time.  A failed one loses nothing: it is tried again, less and less often up to once a minute, and at once when
somebody asks.  A fenced volume is never published again from here.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Final

import msgspec
import trio

from icnfs.errors import FencedError, IcnfsError, ProviderError, RolledBackError
from icnfs.format import segment as segment_format
from icnfs.format.head import Head, RunInfo
from icnfs.format.segment import SegmentInfo
from icnfs.state import cut as cuts
from icnfs.state import garbage
from icnfs.state.apply import Writer
from icnfs.state.cut import PublishCut
from icnfs.state.store import Store
from icnfs.volume import condemned
from icnfs.volume.attempt import Attempt, Progress, Uploads
from icnfs.volume.emptied import but_for, may_lack, without
from icnfs.volume.fence import Fence
from icnfs.volume.heads import Heads
from icnfs.volume.keyring import Keyring
from icnfs.volume.network import Network
from icnfs.volume.places import Places
from icnfs.volume.repair import Repair
from icnfs.volume.stow import Rotation
from icnfs.volume.withdraw import withdraw

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25
"""How often the publisher looks whether there is a reason to publish."""

RETRY_FIRST: Final = 1.0
RETRY_MOST: Final = 60.0
"""Seconds until a failed publish is tried again: doubled each time, between these."""

DOUBLED_MOST: Final = 16
"""By then it is RETRY_MOST; a thousand doublings, a day without providers, are more than a float can hold."""

FOLD_SECONDS: Final = 5.0
"""What folding patches may take before a cut; those not folded by then are published as patches."""

TURN_SECONDS: Final = 0.001
"""Folding lets requests have their turn after so long."""

ASK_SECONDS: Final = 5.0
"""A `sync` with nothing to publish asks all providers, for so long, whether they still have the last head."""

LOST_STEP: Final = 1024
"""Segments whose shares are noted as lost in one commit."""


Change = Callable[[SegmentInfo], SegmentInfo | None]
"""What is to become of a segment's description; None for nothing."""


class Publisher:
    """Publishes one open volume.  Start `run` in a nursery; `publish` may be called from any task."""

    def __init__(
        self,
        store: Store,
        network: Network,
        heads: Heads,
        fence: Fence,
        places: Places,
        keyring: Keyring,
        repair: Repair,
        spare: trio.Nursery,
        *,
        seconds: float,
        dirty_limit: int,
        busy_limit: int = 0,
    ) -> None:
        self._store = store
        self._network = network
        self._heads = heads
        self._fence = fence
        self._places = places
        self._keyring = keyring
        self._repair = repair
        self._spare = spare
        self._seconds = seconds
        self._dirty_limit = dirty_limit
        self._busy_limit = max(dirty_limit, busy_limit)
        self.uploads = Uploads()
        self.busy: Callable[[], bool] = lambda: False
        """Whether the mount is busy; whoever serves requests says so.  Asked at each look."""
        self.standstill = trio.Lock()
        """Held while something is published or noted; whoever holds it finds nothing under way."""
        self.rotation = Rotation()
        base = fence.base
        self._runs: tuple[RunInfo, ...] = base.runs if base is not None else ()
        self._news = False
        """Whether the next head is wanted although no record changed: for mended runs, or a place without any head."""
        self.owes_head = False
        """Whether shares do not lie where the last head says: but for those that came late where they belong."""
        self.emptied = repair.emptied
        self._dirty_before = 0
        """Of the last look: what was written since may be the beginning of more."""
        self._idle_batch = -1
        self._last = trio.current_time()
        self._cut_ns = 0
        self._failures = 0
        self.batch = base.cut if base is not None else -1
        """The last batch that the providers hold."""
        self.sure = -1
        """The last batch that whoever takes over goes on from: see `confirm`."""
        self.time_ns = base.time_ns if base is not None else 0
        """When that cut was taken (Unix time); 0 before the first publish."""
        self.failure: IcnfsError | None = None
        """Why the last publish failed, None when it did not."""
        self.progress = Progress()
        """Of the publish under way, or the last one."""
        store.advance = lambda: (self.progress.done, self.batch)

    @property
    def head(self) -> Head | None:
        """The last head that was published."""
        return self._fence.base

    # --- when ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Publish whenever there is reason to, until cancelled or fenced."""
        while self._store.fenced is None:
            await trio.sleep(LOOK_SECONDS)
            if not self._is_due():
                continue
            try:
                await self.publish()
            except FencedError:
                return
            except IcnfsError as error:
                log.warning("publishing failed and will be tried again: %s", error)

    def _is_due(self) -> bool:
        waited = trio.current_time() - self._last
        store, before = self._store, self._dirty_before
        dirty = self._dirty_before = store.dirty_bytes
        busy = self.busy()
        if self._failures:
            return waited >= min(RETRY_FIRST * 2.0 ** min(self._failures - 1, DOUBLED_MOST), RETRY_MOST)
        if waited >= self._seconds:
            return not self.is_idle
        if store.full:
            return bool(dirty)
        return dirty >= self._busy_limit or (min(before, dirty) >= self._dirty_limit and not busy)

    @property
    def is_idle(self) -> bool:
        """Whether nothing was accepted since the last cut that was published, or had nothing to publish."""
        store = self._store
        return not (store.committed != self._idle_batch or store.batch.touched or self._must())

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self) -> int:
        """Publish what is committed by now; the last batch that the providers then hold.

        Raises `FencedError` (the store is read-only from then on), `TooFewProvidersError`, `LocalDiskError`, and what
        else stands in the way; everything stays as it was and is tried again later.
        """
        async with self.standstill:
            await self._try()
            return self.batch

    async def confirm(self) -> None:
        """Make sure that the last head is not beside one of somebody who took over while it was put.

        A recovery puts its head and then looks for others, as is done here: whichever comes second sees the first.
        Raises as `publish` does.
        """
        batch = self.batch
        if self.sure < batch:
            await self.look_out()
            self.sure = max(self.sure, batch)

    async def look_out(self) -> None:
        """Look at the heads; raises `FencedError` where somebody has taken over."""
        with self._unfenced():
            await self._fence.pass_by(await self._heads.survey(self._fence.number))

    async def ask_for_base(self) -> None:
        """Doubt who answers in time and lacks the last head, where nothing was published, so that nobody was asked."""
        base = self._fence.base
        survey = await self._heads.survey(self._fence.number, ASK_SECONDS)
        if self._fence.base is base:  # else it was published meanwhile
            self._fence.doubt_lacking(survey)

    async def publish_and(self, then: Callable[[Head, int], Awaitable[None]]) -> None:
        """Publish, and do `then` while nothing else is published or noted.

        It is given the head that stands for what is committed by now, and the Unix time (ns) of that.  Raises as
        `publish` does.
        """
        async with self.standstill:
            await self._try()
            assert self._fence.base is not None
            await then(self._fence.base, self._cut_ns)

    async def _try(self) -> None:
        try:
            with self._unfenced():
                await self._publish()
        except FencedError:
            raise
        except RolledBackError as error:
            self._start_anew(error)
            raise
        except IcnfsError as error:
            self.failure = error
            self._failures += 1
            raise
        else:
            self.failure = None
            self._failures = 0
        finally:
            self._last = trio.current_time()

    @contextmanager
    def _unfenced(self) -> Iterator[None]:
        """Raise where the volume is fenced, and see to it where that is found out now."""
        if self._store.fenced is not None:
            raise self._store.fenced
        try:
            yield
        except FencedError as error:
            log.error("%s", error)
            self._store.fence(error)
            self.failure = error
            raise

    async def _publish(self) -> None:
        self.progress = Progress()
        await self._settle()
        before = self.emptied.times.copy()
        await self._fold()
        cut = await cuts.begin_cut(self._store)
        self._cut_ns = cut.time_ns
        try:
            if not self._must() and not await trio.to_thread.run_sync(self._has_changed, cut):
                self._idle_batch = self.batch = cut.batch
                self.owes_head = False
                return
            attempt = Attempt(
                self._store,
                self._network,
                self._heads,
                self._fence,
                self.uploads,
                self._repair,
                self.progress,
                self.rotation,
            )
            try:
                head, added = await attempt.run(cut, self._runs, self._keyring.encode(), self._spare)
            finally:
                self.uploads.lose(moved := self.emptied.since(before))
                if attempt.needless:
                    self._spare.start_soon(withdraw, self._network, self.look_out, attempt.needless)
        finally:
            cut.close()
        self._idle_batch = cut.batch
        self.owes_head = False
        self._published(head, added)
        for provider in moved:  # what was stored before that lies elsewhere
            await self._mend([without(s, provider) for s in (*added, *self._parts()) if may_lack(s, provider)])

    def _must(self) -> bool:
        """Whether to publish although no record changed."""
        base = self._fence.base
        return base is None or self._news or base.keyring != self._keyring.encode()

    def _has_changed(self, cut: PublishCut) -> bool:
        base = self._fence.base
        return base is None or cut.has_changed(base.generation)

    def _published(self, head: Head, added: Sequence[SegmentInfo]) -> None:
        old = {part.id for part in self._parts()}
        parts = head.segments()
        self._runs, self._news = head.runs, False
        self._repair.note([*added, *parts])
        self._drop_parts(old - {part.id for part in parts})
        self.batch, self.time_ns = head.cut, head.time_ns
        log.info("published batch %d as epoch %d, sequence %d", head.cut, head.epoch, head.sequence)

    def _start_anew(self, error: RolledBackError) -> None:
        """Providers went back behind the base, or lost it: the next publish leans on nothing that they should have."""
        log.error("%s", error)
        self._drop_parts(part.id for part in self._parts())
        self._runs, self._news = (), True
        self.failure = error
        self._failures += 1

    def _drop_parts(self, ids: Iterable[bytes]) -> None:
        """No head names these parts of runs any more; those that a snapshot keeps have records."""
        self._repair.drop([id for id in ids if self._store.segment(id) is None])

    async def _fold(self) -> None:
        """Fold what patches there are, as far as that goes quickly and there is room."""
        store = self._store
        deadline = trio.current_time() + FOLD_SECONDS
        turn = 0.0
        for ino, index in store.contents.patched():
            now = trio.current_time()
            if store.read_only or store.full or store.failure is not None or now >= deadline:
                return
            if now >= turn:
                await trio.lowlevel.checkpoint()
                turn = trio.current_time() + TURN_SECONDS
            if not store.contents.is_patched(ino, index):
                continue
            try:
                if store.congested:
                    await store.wait_room(growing=False)
                await store.contents.fold(ino, index, deadline)
            except IcnfsError as error:
                log.debug("a chunk is published with its patches: %s", error)

    # --- places -------------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Take free places, give and take back key slots, and see what became of the base; raises as `publish` does."""
        await self._network.wake()
        await self._places.visit_all()
        base = self._fence.base
        with self._unfenced():
            survey = await self._heads.survey(self._fence.number)
            await self._fence.pass_by(survey)
        left = set(self._network.homes) - self._fence.without_base(survey)  # too few for a recovery to be sure of one?
        self._news |= self._fence.base is base and self._network.owners(left) < self._network.durable
        try:
            if self._runs and self._fence.base is base:
                self._fence.require_base(survey)
        except RolledBackError as error:
            self._start_anew(error)
        if self._owes:
            async with self.standstill:
                with self._unfenced():
                    await self._settle()

    @property
    def _owes(self) -> bool:
        return bool(self._network.vacant or self._network.moved & self._network.taken) or self._places.owes

    async def _settle(self) -> None:
        """Places and key slots change only after the heads were looked at: see `places`."""
        await self._network.wake()
        await self._places.visit_all()
        if not self._owes:
            return
        survey = await self._heads.survey(self._fence.number)
        await self._fence.pass_by(survey)
        seen = self._network.moved & self._network.taken & (survey.listed.keys() - survey.unread)
        self.uploads.lose(seen)
        for provider in seen:  # it may be an older state of what it was
            if provider in self._fence.without_base(survey):
                await self._note_lost(provider)
            self._network.moved.discard(provider)
        for provider in self._network.vacant:
            if provider not in self._network.noted:
                await self._note_lost(provider)
            if provider not in self._network.vacant:  # it is another place meanwhile
                continue
            self._network.noted.add(provider)
            self._network.moved.discard(provider)
            if not self.emptied.may_take(provider):
                continue
            try:
                await self._places.take(provider)
                self.emptied.taken(provider)
            except ProviderError as error:
                log.info("an empty place is left for later: %s", error)
            self._news = True
        await self._places.deliver_all()

    async def _note_lost(self, provider: str) -> None:
        """What `provider` was given is gone and to be stored again: noted durably before its place is taken."""
        self._repair.lose([provider])
        await self._mend([without(part, provider) for part in self._parts() if may_lack(part, provider)])
        self.uploads.lose([provider])
        cut = await cuts.begin_cut(self._store)
        try:
            held = (segment for segment in cuts.segments_at(cut) if may_lack(segment, provider))
            while some := await trio.to_thread.run_sync(lambda: list(islice(held, LOST_STEP))):
                await self._mend([without(segment, provider) for segment in some])
        finally:
            cut.close()
        self._news = True

    # --- repair -------------------------------------------------------------------------------------------------------

    async def mend(self, changes: Mapping[bytes, Change], emptied: Counter[str] | None = None) -> list[SegmentInfo]:
        """Note what `changes` make of the present descriptions of segments, in records or in the next head; those.

        It is published when that is due.  With `emptied.times`, as it was before shares were stored: none is noted at a
        place that was found empty since, for it may have been stored there before.
        """
        if not changes:
            return []
        async with self.standstill:
            gone = self.emptied.since(emptied) if emptied is not None else ()
            parts: list[SegmentInfo] = []
            for id, change in changes.items():
                now = self._store.segment(id) or self.part(id)
                changed = change(now) if now is not None else None
                if now is not None and changed is not None and gone:
                    changed = but_for(gone, now, changed)
                if changed is not None and changed != now:
                    parts.append(changed)
            if parts:
                await self._mend(parts)
            return parts

    async def _mend(self, parts: Sequence[SegmentInfo]) -> None:
        names = {part.id: part for part in self._parts()}
        records = [part for part in parts if self._store.segment(part.id) is not None]
        in_runs = [part for part in parts if part.id in names]
        before = {part.id: names.get(part.id) or self._store.segment(part.id) or part for part in parts}
        await self._condemn_old_places(parts, before)
        note = partial(cuts.put_segments, records)
        if records:
            self._store.touch()
        self.owes_head |= not all(part.bears_out(before[part.id]) for part in parts)
        try:
            if in_runs:
                await self._mend_runs(in_runs, note)
            elif records:
                await self._store.task(note)
        finally:  # whoever waits may give up; what the committer was given is done all the same
            self._repair.note([*records, *in_runs])

    async def _condemn_old_places(self, parts: Sequence[SegmentInfo], before: Mapping[bytes, SegmentInfo]) -> None:
        """Note what the shares that moved have left behind, before it is known where they are now."""
        left = [note for part in parts for note in condemned.of_moves(self._network, before[part.id], part)]
        if left:
            now = time.time_ns()
            rows = [(condemned.make_key(now), condemned.writer_of(document)) for document in left]
            await self._store.task(partial(garbage.condemn, rows))

    def stored(self) -> list[SegmentInfo]:
        """What providers hold for this machine that no record names: parts of runs, and what attempts that came to no
        head have stored for the next one."""
        base = self._fence.base.segments() if self._fence.base is not None else ()
        return [*self._parts(), *base, *self.uploads.segments.values(), *self.uploads.recorded.values()]

    def part(self, id: bytes) -> SegmentInfo | None:
        """The part of a run that has this id."""
        return next((part for part in self._parts() if part.id == id), None)

    def _parts(self) -> list[SegmentInfo]:
        return [part for run in self._runs for part in run.segments()]

    def parts(self) -> set[bytes]:
        """The ids of all parts of the runs that the last head names."""
        return {part.id for part in self._parts()}

    async def _mend_runs(self, parts: Sequence[SegmentInfo], note: Callable[[Writer, int], None]) -> None:
        """Replace parts of runs; they are kept, for a crash, with the head that names them.

        One that a snapshot keeps has a record too, and `note` changes both in one commit.
        """
        mended = {part.id: segment_format.encode(part) for part in parts}
        self._runs = tuple(
            msgspec.structs.replace(
                run,
                parts=tuple(mended.get(info.id, part) for info, part in zip(run.segments(), run.parts, strict=True)),
            )
            for run in self._runs
        )
        self._news = True
        await self._fence.keep_runs(self._runs, note)
