"""The audit of a volume: what it finds is confirmed, noted, restored and told; how providers stand is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
import trio

from icnfs.config import AuditRules
from icnfs.errors import ProviderRefusedError
from icnfs.format.segment import SegmentInfo
from icnfs.providers.memory import MemoryProvider
from icnfs.volume import audit as audits
from icnfs.volume import findings, places
from icnfs.volume.audit import Audit
from icnfs.volume.health import HealthCounts, ShareState
from icnfs.volume.sweep import DAY
from icnfs.volume.trust import RIGHT_AGAIN, Standing
from icnfs.volume.volume import Volume
from tests.volume.world import World, flip, get_file, put_file

DATA = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is acted upon at once, and no sweep has begun by itself, past what a test stores afterwards."""
    monkeypatch.setattr(audits, "STEP_SECONDS", inf)
    monkeypatch.setattr(findings, "CONFIRM_SECONDS", 0.0)
    monkeypatch.setattr(places, "DOUBT_SECONDS", 0.0)


@pytest.fixture
def wide(tmp_path: Path) -> World:
    """Seven providers for six shares."""
    return World(tmp_path, more=("gnu",))


async def write(volume: Volume) -> list[SegmentInfo]:
    await put_file(volume, b"f", DATA)
    await volume.sync()
    await volume.loaded.wait()
    found = [volume._segment(id) for id in volume.repair.ids()]
    return sorted((one for one in found if one is not None), key=lambda one: -one.share_len)


class Clock:
    def __init__(self, audit: Audit) -> None:
        self.now = 1e9
        audit._now = lambda: self.now


async def sweep(volume: Volume, clock: Clock) -> None:
    """One whole sweep, in as many days as it is to take."""
    audit = volume.audit
    done = audit.sweep.state.sweeps
    while audit.sweep.state.sweeps == done:
        await audit.step(volume.findings)
        clock.now += DAY / 4


async def repaired(volume: Volume) -> None:
    while not volume.repair.idle:
        assert await volume.care_once()


def object_of(world: World, volume: Volume, segment: SegmentInfo, index: int) -> tuple[MemoryProvider, str]:
    return world.providers[segment.shares[index].provider], volume.network.names_of(segment)[index]


def test_what_is_lost_and_altered_is_found_in_a_sweep_restored_and_counted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        before = {name: dict(provider.objects) for name, provider in world.providers.items()}
        lost, lost_name = object_of(world, volume, segment, 1)
        bad, bad_name = object_of(world, volume, segment, 4)
        del lost.objects[lost_name]
        bad.objects[bad_name] = flip(bad.objects[bad_name], 40)
        clock = Clock(volume.audit)
        await sweep(volume, clock)
        assert [segment.id] == list(volume.repair.lacking)
        assert volume._segment(segment.id).missing() == (1, 4)  # type: ignore[union-attr]
        assert volume.health().counts().at_risk == 1
        [worst] = (await volume.health().page("", 10)).segments
        assert [share.state for share in worst.shares][1::3] == [ShareState.MISSING, ShareState.ALTERED]
        await repaired(volume)
        assert volume.findings.bad() == {}
        health = volume.health().counts()
        assert health == HealthCounts(safe=health.safe)
        shares = {
            name: {n for n in provider.objects if n.startswith("shares/")} for name, provider in world.providers.items()
        }
        for name, objects in before.items():
            assert all(world.providers[name].objects[n] == objects[n] for n in objects.keys() & shares[name])
        records = volume.audit.trust.records
        assert records[lost.name].outcomes["missing"] == 1 == records[bad.name].outcomes["altered"]
        assert all(one.outcomes["present"] >= 1 for one in records.values())
        assert all(one.standing is Standing.VETTING for one in records.values()), "once is forgiven"
        await volume.sync()

    here.run(main)
    assert "is missing: no object" in caplog.text and "is altered" in caplog.text
    world.away("ada", "fox")
    there = world.machine("there")
    there.recover(key)
    there.run(_reads)


async def _reads(volume: Volume) -> None:
    assert await get_file(volume, b"f") == DATA


