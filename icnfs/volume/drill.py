"""`drill`: shows, on the live volume, that it would survive the loss of some of its providers, and what it would cost.

It does what `recover` would do if they were gone, with the same code: finds key slots and head at the others, loads
checkpoint and runs, and then reads files, all or a sample, opening every chunk as a reader does.  It stops short of
taking over: no head is put and no epoch taken, transfer is given nothing but the providers that are left, and whatever
would write is refused (`remains`).  A mount goes on publishing meanwhile; the drill is of the head that it found.

All of it happens in a scratch folder beside the local state, which is removed at the end, or by the next drill after a
crash.  What is not read is judged by its records (`losses`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Final

import trio

from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.crypto.slots import Slot
from icnfs.erasure.hashtree import leaf_count
from icnfs.errors import IcnfsError, SecretError, TooFewProvidersError, UsageError
from icnfs.format.head import Head
from icnfs.format.segment import SegmentInfo
from icnfs.state.store import Store
from icnfs.transfer.checks import PRESENT
from icnfs.transfer.engine import bare_errors
from icnfs.transfer.messages import Limits
from icnfs.volume import setting_up
from icnfs.volume.keyring import Secrets, unlock
from icnfs.volume.load import load
from icnfs.volume.losses import Holdings, Standing, draw, files_in, lost_segments, paths_of
from icnfs.volume.network import Network, Starter, Transfer, start_transfer
from icnfs.volume.read_back import Progress, ReadBack
from icnfs.volume.recover import find, slots_of, unlocked
from icnfs.volume.remains import Memo, Remains
from icnfs.volume.sample import Sample
from icnfs.volume.scratch import check_room, scratch
from icnfs.volume.source import ProviderSource
from icnfs.volume.status import survives
from icnfs.volume.together import together

log = logging.getLogger(__name__)

SETS_MAX: Final = 2000
"""Sets of providers that one drill tries, a few milliseconds each."""

LOOK_SECONDS: Final = 60.0
LOOKS_AT_ONCE: Final = 8
"""Bounds of looking at shares: how long one may take, and how many there are at a time."""

TOLD_SECONDS: Final = 0.5
"""Within this transfer has told what it read last: it does so four times a second."""


@dataclass(frozen=True)
class Plan:
    """What to try: without which providers, and without any so many of the others; files to read, None for all."""

    without: frozenset[str] = frozenset()
    any_of: int = 0
    sample: int | None = 100
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One set of providers without which the volume was judged; `failure` is why it could not even be found, or ""."""

    without: tuple[str, ...]
    failure: str
    lost_segments: int
    bare_segments: int
    spare_owners: int


@dataclass(frozen=True)
class LostFile:
    """A file that could not be had whole; `path` is empty where no name leads to it."""

    path: str
    why: str


@dataclass
class Report:
    """What a drill found.  Times are in seconds, sizes in bytes; estimates are None where nothing was measured.

    `without` are the providers taken to be lost, with `trials` the worst set of them; `away` are others that did not
    answer.  Where `failure` is not "", that set is one without which the volume could not be found, and what follows
    the head is not known.  `bare_segments` have no share to spare beyond one owner's.  `bad_shares` counts those that
    were found missing or altered by reading.
    """

    without: tuple[str, ...]
    seed: int
    volume: str = ""
    epoch: int = 0
    sequence: int = 0
    time_ns: int = 0
    files: int = 0
    bytes_used: int = 0
    trials: tuple[Trial, ...] = ()
    failure: str = ""
    away: dict[str, str] = field(default_factory=dict)
    segments: int = 0
    lost_segments: int = 0
    bare_segments: int = 0
    lost_files: tuple[LostFile, ...] = ()
    bad_shares: dict[str, int] = field(default_factory=dict)
    looks: int = 0
    """Shares looked at, some of every provider that is left."""
    wrong_shares: tuple[str, ...] = ()
    """Those of them that are not what their records say, and how; the volume repairs such when it finds them."""
    find_seconds: float = 0.0
    load_seconds: float = 0.0
    record_bytes: int = 0
    read_files: int = 0
    read_bytes: int = 0
    read_seconds: float = 0.0
    whole_read_seconds: float | None = None
    """Estimate: reading all files back, at the rate of those that were read, class by class of size."""
    whole_recovery_seconds: float | None = None
    """Finding and loading as measured, and `whole_read_seconds`."""
    fetched_bytes: int = 0

    @property
    def is_lossless(self) -> bool:
        """Whether nothing would be lost."""
        bad = any(trial.failure or trial.lost_segments for trial in self.trials)
        return not (bad or self.failure or self.lost_segments or self.lost_files)


