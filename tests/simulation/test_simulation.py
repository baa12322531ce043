"""The simulation keeps every promise, replays exactly, and catches a build that is broken on purpose."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from icnfs.errors import IcnfsError
from icnfs.format.head import Head
from icnfs.format.segment import SegmentInfo
from icnfs.state import garbage
from icnfs.state.snapshots import Kept
from icnfs.transfer import bulk
from icnfs.transfer.upload import PutResult
from icnfs.volume import milestones, repair
from icnfs.volume import pack as packs
from icnfs.volume.attempt import Attempt
from icnfs.volume.collect import Collector
from icnfs.volume.network import Network
from icnfs.volume.repair import Repair
from icnfs.volume.stow import Stow
from tests.simulation.run import run_seed

REPO = Path(__file__).parents[2]
SEEDS = 20
PARTS = 10
REPLAYED = range(500, 504)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_is_kept(part: int) -> None:
    for seed in range(part * SEEDS, (part + 1) * SEEDS):
        result = run_seed(seed)
        assert not result.broken, f"python -m tests.simulation --replay {seed} --verbose"


def test_a_seed_replays_in_another_process() -> None:
    code = "from tests.simulation.run import run_seed\nfor seed in range(500, 504): print(run_seed(seed).digest)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == [run_seed(seed).digest for seed in REPLAYED]


# --- builds that are broken on purpose --------------------------------------------------------------------------------


def _head_before_run(patch: pytest.MonkeyPatch) -> None:
    """A run is on its way when the head that names it is put."""
    put = Stow._send

    async def late(self: Stow, info: SegmentInfo, wanted: Sequence[int], fd: int, enough: int) -> PutResult:
        roots = packs.roots(fd, info.k, info.n, info.share_len)
        copy = os.dup(fd)

        async def send() -> None:
            with suppress(IcnfsError), bulk.closing(copy):
                await put(self, info, wanted, copy, enough)

        trio.lowlevel.spawn_system_task(send, context=contextvars.copy_context())
        return PutResult(roots, {}, frozenset())

    patch.setattr(Stow, "_send", late)


def _locations_before_head(patch: pytest.MonkeyPatch) -> None:
    """Local state learns of a head that is still on its way."""
    put = Attempt._put_head

    async def late(self: Attempt, head: Head, spare: trio.Nursery) -> None:
        async def send() -> None:
            with suppress(IcnfsError):
                await put(self, head, spare)

        spare.start_soon(send)

    patch.setattr(Attempt, "_put_head", late)


def _no_grace(patch: pytest.MonkeyPatch) -> None:
    """The collector waits for a head, and for nothing else."""
    real = Collector.round

    async def at_once(self: Collector) -> None:
        self._grace = 0.0
        await real(self)

    patch.setattr(Collector, "round", at_once)


def _no_head(patch: pytest.MonkeyPatch) -> None:
    """The collector waits for the grace, and asks no head."""
    patch.setattr(milestones, "passed", lambda kept, now, grace: 2**62)


def _grace_from_the_note(patch: pytest.MonkeyPatch) -> None:
    """The grace is counted from when something was condemned."""
    patch.setattr(milestones, "passed", lambda kept, now, grace: kept[-1].generation)


def _old_share_first(patch: pytest.MonkeyPatch) -> None:
    """A share that moves is gone from its old place before it is known where it is."""
    restore = Repair._restore

    async def hasty(self: Repair, segment: SegmentInfo, to: dict[int, str]) -> SegmentInfo:
        names = self._network.names_of(segment)
        for index, provider in to.items():
            if segment.shares[index].provider != provider:
                with suppress(IcnfsError):
                    old = segment.shares[index].provider
                    await self._network.transfer.delete_object(old, names[index], deadline=10.0)
        return await restore(self, segment, to)

    patch.setattr(Repair, "_restore", hasty)


def _restores_nothing(patch: pytest.MonkeyPatch) -> None:
    """A repair says that it stored what it did not."""

    async def nothing(self: Repair, segment: SegmentInfo, to: dict[int, str]) -> SegmentInfo:
        return repair._with(segment, to)

    patch.setattr(Repair, "_restore", nothing)


def _few_heads(patch: pytest.MonkeyPatch) -> None:
    """One copy of a head is taken for a durable one."""
    patch.setattr(Network, "durable", property(lambda _: 1))


def _no_snapshots(patch: pytest.MonkeyPatch) -> None:
    """The collector knows of no snapshot."""
    patch.setattr(garbage, "Kept", lambda _: Kept(()))


BROKEN = [
    _no_snapshots,
    _head_before_run,
    _locations_before_head,
    _no_grace,
    _no_head,
    _grace_from_the_note,
    _old_share_first,
    _restores_nothing,
    _few_heads,
]


@pytest.mark.parametrize("build", BROKEN, ids=lambda build: build.__name__.strip("_"))
def test_a_build_that_is_broken_on_purpose_is_caught(
    build: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(monkeypatch)
    assert any(run_seed(seed).broken for seed in (*range(50, 100), *range(50)))
