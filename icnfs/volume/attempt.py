"""One publish of one cut: chunks, then records, then the head; each durable before the next names it.

Invariants:

1. The ids of what is about to be uploaded, and the head's number, are committed locally before the first upload.
2. A head is put only once every segment it names has at least k shares stored, and only after a survey that found no
   rival.
3. Local state learns of the locations only once the head is durable: until then every chunk stays dirty.
4. Nothing uploaded is ever changed.  Whole segments of chunks that a failed attempt uploaded are kept for the next one,
   for a version's sealed chunk never changes; all else that no head which was sent names is withdrawn, as are they once
   nothing needs them (see `withdraw`).

A small pack of chunks and the run go up at the same time (its roots are computed here, so the run can name it before it
is stored): with the head, two round trips.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from icnfs.errors import IcnfsError, TooFewProvidersError
from icnfs.format import run as run_format
from icnfs.format import segment as segment_format
from icnfs.format.head import Head, RunInfo
from icnfs.format.records import Table
from icnfs.format.segment import ID_SIZE, SegmentInfo, ShareInfo, run_share_len
from icnfs.limits import SEGMENT_SIZE
from icnfs.state import cut as cuts
from icnfs.state import garbage
from icnfs.state.cut import PublishCut, Row
from icnfs.state.store import Store
from icnfs.transfer import bulk
from icnfs.volume import condemned, runs
from icnfs.volume import fence as fences
from icnfs.volume import pack as packs
from icnfs.volume.added import Added, row_size
from icnfs.volume.emptied import may_lack, without
from icnfs.volume.fence import Fence
from icnfs.volume.heads import Heads, Survey
from icnfs.volume.network import Network
from icnfs.volume.repair import Repair
from icnfs.volume.stow import Rotation, Stow
from icnfs.volume.together import together

log = logging.getLogger(__name__)

SURVEY_SECONDS: Final = 2.0
"""A survey older than this when the head is about to be put is made again: the run took long to upload."""

UPLOADS_AT_ONCE: Final = 4
"""Segments in flight, 16 MiB of shared memory each: one filled, one coded, two on their way, so that no line is idle
while one ends and the next begins."""


@dataclass
class Uploads:
    """Segments that failed attempts of this mount stored, to be named by the next head instead of uploaded again."""

    packs: dict[bytes, packs.Pack] = field(default_factory=dict)
    segments: dict[bytes, SegmentInfo] = field(default_factory=dict)
    recorded: dict[bytes, SegmentInfo] = field(default_factory=dict)
    """Those that an attempt recorded before it broke off, of which nobody was told yet."""
    unnamed: dict[bytes, set[tuple[str, str]]] = field(default_factory=dict)
    """Of `segments`, those that no head that was sent names: (provider, object) of what was sent."""

    def lose(self, providers: Iterable[str]) -> None:
        """What they were given is there no more."""
        for provider in providers:
            for kept in (self.segments, self.recorded):
                kept.update({id: without(held, provider) for id, held in kept.items() if may_lack(held, provider)})

    def clear(self) -> None:
        self.unnamed.clear()
        self.packs.clear()
        self.segments.clear()
        self.recorded.clear()


@dataclass
class Progress:
    """Bytes of contents and records: to be uploaded in this attempt, and uploaded so far."""

    total: int = 0
    done: int = 0


class Attempt:
    """One publish; `run` it once."""

    def __init__(
        self,
        store: Store,
        network: Network,
        heads: Heads,
        fence: Fence,
        uploads: Uploads,
        repair: Repair,
        progress: Progress,
        rotation: Rotation,
    ) -> None:
        self._store = store
        self._network = network
        self._heads = heads
        self._fence = fence
        self._uploads = uploads
        self._repair = repair
        self._progress = progress
        self._rotation = rotation
        self._stow = Stow(network, repair, rotation, self._tried)
        self._run_id, self._second_run_id = secrets.token_bytes(ID_SIZE), secrets.token_bytes(ID_SIZE)
        self._wanted: set[int] | None = None
        """Versions that the cut needs; None where nothing else was ever stored."""
        self._sent: dict[bytes, set[tuple[str, str]]] = {}
        """By segment, (provider, object) of the shares that were sent, whatever came of it."""
        self.needless: set[tuple[str, str]] = set()
        """Of these, and of what earlier attempts sent, what no head that was sent names, and none will: to be withdrawn
        once `run` has returned or failed."""
        self._head_sent = False

    async def run(
        self, cut: PublishCut, base_runs: Sequence[RunInfo], keyring: bytes, spare: trio.Nursery
    ) -> tuple[Head, list[SegmentInfo]]:
        """Publish `cut`; the head, now durable and committed locally, and the segments of chunks that it added.

        Raises `FencedError`; `TooFewProvidersError` where too few shares or heads could be stored, and then nothing is
        lost and nothing has changed; `LocalDiskError`.
        """
        try:
            return await self._run(cut, base_runs, keyring, spare)
        except IcnfsError:
            self._keep_whole()
            raise

    async def _run(
        self, cut: PublishCut, base_runs: Sequence[RunInfo], keyring: bytes, spare: trio.Nursery
    ) -> tuple[Head, list[SegmentInfo]]:
        planned = await trio.to_thread.run_sync(self._plan, cut)
        needed = [pack.id for pack in planned]
        own = await self._fence.begin((*needed, *self._uploads.segments, self._run_id, self._second_run_id))
        if len(planned) == 1 and self._network.k * planned[0].share_len <= packs.SMALL:
            rows, run, survey = await self._put_small(planned[0], cut, base_runs)
        else:
            await self._put_packs(planned, cut)
            rows, run, survey = await self._put_run_and_look(cut, base_runs)
        if trio.current_time() - survey.time > SURVEY_SECONDS:
            survey = await self._heads.survey(self._fence.number)
        await self._fence.pass_by(survey)
        self._fence.doubt_lacking(survey)
        if base_runs:
            self._fence.require_base(survey)
        head = self._head(cut, runs.join(base_runs, run), keyring, own)
        self._head_sent = True
        self._uploads.unnamed.clear()
        await self._put_head(head, spare)
        documents = {fences.HEAD: fences.encode_base(head)}
        documents[fences.ACKNOWLEDGED] = fences.encode_acknowledged(self._network.acknowledged)
        keep = runs.remembered(head.runs)
        gone = self._gone(base_runs, head)
        with trio.CancelScope(shield=True):  # what local state has recorded, this mount has to know
            await cuts.finish_publish(
                self._store, cut, rows.to_commit(), documents, keep, partial(garbage.condemn, gone)
            )
        self._fence.published(head)
        added = [*self._uploads.recorded.values(), *self._uploads.segments.values()]
        self._forgo(self._uploads.segments.keys() | {part.id for part in head.segments()})
        self._uploads.clear()
        return head, added

    def _gone(self, base_runs: Sequence[RunInfo], head: Head) -> list[tuple[bytes, Callable[[int], bytes]]]:
        """What `head` makes needless, to be deleted after a grace: the head before it, and runs that it takes in.

        Those of runs that a snapshot keeps, or kept, have records, and collection looks after them.
        """
        kept = {part.id for part in head.segments()}
        parts = [
            part
            for run in base_runs
            for part in run.segments()
            if part.id not in kept and self._store.segment(part.id) is None
        ]
        needless = condemned.of_segments(self._network, parts)
        if self._fence.base is not None:
            needless.insert(0, condemned.of_head(self._network, self._fence.base))
        now = time.time_ns()
        return [(condemned.make_key(now), condemned.writer_of(document)) for document in needless]

    async def _put_small(
        self, pack: packs.Pack, cut: PublishCut, base_runs: Sequence[RunInfo]
    ) -> tuple[Added, RunInfo, Survey]:
        """The one small pack, the run and the survey, all at once.

        The run says where the pack will lie.  Where that comes differently, another run says how it came.
        """
        fd, foretold = await self._foretell(pack, cut)
        done: list[tuple[Added, RunInfo, Survey]] = []

        async def rest() -> None:
            done.append(await self._put_run_and_look(cut, base_runs, pack, foretold))

        with bulk.closing(fd):
            await together([lambda: self._put_pack(pack, fd, foretold), rest])
        rows, run, survey = done[0]
        if self._uploads.segments[pack.id] != foretold:
            self._run_id = self._second_run_id
            return await self._put_run_and_look(cut, base_runs)
        return rows, run, survey

    async def _put_run_and_look(
        self,
        cut: PublishCut,
        base_runs: Sequence[RunInfo],
        pack: packs.Pack | None = None,
        foretold: SegmentInfo | None = None,
    ) -> tuple[Added, RunInfo, Survey]:
        survey: list[Survey] = []
        run: list[RunInfo] = []
        uploaded = self._uploads.segments
        uploaded.update({id: self._repair.arrived(segment) for id, segment in uploaded.items()})
        segments = dict(uploaded)
        stored = dict(self._uploads.packs)
        if pack is not None and foretold is not None:
            segments[pack.id] = foretold
            stored[pack.id] = pack
        rows = Added(self._store, stored.values(), segments.values(), self._wanted)

        async def look() -> None:
            survey.append(await self._heads.survey(self._fence.number))

        async def put() -> None:
            run.append(await self._put_run(cut, base_runs, rows))

        await together([look, put])
        return rows, run[0], survey[0]

    # --- chunks -------------------------------------------------------------------------------------------------------

    def _plan(self, cut: PublishCut) -> list[packs.Pack]:
        """In a thread: packs for what is dirty at the cut and not stored yet; forget stored ones no longer needed."""
        kept = self._uploads
        if kept.packs:
            self._wanted = wanted = {version for version, _ in cut.unlocated()}
            kept.packs = {id: pack for id, pack in kept.packs.items() if not wanted.isdisjoint(pack.versions)}
            for id, info in list(kept.segments.items()):
                if id not in kept.packs:
                    del kept.segments[id]
                    self.needless |= kept.unnamed.pop(id, set())
                    if cut.reader.raw(Table.SEGMENTS, id) is not None:
                        kept.recorded[id] = info
        stored = {version for pack in kept.packs.values() for version in pack.versions}
        planned = packs.plan((chunk for chunk in cut.unlocated() if chunk[0] not in stored), self._network.k)
        self._progress.total += sum(pack.size for pack in planned)
        return planned

    def _tried(self, segment: bytes, provider: str, name: str) -> None:
        self._sent.setdefault(segment, set()).add((provider, name))

    def _forgo(self, named: Collection[bytes]) -> None:
        """What was sent of segments that are not `named` is needed no more."""
        for id, sent in self._sent.items():
            if id not in named:
                self.needless |= sent

    def _keep_whole(self) -> None:
        """After a failure: the next attempt is to name whole segments of chunks.  Once a head was sent, all is kept."""
        if not self._head_sent:
            whole = self._uploads.segments
            self._forgo(whole.keys())
            self._uploads.unnamed.update((id, sent) for id, sent in self._sent.items() if id in whole)

    async def _put_packs(self, planned: Iterable[packs.Pack], cut: PublishCut) -> None:
        filling = trio.Lock()

        async def put(pack: packs.Pack) -> None:
            async with filling:
                fd = await trio.to_thread.run_sync(packs.fill, pack, self._network.k, cut.sealed_chunk)
            with bulk.closing(fd):
                await self._put_pack(pack, fd)

        await together((partial(put, pack) for pack in planned), UPLOADS_AT_ONCE)

    async def _put_pack(self, pack: packs.Pack, fd: int, foretold: SegmentInfo | None = None) -> None:
        if foretold is None:
            size = self._network.k * pack.share_len
            meant = self._stow.choose(pack.id, size, pack.share_len, self._rotation.chunks)
            info = await self._stow.put(meant, fd)
        else:
            info = await self._stow.put_foretold(foretold, fd)
        self._uploads.segments[info.id] = info
        self._uploads.packs[info.id] = pack
        self._progress.done += pack.size

    async def _foretell(self, pack: packs.Pack, cut: PublishCut) -> tuple[int, SegmentInfo]:
        """A small pack's memfd, and what its segment will be where every share gets stored."""
        k, n = self._network.k, self._network.n

        def work() -> tuple[int, tuple[bytes, ...]]:
            fd = packs.fill(pack, k, cut.sealed_chunk)
            return fd, packs.roots(fd, k, n, pack.share_len)

        fd, roots = await trio.to_thread.run_sync(work)
        chosen, away = self._network.place(next(self._rotation.chunks)), self._network.away()
        shares = tuple(ShareInfo(name, root, name not in away) for name, root in zip(chosen, roots, strict=True))
        return fd, SegmentInfo(pack.id, k, n, pack.share_len, k * pack.share_len, shares)

    # --- records ------------------------------------------------------------------------------------------------------

    async def _put_run(self, cut: PublishCut, base_runs: Sequence[RunInfo], added: Added) -> RunInfo:
        """Upload the run: the cut's rows and those that this publish adds to them."""
        fresh = await trio.to_thread.run_sync(_weigh, cut, base_runs, added)
        since = runs.reach(base_runs, fresh, self._store.dirty_floor)
        counted = _Counted(_merge(cut.all_rows() if since == 0 else cut.dirty_rows(since), added))
        parts: list[SegmentInfo] = []
        features = await trio.to_thread.run_sync(cut.features, since)
        frames = run_format.write_frames(counted, self._network.seal_run, self._run_id, features)
        ahead = b""
        while ahead or not parts:
            fd, size, ahead = await trio.to_thread.run_sync(_next_part, frames, ahead, self._network.k)
            with bulk.closing(fd):
                parts.append(await self._put_part(len(parts), fd, size))
        size = sum(part.size for part in parts)
        encoded = tuple(segment_format.encode(part) for part in parts)
        return RunInfo(self._run_id, since, cut.generation, counted.count, size, encoded)

    async def _put_part(self, index: int, fd: int, size: int) -> SegmentInfo:
        share_len = run_share_len(size, self._network.k)
        self._progress.total += size
        meant = self._stow.choose(part_id(self._run_id, index), size, share_len, self._rotation.records)
        info = await self._stow.put(meant, fd)
        self._progress.done += size
        return info

    # --- the head -----------------------------------------------------------------------------------------------------

    def _head(self, cut: PublishCut, joined: tuple[RunInfo, ...], keyring: bytes, own: fences.Own) -> Head:
        network, counters = self._network, cut.counters
        return Head(
            volume=self._store.volume,
            epoch=own.epoch,
            sequence=own.sequence,
            writer=own.writer,
            previous=self._fence.number,
            time_ns=cut.time_ns,
            cut=cut.batch,
            generation=cut.generation,
            chunk_size=self._store.chunk_size,
            k=network.k,
            n=network.n,
            safe=network.safe,
            runs=joined,
            counters=(
                counters.files,
                counters.bytes_used,
                counters.next_ino,
                counters.next_version,
                counters.ino_limit,
                counters.version_limit,
            ),
            keyring=keyring,
            features=cut.features(joined[-1].since) | self._features_of(joined[:-1]),
        )

    def _features_of(self, older: Sequence[RunInfo]) -> int:
        """What reading the runs that are kept of the last head requires."""
        return self._fence.base.features if older and self._fence.base is not None else 0

    async def _put_head(self, head: Head, spare: trio.Nursery) -> None:
        stored = await self._heads.store(head, spare)
        await self._fence.check_names()
        if self._network.owners(stored.providers) < self._network.durable:
            raise TooFewProvidersError(
                f"the head could be stored with {self._network.owners(stored.providers)} owners and needs "
                f"{self._network.durable}: {reasons(stored.errors)}"
            )