async def drill(
    config: VolumeConfig,
    state_dir: Path,
    offered: Secrets,
    plan: Plan,
    *,
    progress: Progress = lambda _done, _all: None,
    start: Starter = start_transfer,
) -> Report:
    """Try `plan`.  What would be lost is reported, not raised.

    Raises what `recover` does where the volume cannot be found without the providers of `plan.without` (with
    `any_of`: where it cannot be found as it is), `UsageError` for too many sets, `MountedError` where another drill of
    this volume is under way, `LocalDiskError`.
    """
    left = [name for name in config.providers if name not in plan.without]
    if plan.any_of > len(left):
        raise UsageError(f"--any {plan.any_of}: there are only {len(left)} providers to choose from; choose fewer")
    if (sets := comb(len(left), plan.any_of)) > SETS_MAX:
        raise UsageError(
            f"{plan.any_of} of {len(left)} providers are {sets} sets, and {SETS_MAX} at most can be tried; choose "
            "fewer with --any"
        )
    place = state_dir.with_name(state_dir.name + ".drill")
    with scratch(place, "another drill of this volume is under way; wait for it") as folder, bare_errors():
        if not plan.any_of:
            return await _try(config, folder, offered, plan, plan.without, progress, start)
        trials, report = await _judge_all(config, folder, offered, plan, progress, start)
        worst = max(trials, key=lambda trial: _badness(trial, plan.seed))
        if not worst.failure:
            fetched = report.fetched_bytes
            report = await _try(config, folder, offered, plan, frozenset(worst.without), progress, start)
            report.fetched_bytes += fetched
        report.without, report.failure, report.trials = worst.without, worst.failure, tuple(trials)
        return report


def _badness(trial: Trial, seed: int) -> tuple[object, ...]:
    """The worst is the greatest; of equals, the seed chooses."""
    chance = draw(seed, " ".join(trial.without).encode())
    return bool(trial.failure), trial.lost_segments, -trial.spare_owners, trial.bare_segments, chance


# --- recovering -------------------------------------------------------------------------------------------------------


@dataclass
class _Recovered:
    """A published state, recovered from what is left."""

    config: VolumeConfig
    inner: Transfer
    master: MasterKey
    slots: Sequence[tuple[str, Slot]]
    network: Network
    head: Head
    store: Store
    report: Report

    def owners(self, without: frozenset[str]) -> dict[str, str]:
        """The providers that are left beside `without`, with their owners."""
        return {name: facts.owner for name, facts in self.network.facts.items() if name not in without}


@asynccontextmanager
async def _recovered(
    config: VolumeConfig,
    half: Path,
    offered: Secrets,
    without: frozenset[str],
    seed: int,
    progress: Progress,
    start: Starter,
) -> AsyncIterator[_Recovered]:
    """Recover into `half`, and remove that again."""
    specs = [spec for spec in config.specs() if spec.name not in without]
    async with start(specs, Limits(config.upload, config.download)) as inner:
        begun = trio.current_time()
        transfer = Remains(inner, without)
        slots = await slots_of(config, transfer)
        master = await unlocked(config, transfer, slots, offered)
        network, _, head, missing = await find(config, transfer, master)
        report = _begin(head, without, seed)
        report.away = {name: str(error) for name, error in missing.items() if name not in without}
        report.find_seconds = trio.current_time() - begun
        setting_up.start_over(half)
        check_room(half, report.record_bytes, config.reserve)
        try:
            await load(network, half, head, {}, progress)
            report.load_seconds = trio.current_time() - begun - report.find_seconds
            store = Store.open(half, master)
            try:
                store.keeps_cold = False
                async with trio.open_nursery() as nursery:
                    store.source = ProviderSource(network, store.segment, nursery)
                    yield _Recovered(config, inner, master, slots, network, head, store, report)
                    nursery.cancel_scope.cancel()
                await trio.sleep(TOLD_SECONDS)
                report.fetched_bytes = sum(state.bytes_down for state in inner.states().values())
                report.bad_shares = {n: s.bad_shares for n, s in inner.states().items() if s.bad_shares}
            finally:
                with trio.CancelScope(shield=True):
                    await store.close()
        finally:
            shutil.rmtree(half, ignore_errors=True)


def _begin(head: Head, without: frozenset[str], seed: int) -> Report:
    return Report(
        tuple(sorted(without)),
        seed,
        head.volume.hex(),
        head.epoch,
        head.sequence,
        head.time_ns,
        head.counters[0],
        head.counters[1],
        record_bytes=sum(run.size for run in head.runs),
    )


# --- all sets of so many providers ------------------------------------------------------------------------------------