def test_a_whole_sweep_of_a_sound_volume_finds_nothing_and_changes_nothing(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        before = {name: dict(provider.objects) for name, provider in world.providers.items()}
        clock = Clock(volume.audit)
        for _ in range(3):
            await sweep(volume, clock)
        assert {name: dict(provider.objects) for name, provider in world.providers.items()} == before
        assert volume.repair.idle and not volume.findings.bad()
        shares = sum(len(segment.shares) for id in volume.repair.ids() if (segment := volume._segment(id)))
        looked = sum(one.outcomes["present"] for one in volume.audit.trust.records.values())
        assert looked == 3 * shares

    here.run(main)


def test_a_wrong_answer_that_is_right_a_moment_later_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        provider, _ = object_of(world, volume, segment, 0)
        real = MemoryProvider.get
        flips = iter([True])

        async def get(self: MemoryProvider, name: str, offset: int = 0, length: int | None = None) -> bytes:
            data = await real(self, name, offset, length)
            return flip(data, 40) if self is provider and next(flips, False) else data

        monkeypatch.setattr(MemoryProvider, "get", get)
        looked = await volume.findings.examine(segment, 0, None)
        assert looked.outcome == "unknown" and "a moment later" in looked.detail
        assert volume.repair.idle and not volume.findings.bad()

    here.run(main)


def test_a_provider_that_is_down_or_refuses_loses_no_share_by_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()
    real = MemoryProvider.get

    async def get(self: MemoryProvider, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if self.name == "bee" and name.startswith("shares/"):
            raise ProviderRefusedError(self.name, "the key expired")
        return await real(self, name, offset, length)

    async def main(volume: Volume) -> None:
        await write(volume)
        world.away("ada")
        await volume.first_look()
        monkeypatch.setattr(MemoryProvider, "get", get)
        await sweep(volume, Clock(volume.audit))
        assert volume.repair.idle
        records = volume.audit.trust.records
        assert records["ada"].outcomes.keys() == {"down"}
        assert records["bee"].outcomes.keys() == {"unknown"}
        assert records["ada"].right == records["bee"].right == 1.0

    here.run(main)


def test_a_share_is_not_given_up_while_too_few_others_could_rebuild_it(world: World) -> None:
    """Six shares, each altered at another leaf: every range can still be had, and is."""
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        size = segment.share_len
        for index in range(6):
            provider, name = object_of(world, volume, segment, index)
            at = len(provider.objects[name]) - size + index * size // 7
            provider.objects[name] = flip(provider.objects[name], at)
        for index in range(6):
            assert (await volume.findings.examine(segment, index, ())).outcome == "altered"
        now = volume._segment(segment.id)
        assert now is not None and now.stored() == segment.k
        assert volume.health().counts().lost == 1, "no share of it is whole"
        assert sum(len(found) for found in volume.findings.bad().values()) == 6

    here.run(main)


def test_what_changed_while_it_was_looked_at_is_left_alone(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        provider, name = object_of(world, volume, segment, 2)
        del provider.objects[name]
        await volume.findings.examine(segment, 2, None)
        await repaired(volume)
        del provider.objects[name]
        older = _with_provider(segment, 2, "gnu")
        await volume.findings.examine(older, 2, None)
        assert volume.repair.idle, "it was looked for where it is not"

    here.run(main)


def _with_provider(segment: SegmentInfo, index: int, provider: str) -> SegmentInfo:
    import msgspec

    shares = list(segment.shares)
    shares[index] = msgspec.structs.replace(shares[index], provider=provider)
    return msgspec.structs.replace(segment, shares=tuple(shares))


def test_who_loses_much_is_suspended_gets_nothing_new_and_is_so_after_a_remount(
    wide: World, caplog: pytest.LogCaptureFixture
) -> None:
    here = wide.machine()
    here.init()

    async def lose(volume: Volume) -> None:
        for number in range(7):
            await put_file(volume, b"f%d" % number, os.urandom(800_000))
            await volume.sync()
        await volume.loaded.wait()
        victim = wide.providers["cat"]
        for name in [name for name in victim.objects if name.startswith("shares/")]:
            del victim.objects[name]
        await sweep(volume, Clock(volume.audit))
        assert volume.network.suspended() == {"cat"}
        assert "cat" in volume.network.away()
        await repaired(volume)
        assert not [name for name in victim.objects if name.startswith("shares/")], "all of it went to others"
        await put_file(volume, b"more", DATA)
        await volume.sync()
        assert not [name for name in victim.objects if name.startswith("shares/")]
        volume.audit._changed = True
        await volume.audit._save()

    here.run(lose)
    assert "provider cat: suspended, was vetting: 96%" in caplog.text

    async def again(volume: Volume) -> None:
        assert volume.network.suspended() == {"cat"}
        assert volume.audit.sweep.state.sweeps == 1
        await volume.loaded.wait()
        await volume.looked.wait()
        health = volume.health()
        assert health.counts() == HealthCounts(safe=health.counts().safe)

    here.run(again)


def test_a_suspended_provider_is_better_than_none(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        for _ in range(3):
            volume.audit.answered("cat", "missing")
        assert volume.network.suspended() == {"cat"}
        assert "cat" not in volume.network.away()
        index = [share.provider for share in segment.shares].index("cat")
        provider, name = object_of(world, volume, segment, index)
        del provider.objects[name]
        await volume.findings.examine(segment, index, None)
        await repaired(volume)
        assert name in provider.objects
        total = volume.health().counts()
        assert total == HealthCounts(degraded=total.degraded), "its shares do not count as held"
        status = volume.status()
        assert status.degraded and status.unsafe_segments == total.degraded and status.lost_shares == total.degraded

    here.run(main)


async def lost_again(world: World, volume: Volume, segment: SegmentInfo, times: int) -> list[str]:
    """Where share 0 was stored anew, each time that it was found lost; "" for nowhere."""
    places = []
    for _ in range(times):
        now = volume._segment(segment.id)
        assert now is not None
        if now.shares[0].stored:
            provider, name = object_of(world, volume, now, 0)
            del provider.objects[name]
            await volume.findings.examine(now, 0, None)
        await volume.care_once()
        now = volume._segment(segment.id)
        assert now is not None
        places.append(now.shares[0].provider if now.shares[0].stored else "")
    return places


def test_what_is_lost_again_and_again_is_not_stored_anew_without_end(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        home = segment.shares[0].provider
        assert await lost_again(world, volume, segment, 5) == [home, home, "", "", ""]

    here.run(main)


def test_what_is_lost_again_and_again_goes_to_another_who_may_have_it(wide: World) -> None:
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        volume.network.suspended = frozenset
        *before, last = await lost_again(wide, volume, segment, 3)
        assert before == 2 * [segment.shares[0].provider]
        assert last not in {share.provider for share in segment.shares} | {""}

    here.run(main)


def test_who_is_suspended_for_wrong_answers_is_told_from_who_was_only_away(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        record = volume.audit.trust.records["cat"]
        record.standing = Standing.SUSPENDED
        assert volume.network.liars() == frozenset()
        record.right = RIGHT_AGAIN - 0.01
        assert volume.network.liars() == {"cat"}
        await volume.sync(5)
        assert volume.status().degraded and volume.health().counts().degraded
        record.standing = Standing.VETTING
        assert volume.network.liars() == frozenset()

    here.run(main)


@pytest.fixture
def damaged(world: World) -> Iterator[World]:
    """What was kept of the audit cannot be read."""
    here = world.machine()
    here.init()
    from icnfs.volume.fence import keep

    here.run(lambda volume: keep(volume.store, audits.SETTING, b"\xc1 nonsense"))
    yield world


def test_an_audit_that_cannot_be_read_begins_anew(damaged: World, caplog: pytest.LogCaptureFixture) -> None:
    async def main(volume: Volume) -> None:
        assert volume.audit.sweep.state.begun == 0.0
        await volume.loaded.wait()

    damaged.machine().run(main)
    assert "begins anew" in caplog.text


def test_it_runs_by_itself_unless_told_not_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "STEP_SECONDS", 0.01)
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        volume.audit._now = lambda: 1e9 + 10 * DAY * (trio.current_time() - begun)
        with trio.fail_after(20):
            while volume.audit.sweep.state.sweeps < 2:  # the first may have been past what was stored since
                await trio.sleep(0.01)
        assert volume.audit.trust.records["ada"].outcomes["present"] >= 1
        assert volume.store.get_setting(audits.SETTING) is not None

    async def off(volume: Volume) -> None:
        await volume.loaded.wait()
        await trio.sleep(0.1)
        assert volume.audit.sweep.state.sweeps == kept

    begun = 0.0

    async def timed(volume: Volume) -> None:
        nonlocal begun, kept
        begun = trio.current_time()
        await main(volume)
        kept = volume.audit.sweep.state.sweeps

    kept = -1
    here.run(timed)
    monkeypatch.setattr(audits, "_unix", lambda: 4e9)

    async def disabled(volume: Volume) -> None:
        await volume.loaded.wait()
        before = volume.audit.sweep.state.at
        await trio.sleep(0.2)
        assert volume.audit.sweep.state.at == before

    here.run(disabled, audit=AuditRules(enabled=False))


def test_a_share_that_a_read_finds_wrong_is_restored_without_an_audit(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    there = world.machine("there")
    there.recover(key)

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        segment = max(filter(None, map(volume._segment, volume.repair.ids())), key=lambda one: one.share_len)
        (lost, lost_name), (bad, bad_name) = (object_of(world, volume, segment, index) for index in (0, 1))
        before = lost.objects.pop(lost_name), bad.objects[bad_name]
        bad.objects[bad_name] = flip(bad.objects[bad_name], len(bad.objects[bad_name]) // 2)
        assert await get_file(volume, b"f") == DATA
        with trio.fail_after(20):
            while (lost.objects.get(lost_name), bad.objects[bad_name]) != before:
                await trio.sleep(0.01)
        records = volume.audit.trust.records
        assert records[lost.name].outcomes["missing"] == 1 == records[bad.name].outcomes["altered"]

    there.run(main)


def test_a_place_that_is_emptied_while_it_is_used_gets_everything_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """It is noticed with the next publish, which finds that the last head is not there, and by that all is known."""
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        shares = world.objects("shares/")
        for name in ("cat", "eel"):
            world.providers[name].objects.clear()
        await put_file(volume, b"g", DATA[:1_000_000])
        await volume.publisher.publish()
        with trio.fail_after(20):
            while volume.network.vacant or volume.network.doubted or not volume.repair.idle:
                await trio.sleep(0.01)
        for name in ("cat", "eel"):
            assert len(world.objects("shares/")[name]) >= len(shares[name]), "all, but for a run that was taken in"
        await volume.sync()
        assert all(world.objects("slots/").values()) and all(world.objects("volume").values())
        assert volume.health().counts() == HealthCounts(safe=volume.health().counts().safe)

    here.run(main)
    assert "provider cat: its place was emptied" in caplog.text


def test_a_place_that_is_emptied_is_found_by_one_share_and_counts_as_no_wrong_answer(world: World) -> None:
    """Thousands of shares that are missing at once are one event, and no reason not to fill the place again."""
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        segment, *_ = await write(volume)
        index = next(i for i, share in enumerate(segment.shares) if share.provider == "cat")
        shares = len(world.objects("shares/")["cat"])
        world.providers["cat"].objects.clear()
        looked = await volume.findings.examine(segment, index, None)
        assert looked.outcome == "unknown"
        with trio.fail_after(20):
            while volume.network.vacant or not volume.repair.idle:
                await trio.sleep(0.01)
        assert len(world.objects("shares/")["cat"]) >= shares - 1
        assert "missing" not in volume.audit.trust.records["cat"].outcomes
        assert volume.health().counts() == HealthCounts(safe=volume.health().counts().safe)

    here.run(main)
