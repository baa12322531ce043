"""An open snapshot: its tree, read-only, from a scratch state of its own, beside whatever else uses the volume.

It is found as `recover` finds the newest head, but takes nothing over: no head is put, no epoch taken, and whatever
would write at a provider is refused (`remains`).  Meanwhile what it reads may move to other segments, so where things
lie is looked up anew now and then, well before the old ones may go.  The scratch state is gone afterwards; one that a
crash left goes with the next.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.errors import IcnfsError, NoVolumeError
from icnfs.format.head import Head
from icnfs.limits import GIB
from icnfs.providers.open import ProviderSpec
from icnfs.state.opening import reading
from icnfs.state.reader import Reader
from icnfs.state.store import Store
from icnfs.transfer.engine import bare_errors
from icnfs.transfer.messages import Limits
from icnfs.volume import setting_up
from icnfs.volume.keyring import Keyring, Secrets, unlock
from icnfs.volume.load import Progress, load, load_past, load_places
from icnfs.volume.network import Network, Starter, Transfer, start_transfer
from icnfs.volume.recover import find, slots_of, unlocked
from icnfs.volume.remains import Remains
from icnfs.volume.scratch import check_room, scratch, sweep
from icnfs.volume.volume import Volume, open_volume

log = logging.getLogger(__name__)

CACHE: Final = GIB
"""Bytes of contents that a mount of a snapshot keeps at most."""

FOLLOW_SECONDS: Final = 900.0
"""Between looks at where things lie by now: the shortest grace is an hour."""


@asynccontextmanager
async def open_past(
    config: VolumeConfig,
    snapshot: str,
    state_dir: Path,
    offered: Secrets,
    *,
    progress: Progress = lambda _done, _all: None,
    start: Starter = start_transfer,
) -> AsyncIterator[Volume]:
    """The tree of a snapshot as a volume that takes no changes; `state_dir` is where the volume's own state is or
    would be.

    Raises `SnapshotError` where the newest head knows none of that name, `MountedError` where it is open already, and
    what `recover` does of finding and `open_volume` of opening.
    """
    sweep(state_dir.parent, f"{state_dir.name}@")
    place = state_dir.with_name(f"{state_dir.name}@{snapshot}")
    with scratch(place, f"snapshot {snapshot} is mounted here already") as half, bare_errors():
        async with _found(config, state_dir, offered, start) as found:
            setting_up.start_over(half)
            check_room(half, found.record_bytes, config.reserve)
            begun = trio.current_time()
            kept = await load_past(found.network, half, found.head, snapshot, progress)
            log.info("loaded snapshot=%s files=%d seconds=%.1f", snapshot, kept.files, trio.current_time() - begun)

            @asynccontextmanager
            async def going_on(_specs: Sequence[ProviderSpec], _limits: Limits) -> AsyncIterator[Transfer]:
                yield found.network.transfer

            modest = replace(config, cache_clean=min(config.cache_clean, CACHE))
            async with (
                open_volume(modest, half, offered, read_only=True, start=going_on) as volume,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(_follow, config, found, volume.store)
                yield volume
                nursery.cancel_scope.cancel()


async def _follow(config: VolumeConfig, opened: _Found, store: Store) -> None:
    """Keep up with where things lie, from what the head it was `opened` at said of it on, until cancelled."""
    known = opened.head
    while True:
        await trio.sleep(FOLLOW_SECONDS)
        try:
            network, _, head, _ = await find(config, opened.network.transfer, opened.network.master)
            if head.number != known.number:
                await load_places(network, store, head, known.generation)
                known = head
        except IcnfsError as error:
            log.warning("where the snapshot's contents lie by now could not be looked up: %s", error)


@asynccontextmanager
async def open_trees(
    config: VolumeConfig,
    snapshots: Sequence[str],
    state_dir: Path,
    offered: Secrets,
    *,
    progress: Progress = lambda _done, _all: None,
    start: Starter = start_transfer,
) -> AsyncIterator[list[Reader]]:
    """The records of several snapshots, to be looked at; "" is the tree that was published last.

    Raises what `open_past` does.
    """
    sweep(state_dir.parent, f"{state_dir.name}@")
    place = state_dir.with_name(f"{state_dir.name}@@diff-{os.getpid()}")
    with scratch(place, "it is in use") as folder, bare_errors(), ExitStack() as stack:
        async with _found(config, state_dir, offered, start) as found:
            setting_up.start_over(folder)
            check_room(folder, len(snapshots) * found.record_bytes, config.reserve)
            readers = []
            for number, name in enumerate(snapshots):
                half = folder / str(number)
                setting_up.start_over(half)
                if name:
                    await load_past(found.network, half, found.head, name, progress)
                else:
                    await load(found.network, half, found.head, {}, progress)
                readers.append(stack.enter_context(reading(half, found.network.master)))
        yield readers


@dataclass(frozen=True)
class _Found:
    """The newest head, and a network that writes nothing."""

    network: Network
    head: Head

    @property
    def record_bytes(self) -> int:
        return sum(run.size for run in self.head.runs)


@asynccontextmanager
async def _found(config: VolumeConfig, state_dir: Path, offered: Secrets, start: Starter) -> AsyncIterator[_Found]:
    async with start(config.specs(), Limits(config.upload, config.download)) as inner:
        transfer = Remains(inner, ())
        master = await _master(config, state_dir, transfer, offered)
        network, _, head, missing = await find(config, transfer, master)
        for name in sorted(missing):
            log.warning("left out: %s", missing[name])
        yield _Found(network, head)


async def _master(config: VolumeConfig, state_dir: Path, transfer: Transfer, offered: Secrets) -> MasterKey:
    """By the key slots that this machine has, or else those that the providers hold."""
    try:
        slots = Keyring.load(state_dir).slots()
    except NoVolumeError:
        return await unlocked(config, transfer, await slots_of(config, transfer), offered)
    return await trio.to_thread.run_sync(unlock, slots, offered)
