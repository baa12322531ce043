"""A scrub of a volume: all is looked at, what is wrong is found, told and restored, and it goes on where it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from icnfs.errors import FencedError, LocalDiskError, UsageError
from icnfs.format import share as share_format
from icnfs.format.segment import SegmentInfo
from icnfs.providers.memory import MemoryProvider
from icnfs.volume import findings, scrub
from icnfs.volume.scrub import ScrubProgress
from icnfs.volume.volume import Volume
from tests.volume.world import Machine, World, describe, flip, put_file

DATA = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "CONFIRM_SECONDS", 0.0)


@pytest.fixture
def here(world: World) -> Machine:
    machine = world.machine()
    machine.init()
    return machine


async def write(volume: Volume, files: int = 1) -> list[SegmentInfo]:
    """Files published each by itself; the segments there are, the largest first."""
    for number in range(files):
        await put_file(volume, b"f%d" % number, DATA[number * 1000 :])
        await volume.sync()
    await volume.loaded.wait()
    found = [volume._segment(id) for id in volume.repair.ids()]
    return sorted((one for one in found if one is not None), key=lambda one: -one.share_len)


def object_of(world: World, volume: Volume, segment: SegmentInfo, index: int) -> tuple[MemoryProvider, str]:
    return world.providers[segment.shares[index].provider], volume.network.names_of(segment)[index]


async def repaired(volume: Volume) -> None:
    while not volume.repair.idle:
        assert await volume.care_once()


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_volume_is_verified_whole_and_nothing_changes(world: World, here: Machine, full: bool) -> None:
    async def main(volume: Volume) -> None:
        segments = await write(volume, 3)
        before = {name: dict(provider.objects) for name, provider in world.providers.items()}
        told: list[ScrubProgress] = []
        report = await volume.scrub(full=full, progress=told.append)
        assert report.is_good and report.shares == sum(segment.n for segment in segments)
        assert all(counts == {"present": len(segments)} for counts in report.counts.values())
        whole = sum(segment.n * share_format.file_size(segment.share_len) for segment in segments)
        assert report.read_bytes == whole if full else report.read_bytes < whole / 2
        assert told[0].done == 0 and told[-1] == ScrubProgress(told[0].total, told[0].total, 0)
        assert [one.done for one in told] == sorted(one.done for one in told)
        assert {name: dict(provider.objects) for name, provider in world.providers.items()} == before

    here.run(main)


def test_what_is_wrong_is_told_by_provider_and_restored(world: World, here: Machine) -> None:
    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume, 2)
        lost, lost_name = object_of(world, volume, segment, 1)
        bad, bad_name = object_of(world, volume, segment, 4)
        kept = {lost_name: lost.objects.pop(lost_name), bad_name: bad.objects[bad_name]}
        bad.objects[bad_name] = flip(bad.objects[bad_name], -1)
        report = await volume.scrub(full=True)
        assert not report.is_good
        assert report.counts[lost.name]["missing"] == report.counts[bad.name]["altered"] == 1
        assert report.count("missing", "altered") == 2 and (report.restored, report.queued) == (0, 2)
        await repaired(volume)
        assert {lost_name: lost.objects[lost_name], bad_name: bad.objects[bad_name]} == kept
        assert (await volume.scrub(full=True)).is_good

    here.run(main)


def test_roots_alone_find_what_is_missing_and_any_altered_header_and_in_time_an_altered_leaf(
    world: World, here: Machine
) -> None:
    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        provider, name = object_of(world, volume, segment, 0)
        whole = provider.objects[name]
        provider.objects[name] = flip(whole, share_format.FIXED_SIZE)
        assert (await volume.scrub()).counts[provider.name]["altered"] == 1
        await repaired(volume)
        provider.objects[name] = flip(whole, -1)
        runs = 0
        while (await volume.scrub()).is_good:
            runs += 1
            assert runs < 500, "of a dozen leaves the altered one was never drawn"

    here.run(main)


def test_a_provider_that_is_down_is_not_blamed_and_not_counted_as_verified(world: World, here: Machine) -> None:
    async def main(volume: Volume) -> None:
        segments = await write(volume)
        world.away("ada")
        report = await volume.scrub()
        assert not report.is_good and report.down == ("ada",)
        assert report.counts["ada"] == {"down": len(segments)}
        assert report.count("present") == 5 * len(segments)
        assert volume.repair.idle and not volume.findings.bad()

    here.run(main)


def test_shares_that_were_lacking_before_are_counted_apart(world: World, here: Machine) -> None:
    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        await volume._amend(segment.id, lambda now: findings._without(now, 2))
        report = await volume.scrub()
        assert not report.is_good and report.count("lacking") == 1 and not report.count("missing", "altered")

    here.run(main)


def test_too_few_others_are_left_to_restore_it(world: World, here: Machine) -> None:
    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        for index in range(4):
            provider, name = object_of(world, volume, segment, index)
            provider.objects[name] = flip(provider.objects[name], -1 - index * segment.share_len // 5)
        report = await volume.scrub(full=True)
        assert report.count("altered") == 4 and (report.queued, report.beyond) == (2, 2)

    here.run(main)


class Stop:
    """Cancels a scrub after so many checks; counts those that there were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.asked: list[tuple[bytes, int]] = []
        self.scope = trio.CancelScope()
        real = findings.Findings._check

        async def check(me: findings.Findings, segment: SegmentInfo, index: int, *rest: object) -> object:
            self.asked.append((segment.id, index))
            if len(self.asked) >= after:
                self.scope.cancel()
            return await real(me, segment, index, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(findings.Findings, "_check", check)


@pytest.mark.parametrize("remounted", [False, True])
def test_it_goes_on_where_it_was_and_counts_each_share_once(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch, remounted: bool
) -> None:
    monkeypatch.setattr(scrub, "SEGMENTS_AT_ONCE", 1)

    async def begin(volume: Volume) -> int:
        segments = await write(volume, 5)
        stop = Stop(monkeypatch, 20)
        with stop.scope:
            await volume.scrub()
        assert stop.scope.cancelled_caught and len(stop.asked) < 6 * len(segments)
        return len(segments)

    async def go_on(volume: Volume, segments: int) -> None:
        asked = Stop(monkeypatch, 10_000).asked
        told: list[ScrubProgress] = []
        report = await volume.scrub(progress=told.append)
        assert report.resumed and report.is_good and report.shares == 6 * segments
        assert len(asked) <= 6 * (segments - 3) + 6, "what is done is not done again"
        assert told[0].done > 0
        asked.clear()
        assert not (await volume.scrub()).resumed and len(asked) == 6 * segments, "a finished one begins anew"

    if remounted:
        count = here.run(begin)
        here.run(lambda volume: go_on(volume, count))
    else:

        async def both(volume: Volume) -> None:
            await go_on(volume, await begin(volume))

        here.run(both)


def test_a_full_one_and_one_by_roots_are_kept_apart_and_restart_forgets(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub, "SEGMENTS_AT_ONCE", 1)

    async def main(volume: Volume) -> None:
        await write(volume, 4)
        for _ in range(2):
            stop = Stop(monkeypatch, 15)
            with stop.scope:
                await volume.scrub(full=True)
            monkeypatch.undo()
            monkeypatch.setattr(scrub, "SEGMENTS_AT_ONCE", 1)
            assert not (await volume.scrub()).resumed
            restarted = await volume.scrub(full=True, restart=True)
            assert not restarted.resumed and restarted.is_good

    here.run(main)


def test_one_at_a_time_and_none_where_nothing_could_be_noted(world: World, here: Machine) -> None:
    async def main(volume: Volume) -> None:
        await write(volume)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.scrub)
            await trio.testing.wait_all_tasks_blocked(0.0)
            with pytest.raises(UsageError, match="already"):
                await volume.scrub()
        assert (await volume.scrub()).is_good, "the next one may"
        volume.store.read_only = True
        with pytest.raises(UsageError, match="read-only"):
            await volume.scrub()
        volume.store.fence(FencedError("another machine went on"))
        with pytest.raises(FencedError):
            await volume.scrub()

    here.run(main)


