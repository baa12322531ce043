"""An open snapshot: its tree, read-only, from a scratch state of its own, beside whatever else uses the volume.

It is found as `recover` finds the newest head, but takes nothing over: no head is put, no epoch taken, and whatever
would write at a provider is refused (`remains`).  The scratch state is gone afterwards; one that a crash left goes with
the next.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.errors import NoVolumeError
from icnfs.limits import GIB
from icnfs.providers.open import ProviderSpec
from icnfs.transfer.engine import bare_errors
from icnfs.transfer.messages import Limits
from icnfs.volume import setting_up
from icnfs.volume.keyring import Keyring, Secrets, unlock
from icnfs.volume.load import Progress, load_past
from icnfs.volume.network import Starter, Transfer, start_transfer
from icnfs.volume.recover import find, slots_of
from icnfs.volume.remains import Remains
from icnfs.volume.scratch import check_room, scratch, sweep
from icnfs.volume.volume import Volume, open_volume

log = logging.getLogger(__name__)

CACHE: Final = GIB
"""Bytes of contents that a mount of a snapshot keeps at most."""


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
        async with start(config.specs(), Limits(config.upload, config.download)) as inner:
            transfer = Remains(inner, ())
            master = await _master(config, state_dir, transfer, offered)
            network, _, head, missing = await find(config, transfer, master)
            for name in sorted(missing):
                log.warning("left out: %s", missing[name])
            setting_up.start_over(half)
            check_room(half, sum(run.size for run in head.runs), config.reserve)
            begun = trio.current_time()
            found = await load_past(network, half, head, snapshot, progress)
            log.info("loaded snapshot=%s files=%d seconds=%.1f", snapshot, found.files, trio.current_time() - begun)

            @asynccontextmanager
            async def going_on(_specs: Sequence[ProviderSpec], _limits: Limits) -> AsyncIterator[Transfer]:
                yield transfer

            modest = replace(config, cache_clean=min(config.cache_clean, CACHE))
            async with open_volume(modest, half, offered, read_only=True, start=going_on) as volume:
                yield volume


async def _master(config: VolumeConfig, state_dir: Path, transfer: Transfer, offered: Secrets) -> MasterKey:
    """By the key slots that this machine has, or else those that the providers hold."""
    try:
        slots = Keyring.load(state_dir).slots()
    except NoVolumeError:
        slots = [slot for _, slot in await slots_of(config, transfer)]
    return await trio.to_thread.run_sync(unlock, slots, offered)