async def _judge_all(
    config: VolumeConfig, half: Path, offered: Secrets, plan: Plan, progress: Progress, start: Starter
) -> tuple[list[Trial], Report]:
    """Judge every set: found by the same code from what the others hold, which is asked for once; then by records."""
    trials: list[Trial] = []
    async with _recovered(config, half, offered, plan.without, plan.seed, progress, start) as got:
        openers = await trio.to_thread.run_sync(_openers, got.slots, offered, got.master)
        holdings = Holdings()
        parts = list(got.head.segments())
        await holdings.load(got.store.reader, parts, plan.seed)
        memo: Memo = {}
        for some in combinations(got.owners(plan.without), plan.any_of):
            without = plan.without.union(some)
            owners = got.owners(without)
            failure = await _failure(got, without, owners, openers, parts, memo)
            standing = holdings.judge(owners)
            trials.append(
                Trial(tuple(sorted(without)), failure, standing.lost, standing.bare, standing.spare),
            )
    return trials, got.report


def _openers(slots: Sequence[tuple[str, Slot]], offered: Secrets, master: MasterKey) -> set[str]:
    """In a thread: the providers that hold a slot which the secret opens, and the volume's."""
    openers: set[str] = set()
    for provider, slot in slots:
        if provider not in openers:
            try:
                if unlock([slot], offered) == master:
                    openers.add(provider)
            except IcnfsError as error:
                log.debug("provider %s: a key slot: %s", provider, error)
    return openers


async def _failure(
    got: _Recovered,
    without: frozenset[str],
    owners: dict[str, str],
    openers: set[str],
    parts: Sequence[SegmentInfo],
    memo: Memo,
) -> str:
    """Why the volume could not be found and loaded without these providers; "" where it could."""
    try:
        if not openers & owners.keys():
            raise SecretError("no provider that is left holds a key slot that the secret opens")
        _, _, head, _ = await find(got.config, Remains(got.inner, without, memo), got.master)
        if any(survives(part, owners) < 0 for part in (parts if head.number == got.head.number else head.segments())):
            raise TooFewProvidersError(f"too few shares are left of the records of head {head.epoch}-{head.sequence}")
    except IcnfsError as error:
        return str(error)
    return ""


# --- one set ----------------------------------------------------------------------------------------------------------


async def _try(
    config: VolumeConfig,
    half: Path,
    offered: Secrets,
    plan: Plan,
    without: frozenset[str],
    progress: Progress,
    start: Starter,
) -> Report:
    """Recover without these providers, read, and say what was found."""
    async with _recovered(config, half, offered, without, plan.seed, progress, start) as got:
        owners = got.owners(without)
        holdings = Holdings()
        await holdings.load(got.store.reader, got.head.segments(), plan.seed)
        standing = holdings.judge(owners)
        sample = Sample(plan.sample, plan.seed)
        back = ReadBack(got.store, sample, config.read_deadline, progress)
        await back.run()
        lost = back.lost
        if standing.lost:
            segments = await lost_segments(got.store.reader, owners, holdings.unreadable)
            lost = {**lost, **await files_in(got.store, segments)}
        await _witness(got, holdings, owners)
        report = got.report
        report.read_files, report.read_bytes, report.read_seconds = back.files, back.bytes, back.seconds
        report.whole_read_seconds = sample.all_seconds()
        await _conclude(got, standing, lost)
    return got.report


async def _conclude(got: _Recovered, standing: Standing, lost: dict[int, str]) -> None:
    report = got.report
    report.segments, report.lost_segments, report.bare_segments = standing.segments, standing.lost, standing.bare
    paths = await paths_of(got.store.reader, lost) if lost else {}
    named = (LostFile(paths.get(ino, ""), why) for ino, why in lost.items())
    report.lost_files = tuple(sorted(named, key=lambda file: file.path))
    if report.whole_read_seconds is not None:
        report.whole_recovery_seconds = report.find_seconds + report.load_seconds + report.whole_read_seconds


# --- every provider's shares ------------------------------------------------------------------------------------------


async def _witness(got: _Recovered, holdings: Holdings, owners: dict[str, str]) -> None:
    """Look whether some shares of every provider that is left are what their segments' records say."""
    report = got.report
    wrong: list[str] = []

    async def look(provider: str, segment: SegmentInfo) -> None:
        index = next(i for i, share in enumerate(segment.shares) if share.stored and share.provider == provider)
        leaf = draw(report.seed, segment.id) % leaf_count(segment.share_len)
        names = got.network.names_of(segment)
        looked = await got.network.transfer.check(segment, names, index, [leaf], deadline=LOOK_SECONDS)
        report.looks += 1
        if looked.outcome != PRESENT:
            detail = f": {looked.detail}" if looked.detail else ""
            wrong.append(f"provider {provider}: share {index} of segment {segment.id.hex()}: {looked.outcome}{detail}")

    jobs = [partial(look, name, segment) for name in owners for segment in holdings.witnesses.get(name, ())]
    await together(jobs, LOOKS_AT_ONCE)
    report.wrong_shares = tuple(sorted(wrong))