def reasons(errors: dict[str, IcnfsError]) -> str:
    """The errors of several providers in one line."""
    return "; ".join(str(errors[name]) for name in sorted(errors))


def part_id(run: bytes, index: int) -> bytes:
    """The segment id of a run's part: the run's own id is random, and is all that has to be logged."""
    return hashlib.blake2b(run + index.to_bytes(4, "big"), digest_size=ID_SIZE, person=b"icnfs-part").digest()


class _Counted:
    """Passes rows on and counts them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            yield row


def _merge(rows: Iterator[Row], added: Iterable[Row]) -> Iterator[Row]:
    """Both, by table and key; an added row stands for one of the cut's with the same key."""
    rest = iter(added)
    ahead = next(rest, None)
    for row in rows:
        place = row[:2]
        while ahead is not None and ahead[:2] < place:
            yield ahead
            ahead = next(rest, None)
        if ahead is None or ahead[:2] != place:
            yield row
    if ahead is not None:
        yield ahead
    yield from rest


def _weigh(cut: PublishCut, base_runs: Sequence[RunInfo], added: Added) -> int:
    """In a thread: bytes that are new since the last run, about; past ABSORB_MAX it does not matter how many."""
    weight = added.weight()
    if not base_runs:
        return weight
    for row in cut.dirty_rows(base_runs[-1].upto):
        weight += row_size(row)
        if weight > runs.ABSORB_MAX:
            break
    return weight


def _next_part(frames: Iterator[bytes], ahead: bytes, k: int) -> tuple[int, int, bytes]:
    """In a thread: (memfd, bytes, the frame that did not fit) of the next part, which begins with `ahead`."""
    pieces, size = ([ahead], len(ahead)) if ahead else ([], 0)
    overflow = b""
    for frame in frames:
        if pieces and size + len(frame) > SEGMENT_SIZE:
            overflow = frame
            break
        pieces.append(frame)
        size += len(frame)
    pieces.append(secrets.token_bytes(k * run_share_len(size, k) - size))
    return bulk.holding(pieces, "run"), size, overflow
