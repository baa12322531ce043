"""`recover`: a machine that has only the TOML and a secret gets the volume back from its providers.

It finds the key slots, unlocks, lists the heads and takes the newest that is real, loads its checkpoint and runs into a
local state of its own, and takes over: a head with the same tree, the next epoch and a writer of its own, so the
machine that wrote the volume before stops.  Contents stay at the providers until they are read.

What it cannot know: where all providers that answer withhold the newest head, an older one looks newest.  So it says
which it found, and refuses one below `at_least`.

A person may want an older state, where what was published last is the work of an intruder: the newest one within a
`Bound` is taken then, as far as providers still have it, and what came after it is abandoned, never deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

import msgspec
import trio

from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.crypto.slots import SLOT_MAX, Slot, decode_slot
from icnfs.errors import (
    DamagedError,
    ForeignProviderError,
    FormatError,
    IcnfsError,
    NewerFormatError,
    NoVolumeError,
    RolledBackError,
    TooFewProvidersError,
)
from icnfs.format.head import Head
from icnfs.format.segment import SegmentInfo
from icnfs.transfer.messages import Limits
from icnfs.volume import fence as fences
from icnfs.volume import keyring as keyrings
from icnfs.volume import keys, setting_up
from icnfs.volume.attempt import reasons
from icnfs.volume.fence import Claim, Own
from icnfs.volume.heads import Heads, Survey
from icnfs.volume.keyring import Keyring, Secrets, opened
from icnfs.volume.load import Progress, load
from icnfs.volume.network import Network, Starter, Transfer, start_transfer
from icnfs.volume.places import VISIT_SECONDS, Places

log = logging.getLogger(__name__)

SLOTS_SECONDS: Final = 60.0
SLOTS_MAX: Final = 128
"""Slots looked at per provider: two for every key that a volume can have."""

OLDER_MAX: Final = 16
"""Heads looked at before one that cannot be loaded."""


@dataclass(frozen=True)
class Bound:
    """How new a state may be: at most that number, (epoch, sequence), or taken at most at that time (Unix ns)."""

    number: tuple[int, int] | None = None
    time_ns: int | None = None


@dataclass(frozen=True)
class Found:
    """The published state that was found: its number, when its cut was taken (Unix time, ns), and what it weighs.

    So many `owners` show its head.
    """

    volume: bytes
    epoch: int
    sequence: int
    time_ns: int
    files: int
    bytes_used: int
    record_bytes: int
    owners: int


async def recover(
    config: VolumeConfig,
    state_dir: Path,
    offered: Secrets,
    *,
    at_least: tuple[int, int] | None = None,
    bound: Bound | None = None,
    found: Callable[[Found], None] = lambda _: None,
    progress: Progress = lambda _done, _all: None,
    start: Starter = start_transfer,
) -> Found:
    """Rebuild the local state; `found` is told what was found before anything is loaded (again where that changes).

    With a `bound` an older state becomes the newest, with the keys that the newest has: see `keys.going_back`.
    Raises `VolumeExistsError`, `TooFewProvidersError` (saying who is missing), `NoVolumeError` where there is no head,
    `SecretError`, `RolledBackError` where the newest head is below `at_least`, (epoch, sequence), `NewerFormatError`,
    `DamagedError` where all that is shown of a newer one is false, unless `at_least` allows an older, `LocalDiskError`.
    """
    with setting_up.partial_state(state_dir, "recover") as half:
        async with start(config.specs(), Limits(config.upload, config.download)) as transfer:
            master = await unlocked(config, transfer, await slots_of(config, transfer), offered)
            network, heads, head, missing = await find(config, transfer, master, at_least, bound)
            owners = heads.showing(head)
            if bound is not None:
                await _look_for_newest(network, heads, head)
            newest = heads.highest or head
            for provider in sorted(missing):
                log.warning("left out: %s", missing[provider])
            own: set[bytes] = set()
            try:
                while True:
                    found(_found(head, owners))
                    setting_up.start_over(half)
                    if bound is not None:
                        head = await trio.to_thread.run_sync(keys.going_back, head, newest, offered, network.master)
                    taken_over, claim = _taking_over(head, newest.number, abandons=bound is not None)
                    own.add(taken_over.writer)
                    settings = {
                        fences.HEAD: fences.encode_base(taken_over),
                        fences.CLAIM: msgspec.msgpack.encode(claim),
                    }
                    try:
                        await load(network, half, head, settings, progress)
                    except (TooFewProvidersError, DamagedError) as error:
                        if older := await _older_whole(network, heads, head):
                            raise type(error)(f"{error}; {older}") from error
                        raise
                    await _take_over(network, heads, taken_over)
                    later = await _later(network, heads, newest, own)
                    if later is None:
                        break
                    newest = later
                    if bound is None:
                        head, owners = later, heads.showing(later)
            except BaseException:
                shutil.rmtree(half, ignore_errors=True)
                raise
        setting_up.complete(half, state_dir)
    return _found(head, owners)


# --- finding ----------------------------------------------------------------------------------------------------------


async def slots_of(config: VolumeConfig, transfer: Transfer) -> list[tuple[str, Slot]]:
    """The key slots that providers hold, each with its provider: at least one.

    First the first of each provider, then their second, and so on: who makes up many has one of them tried before the
    real ones.  A provider has SLOTS_SECONDS for all of its own.

    Raises `TooFewProvidersError` where too few answer, `NewerFormatError` and `DamagedError` where none of what they
    hold is a slot, and `NoVolumeError`.
    """
    found: dict[str, list[tuple[str, Slot]]] = {provider: [] for provider in config.providers}
    false: dict[str, FormatError] = {}
    away: dict[str, IcnfsError] = {}

    async def ask(provider: str) -> None:
        until = trio.current_time() + SLOTS_SECONDS
        try:
            names = await transfer.list_objects(provider, keyrings.PREFIX, deadline=VISIT_SECONDS)
            for name in names[:SLOTS_MAX]:
                left = max(0.0, until - trio.current_time())
                raw = await transfer.get_object(provider, name, deadline=min(VISIT_SECONDS, left))
                try:
                    found[provider].append((provider, decode_slot(raw[: SLOT_MAX + 1])))
                except FormatError as error:
                    false[provider] = error
        except IcnfsError as error:
            away[provider] = error

    async with trio.open_nursery() as nursery:
        for provider in config.providers:
            nursery.start_soon(ask, provider)
    slots = [slot for turn in zip_longest(*found.values()) for slot in turn if slot is not None]
    if not slots:
        if len(config.providers) - len(away) < config.k:
            raise _too_few(config.k, config.n - config.k, config.providers, away)
        _refuse_false("key slots", false)
        raise NoVolumeError("no provider that answers holds a key slot: was the volume ever initialised here?")
    for provider, error in sorted(false.items()):
        log.warning("provider %s: a key slot: %s", provider, error)
    return slots


async def unlocked(
    config: VolumeConfig, transfer: Transfer, slots: Sequence[tuple[str, Slot]], offered: Secrets
) -> MasterKey:
    """The master key of the volume whose places the providers are.

    Who holds a place of another volume of the same person can show a slot of that one among the others, and the same
    secret opens it.  So a key must make k places its own; where none does, it is the one that makes most.
    Raises `SecretError` as `opened` does.
    """
    masters = opened([slot for _, slot in slots], offered)
    tried: list[MasterKey] = []
    best: tuple[int, MasterKey] | None = None
    while (master := await trio.to_thread.run_sync(next, masters, None)) is not None:
        if master not in tried:
            tried.append(master)
            network = Network.of(config, master, transfer)
            await _visit(network)
            if best is None or len(network.taken) > best[0]:
                best = len(network.taken), master
            if best[0] >= config.k:
                break
    assert best is not None
    return best[1]


async def find(
    config: VolumeConfig,
    transfer: Transfer,
    master: MasterKey,
    at_least: tuple[int, int] | None = None,
    bound: Bound | None = None,
) -> tuple[Network, Heads, Head, Mapping[str, IcnfsError]]:
    """The newest published state that is real and within the bound, where it is, and what is the matter with providers
    that are missing.

    Nothing is written.  Raises what `recover` does of finding.
    """
    network = Network.of(config, master, transfer)
    away = await _visit(network)
    heads = Heads(network)
    survey = await heads.survey()
    if bound is not None:
        survey = await _within(heads, survey, bound)
    missing = {**away, **survey.away}
    head = await _newest(network, heads, survey, missing, at_least)
    return network, heads, head if bound is not None else await _whole(heads, survey, head), missing


async def _visit(network: Network) -> dict[str, IcnfsError]:
    """See whose places are ours; those that are not, or do not answer, with the reason."""
    places = Places(network, Keyring(), lambda: None)
    away: dict[str, IcnfsError] = {}

    async def look(provider: str) -> None:
        try:
            if await places.is_ours(provider):
                network.taken.add(provider)
            else:
                network.free.add(provider)
                away[provider] = NoVolumeError(f"provider {provider}: its place is empty")
        except ForeignProviderError as error:
            network.foreign[provider] = error.detail
            away[provider] = error
        except NewerFormatError as error:
            network.foreign[provider] = str(error)
            away[provider] = error
        except IcnfsError as error:
            away[provider] = error

    async with trio.open_nursery() as nursery:
        for provider in network.facts:
            nursery.start_soon(look, provider)
    return away


async def _within(heads: Heads, survey: Survey, bound: Bound) -> Survey:
    """What of the survey lies within the bound; NoVolumeError where nothing does."""
    numbers = sorted({(name.epoch, name.sequence) for names in survey.listed.values() for name in names})
    if bound.number is not None:
        numbers = [number for number in numbers if number <= bound.number]
    if bound.time_ns is not None:
        numbers = numbers[: await _until(heads, survey, numbers, bound.time_ns)]
    if not numbers:
        raise NoVolumeError("no provider that answers holds a head so old: give a later one")
    return _cut(survey, numbers[0], numbers[-1])


async def _until(heads: Heads, survey: Survey, numbers: Sequence[tuple[int, int]], time_ns: int) -> int:
    """How many of the heads numbered so, ascending, were taken at most at that time: they are so in order, too.

    One of which no copy can be read counts as the one before it.
    """
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        head = await heads.newest(_cut(survey, numbers[low], numbers[middle]))
        if head is None or head.time_ns <= time_ns:
            low = middle + 1
        else:
            high = bisect_left(numbers, head.number)
    return low


def _cut(survey: Survey, first: tuple[int, int], last: tuple[int, int]) -> Survey:
    """The heads numbered from `first` to `last`."""
    listed = {
        provider: tuple(name for name in names if first <= (name.epoch, name.sequence) <= last)
        for provider, names in survey.listed.items()
    }
    return dataclasses.replace(survey, listed=listed)


async def _newest(
    network: Network,
    heads: Heads,
    survey: Survey,
    missing: Mapping[str, IcnfsError],
    at_least: tuple[int, int] | None,
) -> Head:
    answering = survey.listed.keys() & network.taken
    head = await heads.newest(survey)
    if len(answering) < network.k or network.silent(answering) > network.silent_most:
        raise _too_few(network.k, network.silent_most, network.facts, missing)
    if at_least is None:
        _require_read(network, survey, head)
    if head is None:
        _refuse_false("heads", {name: DamagedError(why) for name, why in heads.liars.items()})
        raise NoVolumeError("no provider that answers holds a head of this volume: it was never published")
    if at_least is None:
        _refuse_older(network, survey, head)
    elif head.number < at_least:
        raise RolledBackError(
            f"the newest head found is epoch {head.epoch}, sequence {head.sequence}, and you know of {at_least[0]}, "
            f"{at_least[1]}: providers withhold it or lost it; bring more of them back, or lower --at-least"
        )
    return head


def _refuse_false(what: str, false: Mapping[str, FormatError]) -> None:
    """Where all that providers show is false, that is another failure than where they show nothing."""
    for error in false.values():
        if isinstance(error, NewerFormatError):
            raise error
    if false:
        raise DamagedError(
            f"all {what} that providers show are damaged ({', '.join(sorted(false))}); bring back other providers"
        )


def _require_read(network: Network, survey: Survey, head: Head | None) -> None:
    """Raise `TooFewProvidersError` where a durable head newer than `head` may be among those that nobody handed out."""
    answering = (survey.listed.keys() & network.taken) - survey.unread
    if survey.unread and network.silent(answering) > network.silent_most:
        back = (
            f", or go back to {head.epoch}-{head.sequence} with --at-least {head.epoch}-{head.sequence}" if head else ""
        )
        names = ", ".join(sorted(survey.unread))
        raise TooFewProvidersError(f"the newest heads that {names} list cannot be read there: try again{back}")


async def _look_for_newest(network: Network, heads: Heads, head: Head) -> None:
    """Find the newest head, whichever is to be recovered: what takes over comes after it."""
    survey = await heads.survey()
    await heads.newest(survey)
    _require_read(network, survey, head)


async def _whole(heads: Heads, survey: Survey, head: Head) -> Head:
    """The head with all that was published by the newest, `head`.

    A recovery takes over with a head that holds just what the one before it does, looks for what was published
    meanwhile, and takes that over, too.  One that broke off in between has left such a head, and of what the other
    machine published, and called safe, the newest is older by its number.
    """
    at = head
    while (0, 0) < at.previous < at.number:
        before = await heads.newest(_cut(survey, at.previous, at.previous))
        if before is None or _state(before) != _state(at):
            break
        between = _cut(survey, before.number, at.number)
        more = await heads.newest(between, accept=lambda one: one.generation > head.generation)
        if more is not None:
            return await _whole(heads, survey, more)
        at = before
    return head


def _state(head: Head) -> tuple[int, int, int, list[bytes]]:
    """What tells the state that it holds from every other."""
    return head.generation, head.cut, head.time_ns, [run.id for run in head.runs]


def _refuse_older(network: Network, survey: Survey, head: Head) -> None:
    """Where a newer head was durable and none of its copies can be read, a person decides whether to go back.

    So many owners list a durable head that they cannot all have made it up (`Network.durable`).
    """
    older = f"{head.epoch}-{head.sequence}"
    for number, copies in survey.newest():
        if number > head.number and network.owners(provider for provider, _ in copies) >= network.durable:
            raise DamagedError(
                f"{len(copies)} providers list the head {number[0]}-{number[1]} and no copy of it can be read; bring "
                f"back other providers, or go back to the head {older} with --at-least {older}"
            )


def _too_few(k: int, silent_most: int, providers: Mapping[str, object], away: Mapping[str, IcnfsError]) -> IcnfsError:
    """Fewer than `k` providers can be used, or more owners than `silent_most` are silent."""
    present = [name for name in providers if name not in away]
    newer = sorted(name for name, error in away.items() if isinstance(error, NewerFormatError))
    if newer and len(present) + len(newer) >= k:
        return NewerFormatError(f"{away[newer[0]]} ({len(newer)} providers are of such a format)")
    missing = reasons(dict(away))
    if len(present) < k:
        names = ", ".join(present) or "none"
        return TooFewProvidersError(
            f"{k} providers are needed and {len(present)} can be used ({names}); missing: {missing}"
        )
    return TooFewProvidersError(
        f"no more than {silent_most} owners may be silent, or a newer head could be missed; missing: {missing}; bring "
        "some of them back, or take the table of one that never held anything of the volume out of the TOML"
    )


def _found(head: Head, owners: int) -> Found:
    weight, (files, size) = sum(run.size for run in head.runs), head.counters[:2]
    return Found(head.volume, head.epoch, head.sequence, head.time_ns, files, size, weight, owners)


# --- loading ----------------------------------------------------------------------------------------------------------


def _taking_over(head: Head, newest: tuple[int, int], *, abandons: bool) -> tuple[Head, Claim]:
    """The head that takes `head` over, and the claim to it: it comes after the `newest` one, which it may abandon."""
    mine = Own(newest[0] + 1, secrets.token_bytes(16), newest[1] + 1)
    taken_over = msgspec.structs.replace(
        head, epoch=mine.epoch, sequence=mine.sequence, writer=mine.writer, previous=newest if abandons else head.number
    )
    return taken_over, Claim((mine,))


async def _older_whole(network: Network, heads: Heads, head: Head) -> str:
    """Of the heads before one that cannot be loaded, the newest of which enough shares should be there, and how to go
    back to it; "" where there is none among OLDER_MAX."""
    with contextlib.suppress(IcnfsError):
        survey = await heads.survey()
        numbers = sorted({(name.epoch, name.sequence) for names in survey.listed.values() for name in names})
        for _ in range(OLDER_MAX):
            numbers = numbers[: bisect_left(numbers, head.number)]
            older = await heads.newest(_cut(survey, numbers[0], numbers[-1])) if numbers else None
            if older is None:
                break
            head = older
            if all(_is_there(network, part) for part in older.segments()):
                when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(older.time_ns / 1e9))
                number = f"{older.epoch}-{older.sequence}"
                return f"the state of {when} should be whole: recover that with --at-most {number}"
    return ""


def _is_there(network: Network, part: SegmentInfo) -> bool:
    lost = network.lost()
    return sum(share.stored and share.provider not in lost for share in part.shares) >= part.k


async def _take_over(network: Network, heads: Heads, head: Head) -> None:
    """Put the head that fences whoever wrote the volume before.

    With 2k <= n the owners that are left may be too few for that: then it is put at empty places, too.  They are not
    marked: a mount finds such a place empty, and notes that what the records say of it is gone.
    """
    if network.owners(network.homes) < network.durable:
        network.taken |= network.vacant
    async with trio.open_nursery() as spare:
        stored = await heads.store(head, spare)
    if network.owners(stored.providers) < network.durable:
        raise TooFewProvidersError(
            f"the head that takes the volume over needs {network.durable} owners and only "
            f"{network.owners(stored.providers)} took it: {reasons(stored.errors) or 'no other is there'}; where "
            "others are lost for good, have new ones stand in their stead in the TOML"
        )


async def _later(network: Network, heads: Heads, head: Head, own: Collection[bytes]) -> Head | None:
    """What the other machine still published while `head` was loaded: it knew of no rival and may have said "safe".

    It looks for ours just before each head of its own, so once ours is durable hardly anything can still come.
    """
    survey = await heads.survey(head.number)
    later = await heads.newest(survey, accept=lambda other: other.number > head.number and other.writer not in own)
    if later is None:
        _require_read(network, survey, None)
    return later