def test_a_rate_is_kept(world: World, here: Machine) -> None:
    async def main(volume: Volume) -> None:
        await write(volume)
        begun = trio.current_time()
        report = await volume.scrub(full=True, rate=4_000_000)
        assert trio.current_time() - begun >= report.read_bytes / 4_000_000 * 0.9

    here.run(main)


def test_a_full_disk_ends_it_and_it_goes_on_later(world: World, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume, 2)
        provider, name = object_of(world, volume, segment, 0)
        del provider.objects[name]
        real = volume.publisher.mend

        async def mend(changes: object) -> None:
            raise LocalDiskError("the disk is full")

        monkeypatch.setattr(volume.publisher, "mend", mend)
        with pytest.raises(LocalDiskError):
            await volume.scrub()
        monkeypatch.setattr(volume.publisher, "mend", real)
        assert (await volume.scrub()).counts[provider.name]["missing"] == 1

    here.run(main)


def test_a_share_that_is_restored_between_two_looks_is_verified(
    world: World, here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where somebody has read it, and repair comes between."""

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        provider, name = object_of(world, volume, segment, 3)
        whole = provider.objects[name]
        provider.objects[name] = flip(whole, share_format.FIXED_SIZE)
        real = findings.Findings._check

        async def check(me: findings.Findings, info: SegmentInfo, index: int, *rest: object) -> object:
            looked = await real(me, info, index, *rest)  # type: ignore[arg-type]
            if (info.id, index) == (segment.id, 3):
                provider.objects[name] = whole
            return looked

        monkeypatch.setattr(findings.Findings, "_check", check)
        assert (await volume.scrub()).is_good

    here.run(main)


def test_a_share_that_moves_meanwhile_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    world = World(tmp_path, more=("gnu",))
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        index = next(i for i, share in enumerate(segment.shares) if share.provider != "gnu")
        provider, name = object_of(world, volume, segment, index)
        spare = next(n for n in world.providers if n not in {share.provider for share in segment.shares})
        real = volume.network.transfer.check
        moved = False

        async def check(info: SegmentInfo, names: object, at: int, leaves: object, *, deadline: float) -> object:
            nonlocal moved
            if info.id == segment.id and at == index and not moved:
                moved = True
                await describe(volume, await volume.repair._restore(segment, {index: spare}))
                del provider.objects[name]
            return await real(info, names, at, leaves, deadline=deadline)  # type: ignore[arg-type]

        volume.network.transfer.check = check  # type: ignore[method-assign, assignment]
        report = await volume.scrub()
        assert report.is_good and moved and not volume.findings.bad()

    here.run(main)
