"""Shares that go elsewhere: past a provider that fails, out of one that is drained, back under a policy."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from icnfs.config.volume import VolumeConfig
from icnfs.crypto.slots import parse_recovery_key
from icnfs.errors import ConfigError, DegradedError, FencedError, ProviderAwayError, UsageError
from icnfs.format import marker
from icnfs.format.segment import SegmentInfo
from icnfs.placement import Policy
from icnfs.providers.base import Data
from icnfs.providers.facts import ProviderFacts
from icnfs.providers.memory import MemoryProvider
from icnfs.state.cut import PublishCut
from icnfs.transfer.late import PATIENCE_SECONDS
from icnfs.transfer.messages import ShareEvent
from icnfs.volume import repair, stow
from icnfs.volume.attempt import Attempt
from icnfs.volume.keyring import Secrets
from icnfs.volume.leaving import LeaveProgress
from icnfs.volume.network import SHARES_PREFIX
from icnfs.volume.pack import Pack
from icnfs.volume.recover import recover
from icnfs.volume.volume import Volume, open_volume
from tests.volume.world import NAMES, Machine, World, believed, describe, get_file, put_file

DATA = os.urandom(3_000_000)
SMALL = b"a small file"


@pytest.fixture
def wide(tmp_path: Path) -> World:
    """Seven providers for six shares."""
    return World(tmp_path, more=("gnu",))


async def write(volume: Volume) -> None:
    """In two segments, of which one at least has a share with each of seven providers."""
    await put_file(volume, b"f", DATA)
    await volume.publisher.publish()
    await put_file(volume, b"small", SMALL)
    await volume.sync()


async def look(volume: Volume) -> None:
    assert await get_file(volume, b"f") == DATA
    assert await get_file(volume, b"small") == SMALL


def segments(volume: Volume) -> list[SegmentInfo]:
    """All that the local state and the last head name."""
    ids = list(volume.repair._held)
    found = [volume._segment(id) for id in ids]
    assert None not in found
    return [segment for segment in found if segment is not None]


def drained(machine: Machine, *names: str) -> Mapping[str, ProviderFacts]:
    facts = machine.config().providers
    return {name: replace(one, drain=name in names) for name, one in facts.items()}


def recovered(world: World, key: str, *lost: str, **changes: object) -> None:
    """The volume is whole on another machine, without those that are lost."""
    world.away(*lost)
    there = world.machine(f"there-without-{'-'.join(lost)}")
    there.recover(key)
    there.run(look)
    world.away()


# --- past a provider that fails ---------------------------------------------------------------------------------------


def test_what_a_provider_does_not_take_goes_to_a_spare_one_before_the_head(wide: World) -> None:
    here = wide.machine()
    key = here.init().recovery_key
    wide.providers["cat"].read_only = True

    async def main(volume: Volume) -> None:
        await write(volume)
        assert not volume.repair.lacking
        assert all(segment.stored() == 6 for segment in segments(volume))
        published = [part for run in volume.publisher.head.runs for part in run.segments()]  # type: ignore[union-attr]
        assert all(part.stored() == 6 for part in published)

    here.run(main)
    recovered(wide, key, "ada", "bee")


def test_without_a_spare_provider_the_volume_is_degraded_and_says_so(world: World) -> None:
    here = world.machine()
    here.init()
    world.providers["cat"].read_only = True

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        with pytest.raises(DegradedError, match="cat lacks"):
            await volume.sync(deadline=2)
        assert volume.status().degraded
        world.providers["cat"].read_only = False
        await volume.sync()
        assert not volume.status().degraded

    here.run(main)


class Counting(MemoryProvider):
    """Counts the shares that it is sent."""

    sent = 0

    async def put(self, name: str, data: Data) -> None:
        self.sent += name.startswith(SHARES_PREFIX)
        await super().put(name, data)


def test_one_that_refuses_to_store_is_passed_by_and_tried_again_after_a_while(wide: World) -> None:
    cat = wide.providers["cat"] = Counting("cat", capacity=1 << 40, pool="one")
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        await volume.repair.round()
        cat.sent, cat.read_only = 0, True
        began = trio.current_time()
        count = 0
        while trio.current_time() < began + 4:  # less than the first gap
            await put_file(volume, b"more", os.urandom(200_000))
            await volume.sync()
            count += 1
        assert count >= 10 and cat.sent <= 3, "of those that were sent at once"
        shown = {one.name: one for one in volume.status().providers}["cat"]
        assert (shown.state, shown.error) == ("refusing", "it is read-only")
        assert not volume.repair.lacking
        assert volume.network.away() == {"cat"}
        cat.read_only = False
        while "cat" in volume.network.away():
            await trio.sleep(0.05)
        cat.sent = 0
        while {one.name: one for one in volume.status().providers}["cat"].state != "up":
            await put_file(volume, b"more", os.urandom(200_000))
            await volume.sync()
        assert cat.sent

    here.run(main)


class Overloaded(Counting):
    """Answers everything, and fails whatever it is to store."""

    fails = False

    async def put(self, name: str, data: Data) -> None:
        await super().put(name, data)
        if self.fails:
            raise ProviderAwayError(self.name, "503 SlowDown")

    async def put_new(self, name: str, data: Data) -> bool:
        await self.put(name, data)
        return True


def test_one_that_fails_to_store_and_answers_all_else_is_passed_by(wide: World) -> None:
    cat = wide.providers["cat"] = Overloaded("cat", capacity=1 << 40, pool="one")
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        await volume.repair.round()
        cat.sent, cat.fails = 0, True
        began = trio.current_time()
        count = 0
        while trio.current_time() < began + 4:
            await put_file(volume, b"more", os.urandom(200_000))
            await volume.sync()
            count += 1
            assert not volume.status().degraded
            shown = {one.name: one for one in volume.status().providers}["cat"]
            assert not cat.sent or (shown.state, shown.error) == ("refusing", "503 SlowDown")
        assert count >= 4 and 2 <= cat.sent <= 6, "two, and one after 1, 3 and 7 seconds"

    here.run(main)


@pytest.mark.parametrize("own", [True, False])
def test_what_a_rate_holds_back_is_not_given_up(own: bool, wide: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be sent again and again, and never be there."""
    monkeypatch.setattr(stow, "UPLOAD_SECONDS", 1.0)
    monkeypatch.setattr(repair, "COMPLETE_SECONDS", 1.0)
    rate = 250_000
    facts = wide.config.providers
    slow = {name: replace(one, upload=rate, download=rate) for name, one in facts.items()}
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        began = trio.current_time()
        await volume.sync(deadline=50)
        assert trio.current_time() - began > 2, "held back for longer than an upload may take"
        moved = {name: replace(one, drain=name == "cat") for name, one in volume.network.facts.items()}
        await volume.adopt(replace(volume.config, providers=moved))
        while "cat" in volume.holdings():  # the mount's own round may have been quicker
            await volume.care_once()

    if own:
        here.run(main, providers=slow)
    else:
        here.run(main, upload=6 * rate, download=4 * rate)


def test_too_few_that_take_shares_are_named_with_what_each_answers(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        for name in ("cat", "dog", "eel"):
            world.providers[name].read_only = True
        await put_file(volume, b"f", DATA)
        for _ in range(2):  # at first it is learned, then it is known
            with pytest.raises(DegradedError, match=r"provider dog[a-z ]*: it is read-only"):
                await volume.sync(deadline=1)

    here.run(main)


def test_sync_has_put_a_head_that_knows_where_repaired_shares_lie(world: World) -> None:
    """Else a recovery would look for them in vain, and bear fewer losses than were promised."""
    here = world.machine()
    key = here.init().recovery_key
    world.away("cat", "dog")

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await put_file(volume, b"small", SMALL)
        with pytest.raises(DegradedError):
            await volume.sync(deadline=1)
        world.away()
        await volume.sync()

    here.run(main)
    recovered(world, key, "ada", "fox")


def test_a_local_copy_is_kept_while_a_holder_cannot_give_it_back(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        assert all(map(volume.store.is_safe, segments(volume)))
        world.away("eel")
        await volume.first_look()
        assert not any(map(volume.store.is_safe, segments(volume)))

    here.run(main)


def test_late_shares_are_waited_for_and_not_sent_again(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        segment = max(segments(volume), key=lambda s: s.share_len)
        lacking = replace_stored(segment, 2, False)
        await describe(volume, lacking)
        volume.repair.expect(segment.id, [2], Counter())
        assert not await volume.care_once(), "it is on its way"
        provider, name = segment.shares[2].provider, volume.network.names_of(segment)[2]
        volume.repair.heard(ShareEvent(provider, name, segment.id, 2, "stored", ""))
        assert await volume.care_once()
        assert volume._segment(segment.id) == segment
        assert volume.publisher.owes_head

    here.run(main)


def test_what_is_in_most_danger_is_restored_first(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        for name in (b"a", b"b", b"c"):
            await put_file(volume, name, os.urandom(300_000))
            await volume.sync()
        for missing, segment in zip((1, 2, 1), segments(volume), strict=False):
            lacking = segment
            for index in range(missing):
                lacking = replace_stored(lacking, index, False)
            await describe(volume, lacking)
        left = [segment.stored() for segment in volume.repair._waiting()]
        assert left == [4, 5, 5]

    here.run(main)


def test_a_late_share_may_be_told_of_before_it_is_expected(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        segment = max(segments(volume), key=lambda s: s.share_len)
        await describe(volume, replace_stored(segment, 2, False))
        volume.repair.heard(ShareEvent(segment.shares[2].provider, "x", segment.id, 2, "failed", "it broke off"))
        volume.repair.expect(segment.id, [2], Counter())
        assert await volume.care_once(), "it did not come, and is rebuilt"
        assert volume._segment(segment.id) == segment

    here.run(main)


def test_a_late_share_does_not_count_whose_place_was_emptied_before_its_answer_came(world: World) -> None:
    here = world.machine()
    here.init()
    slow = world.providers["cat"]
    put, landed, go_on = slow.put, trio.Event(), trio.Event()

    async def put_and_answer_late(name: str, data: Data) -> None:
        await put(name, data)
        if len(data) > len(DATA) // 4:
            landed.set()
            await go_on.wait()

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await volume.looked.wait()
        slow.put = put_and_answer_late  # type: ignore[method-assign]
        await put_file(volume, b"f", DATA)
        await volume.drain()
        assert len(volume.repair._late) == 1 and landed.is_set()
        slow.objects.clear()
        volume.network.doubt("cat")
        await volume.publisher.settle()
        assert "cat" in volume.network.taken, "it is taken anew"
        go_on.set()
        while volume.repair._late:
            await trio.sleep(0.001)
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)


def test_a_share_that_was_told_of_early_does_not_count_whose_place_was_emptied_since_it_was_sent(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        segment = max(segments(volume), key=lambda s: s.share_len)
        provider, sent = segment.shares[2].provider, volume.repair.emptied.times.copy()
        volume.repair.lose([provider])
        volume.repair.heard(ShareEvent(provider, "x", segment.id, 2, "stored", ""))
        volume.repair.expect(segment.id, [2], sent)
        await describe(volume, replace_stored(segment, 2, False))
        assert volume.repair.arrivals() == []

    here.run(main)


def test_a_late_share_that_comes_before_the_records_are_written_costs_no_other_head(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world.machine()
    here.init()
    slow, put_packs = world.providers["cat"], Attempt._put_packs
    put, go_on, late = slow.put, trio.Event(), 0

    async def put_late(name: str, data: Data) -> None:
        if len(data) > len(DATA) // 4:
            await go_on.wait()
        await put(name, data)

    async def main(volume: Volume) -> None:
        async def put_packs_and_wait(attempt: Attempt, planned: Iterable[Pack], cut: PublishCut) -> None:
            nonlocal late
            await put_packs(attempt, planned, cut)
            late = len(volume.repair._late)
            go_on.set()
            while not volume.repair._come:
                await trio.sleep(0.001)

        monkeypatch.setattr(Attempt, "_put_packs", put_packs_and_wait)
        await put_file(volume, b"f", DATA)
        await volume.publisher.publish()
        assert not volume.repair.lacking and not volume.repair._come and not volume.publisher.owes_head
        assert all(segment.stored() == segment.n for segment in segments(volume))

    slow.put = put_late  # type: ignore[method-assign]
    here.run(main)
    assert late == 1


def replace_stored(segment: SegmentInfo, index: int, stored: bool) -> SegmentInfo:
    import msgspec

    shares = list(segment.shares)
    shares[index] = msgspec.structs.replace(shares[index], stored=stored)
    return msgspec.structs.replace(segment, shares=tuple(shares))


# --- out of a provider that is drained --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ada", "fox"])
def test_a_drained_provider_is_left_with_nothing_of_the_volume(wide: World, name: str) -> None:
    here = wide.machine()
    key = here.init().recovery_key
    here.run(write)
    told: list[LeaveProgress] = []

    async def leave(volume: Volume) -> None:
        await volume.loaded.wait()
        before = volume.holdings()[name]
        result = await volume.leave(name, 30, told.append)
        assert (result.shares, result.bytes) == (before.segments, before.bytes)
        assert (result.left, result.unreachable) == (0, "")
        assert name not in volume.holdings()
        assert all(segment.stored() == 6 for segment in segments(volume))
        await put_file(volume, b"after", b"more")
        await volume.sync()
        await volume.publisher.settle()
        await look(volume)

    here.run(leave, providers=drained(here, name))
    assert not wide.providers[name].objects
    assert told[-1].shares_left == 0 and told[-1].moved_bytes == told[-1].total_bytes > 0
    wide.config = replace(
        wide.config, providers={other: one for other, one in wide.config.providers.items() if other != name}
    )
    del wide.providers[name]
    recovered(wide, key, *[other for other in NAMES if other != name][:2])


def test_a_dead_provider_is_left_by_rebuilding_and_what_lies_there_is_said_to_stay(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)
    wide.away("dog")

    async def leave(volume: Volume) -> None:
        result = await volume.leave("dog", 30)
        assert "dog" in result.unreachable
        assert all(segment.stored() == 6 for segment in segments(volume))
        assert "dog" not in volume.holdings()

    here.run(leave, providers=drained(here, "dog"))


def test_leaving_needs_a_place_for_what_leaves_and_says_what_would_make_one(world: World) -> None:
    here = world.machine()
    here.init()
    here.run(write)

    async def leave(volume: Volume) -> None:
        with pytest.raises(ConfigError):
            await volume.leave("dog", 30)
        assert all(segment.stored() == 6 for segment in segments(volume))

    here.run(leave, providers=drained(here, "dog"))

    async def not_drained(volume: Volume) -> None:
        with pytest.raises(UsageError, match="not being drained"):
            await volume.leave("dog", 30)

    here.run(not_drained)


def test_other_peoples_objects_are_left_alone(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)
    wide.providers["bee"].objects["others/thing"] = b"not ours"

    async def leave(volume: Volume) -> None:
        assert (await volume.leave("bee", 30)).left == 1, list(wide.providers["bee"].objects)

    here.run(leave, providers=drained(here, "bee"))
    assert list(wide.providers["bee"].objects) == ["others/thing"]


def test_one_that_keeps_what_it_deletes_is_told_of_however_often_it_is_left(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)
    delete = wide.providers["bee"].delete

    async def hide(name: str) -> bool:
        await delete(name)
        return True

    async def leave(volume: Volume) -> None:
        wide.providers["bee"].delete = hide  # type: ignore[method-assign]
        for _ in range(2):
            result = await volume.leave("bee", 30)
            assert result.kept and not result.unreachable

    here.run(leave, providers=drained(here, "bee"))


@pytest.mark.parametrize("lie", ["keeps", "hides"])
def test_nothing_is_said_to_be_left_only_where_the_listing_shows_it(wide: World, lie: str) -> None:
    here = wide.machine()
    here.init()
    here.run(write)
    bee = wide.providers["bee"]
    delete, listing = bee.delete, bee.list
    lying = True

    async def keep(name: str) -> bool:
        return False if lying else await delete(name)

    async def hide(prefix: str, after: str = "") -> list[str]:
        return [] if lying else await listing(prefix, after)

    async def leave(volume: Volume) -> None:
        nonlocal lying
        await volume.loaded.wait()
        if lie == "keeps":
            bee.delete = keep  # type: ignore[method-assign]
        else:
            bee.list = hide  # type: ignore[method-assign]
        result = await volume.leave("bee", 30)
        assert ("it lists" if lie == "keeps" else "its listing hides") in result.unreachable
        assert marker.NAME in bee.objects, "or it is not known to be ours any more"
        lying = False
        result = await volume.leave("bee", 30)
        assert not result.unreachable and not bee.objects

    here.run(leave, providers=drained(here, "bee"))


def test_key_slots_go_to_a_provider_that_has_none(wide: World) -> None:
    here = wide.machine()
    wide.config = replace(
        wide.config, providers={name: one for name, one in wide.config.providers.items() if name != "gnu"}
    )
    here.init()
    here.run(write)
    before = sum(map(len, wide.objects("slots/").values()))
    wide.config = World(wide.root, more=("gnu",)).config

    async def leave(volume: Volume) -> None:
        await volume.publisher.settle()
        assert (await volume.leave("cat", 30)).unreachable == ""

    here.run(leave, providers=drained(here, "cat"))
    assert sum(map(len, wide.objects("slots/").values())) == before
    assert wide.objects("slots/")["gnu"]


# --- back under a policy ----------------------------------------------------------------------------------------------


def test_segments_out_of_policy_are_told_queued_and_moved(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)
    policy = Policy(excluded_parents=frozenset({"NL"}))

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        report = volume.policy_report()
        assert [verdict.name for verdict in report.providers if verdict.objection] == ["eel"]
        assert report.obstacle == ""
        while not volume.repair.idle:
            await volume.care_once()
        after = volume.policy_report()
        assert (after.clean, after.queued, after.breaches) == (after.segments, 0, ())
        assert "eel" not in volume.holdings()
        await look(volume)

    here.run(main, policy=policy)


def test_a_policy_that_cannot_be_met_moves_nothing_and_names_the_change(world: World) -> None:
    here = world.machine()
    here.init()
    here.run(write)

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        before = segments(volume)
        report = volume.policy_report()
        assert report.queued == report.segments > 0
        assert "DE" in report.obstacle or "max_per_country" in report.obstacle
        assert not await volume.care_once()
        assert segments(volume) == before

    here.run(main, policy=Policy(max_per_country=1))


# --- a TOML that was read again ---------------------------------------------------------------------------------------


def test_a_mount_takes_over_new_providers_and_policy_and_lets_old_ones_go(tmp_path: Path) -> None:
    world = World(tmp_path, more=("gnu", "hen"))
    whole = world.config.providers
    here = world.machine()
    world.config = replace(world.config, providers={name: whole[name] for name in NAMES})
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        assert not world.providers["gnu"].objects
        await volume.loaded.wait()
        await volume.adopt(replace(world.config, providers=whole, policy=Policy(excluded_parents=frozenset({"AT"}))))
        assert "gnu" in volume.network.taken, "its empty place is taken at once"
        assert {p.name for p in volume.status().providers} == set(whole)
        while not volume.repair.idle:
            await volume.care_once()
        await volume.sync()
        assert "ada" not in volume.holdings()
        slim = replace(volume.config, providers={name: one for name, one in whole.items() if name != "ada"})
        await volume.adopt(slim)
        assert "ada" not in volume.network.facts
        await volume.sync()
        held = {name for name, slots in world.objects("slots/").items() if slots}
        assert held == {*NAMES, "gnu"}, "who is removed leaves the key's copy to one that has none"
        with pytest.raises(ConfigError, match=r"bee holds .* drain it"):
            await volume.adopt(
                replace(slim, providers={name: one for name, one in slim.providers.items() if name != "bee"})
            )
        with pytest.raises(ConfigError, match=r"cache\.clean"):
            await volume.adopt(replace(slim, cache_clean=1 << 30))
        await put_file(volume, b"more", DATA)
        await volume.sync()
        await look(volume)

    here.run(main)


# --- one name, two heads ----------------------------------------------------------------------------------------------


def test_a_copy_of_this_very_mount_is_found_out_by_the_name_of_a_head(world: World) -> None:
    """A virtual machine restored while it was mounted goes on with the same claim: only the name can tell."""
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        head = volume.publisher.head
        assert head is not None
        claim = volume.fence.claim
        await put_file(volume, b"g", b"one future")
        await volume.sync()
        volume.fence.base, volume.fence.claim = head, claim
        volume.publisher._runs = head.runs
        await put_file(volume, b"h", b"another future")
        with pytest.raises(FencedError):
            await volume.sync()
        await trio.sleep(0)

    here.run(main)


def test_what_is_found_lost_while_a_segment_is_restored_stays_lost(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        segment = max(segments(volume), key=lambda s: s.share_len)
        await describe(volume, replace_stored(segment, 2, False))
        restore = volume.repair._restore

        async def lose_another(segment: SegmentInfo, to: dict[int, str]) -> SegmentInfo:
            restored = await restore(segment, to)
            await describe(volume, replace_stored(segment, 4, False))
            return restored

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(volume.repair, "_restore", lose_another)
            assert await volume.care_once()
        assert volume._segment(segment.id) == replace_stored(segment, 4, False)
        assert await volume.care_once()
        assert volume._segment(segment.id) == segment

    here.run(main)


def test_a_share_that_was_restored_to_a_place_before_it_was_emptied_is_not_believed_in(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        segment = max(segments(volume), key=lambda s: s.share_len)
        provider = segment.shares[2].provider
        await describe(volume, replace_stored(segment, 2, False))
        restore = volume.repair._restore

        async def empty(segment: SegmentInfo, to: dict[int, str]) -> SegmentInfo:
            restored = await restore(segment, to)
            world.providers[provider].objects.clear()
            volume.network.doubt(provider)
            await volume.publisher.settle()
            return restored

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(volume.repair, "_restore", empty)
            await volume.care_once()
        assert volume._segment(segment.id) == replace_stored(segment, 2, False)
        await volume.sync()
        assert volume._segment(segment.id) == segment
        assert volume.network.names_of(segment)[2] in world.providers[provider].objects

    here.run(main)


def test_what_others_gained_is_noted_though_a_place_was_emptied_meanwhile(world: World) -> None:
    """One that shows itself empty again and again must not keep the rest from being mended."""
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        segment = max(segments(volume), key=lambda s: s.share_len)
        liar = segment.shares[2].provider
        lacking = replace_stored(replace_stored(segment, 2, False), 3, False)
        await describe(volume, lacking)
        restore = volume.repair._restore

        async def empty(segment: SegmentInfo, to: dict[int, str]) -> SegmentInfo:
            restored = await restore(segment, to)
            world.providers[liar].objects.clear()
            volume.network.doubt(liar)
            await volume.publisher.settle()
            return restored

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(volume.repair, "_restore", empty)
            assert await volume.care_once()
        assert volume._segment(segment.id) == replace_stored(segment, 2, False)

    here.run(main)


def test_a_place_that_is_emptied_again_and_again_is_taken_ever_later(world: World) -> None:
    here = world.machine()
    here.init()
    fox = world.providers["fox"]

    async def emptied(volume: Volume) -> bool:
        """Whether it is in use again at once."""
        fox.objects.clear()
        volume.network.doubt("fox")
        await volume.publisher.settle()
        return "volume" in fox.objects

    async def main(volume: Volume) -> None:
        await write(volume)
        now = trio.current_time()
        volume.publisher.emptied.now = lambda: now
        assert [await emptied(volume) for _ in range(3)] == [True, True, False]
        assert all(s.provider != "fox" or not s.stored for each in segments(volume) for s in each.shares)
        for wait in (60, 120, 240):
            now += wait - 1
            await volume.publisher.settle()
            assert not fox.objects
            now += 1
            await volume.publisher.settle()
            assert "volume" in fox.objects
            assert not await emptied(volume)
        now += 480
        await volume.sync()
        assert all(s.stored for each in segments(volume) for s in each.shares)

    here.run(main)


def test_what_was_stored_at_a_place_after_it_was_emptied_is_not_given_up_where_it_is_needed(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    data = os.urandom(300_000)

    async def main(volume: Volume) -> None:
        await volume.looked.wait()
        world.away("eel", "fox")
        await volume.network.wake()
        world.providers["cat"].objects.clear()
        await put_file(volume, b"f", data)
        with pytest.raises(DegradedError):
            await volume.sync(1.0)
        world.away()
        await volume.sync()

    here.run(main)
    there = world.machine("there")
    there.recover(key)
    assert there.run(lambda volume: get_file(volume, b"f")) == data


def without(machine: Machine, name: str) -> VolumeConfig:
    config = machine.world.config
    return replace(config, providers={other: one for other, one in config.providers.items() if other != name})


def test_a_provider_that_is_removed_while_its_place_is_looked_at_is_forgotten(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)

    async def remove(volume: Volume) -> None:
        await volume.loaded.wait()
        await volume.leave("cat", 30)
        listing, started, go_on = wide.providers["cat"].list, trio.Event(), trio.Event()

        async def slow(*args: Any, **more: Any) -> Any:
            started.set()
            await go_on.wait()
            return await listing(*args, **more)

        wide.providers["cat"].list = slow  # type: ignore[method-assign]
        await put_file(volume, b"more", b"y")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.publisher.publish)
            await started.wait()
            nursery.start_soon(volume.adopt, without(here, "cat"))
            while "cat" in volume.network.facts:
                await trio.sleep(0.01)
            go_on.set()
        await put_file(volume, b"still more", b"y")
        await volume.sync()

    here.run(remove, providers=drained(here, "cat"))


def test_a_doubt_about_a_provider_that_is_removed_is_forgotten(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)
    wide.away("cat")

    async def remove(volume: Volume) -> None:
        await volume.loaded.wait()
        await volume.leave("cat", 30)
        seen = volume.network.doubt("cat")
        await volume.adopt(without(here, "cat"))
        assert seen.is_set() and not volume.network.doubted
        await put_file(volume, b"more", b"y")
        await volume.sync()

    here.run(remove, providers=drained(here, "cat"))


def test_a_machine_that_is_overtaken_while_it_leaves_deletes_nothing_more(wide: World) -> None:
    here = wide.machine()
    key = here.init().recovery_key
    there = wide.machine("there")
    there.secrets = Secrets(recovery=parse_recovery_key(key))

    async def take_over() -> None:
        await recover(there.config(), there.state_dir, there.secrets, start=wide.start)
        async with open_volume(there.config(), there.state_dir, there.secrets, start=wide.start) as volume:
            await volume.looked.wait()
            await write(volume)

    held: set[str] = set()

    async def leave(volume: Volume) -> None:
        await write(volume)
        listing = volume.network.transfer.list_objects

        async def listed(provider: str, prefix: str, *more: Any, **options: Any) -> Any:
            if provider == "cat" and prefix.startswith("shares/") and not held:
                await take_over()
                held.update(wide.providers["cat"].objects)
            return await listing(provider, prefix, *more, **options)

        volume.network.transfer.list_objects = listed  # type: ignore[method-assign]
        with pytest.raises(FencedError):
            await volume.leave("cat", 30)

    here.run(leave, providers=drained(here, "cat"))
    assert any(name.startswith("shares/") for name in held)
    assert held <= set(wide.providers["cat"].objects)


def test_a_sync_does_not_wait_for_a_drain(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)

    async def sync(volume: Volume) -> None:
        await volume.loaded.wait()
        rounds = 0

        async def care() -> bool:
            nonlocal rounds
            rounds += 1
            return False

        volume.care_once = care  # type: ignore[method-assign]
        for name in (b"more", b"and more"):  # of the first the one that is drained gets no head: it lacks the base then
            await put_file(volume, name, b"y")
            await volume.sync(10.0)
        assert rounds == 0

    here.run(sync, providers=drained(here, "cat"))


def test_a_provider_is_left_while_as_many_others_are_silent_as_may_be(wide: World) -> None:
    here = wide.machine()
    here.init()
    here.run(write)

    async def leave(volume: Volume) -> None:
        await volume.loaded.wait()
        while volume.holdings().get("cat"):
            await volume.care_once()
        await volume.sync()
        wide.away("ada", "bee")
        result = await volume.leave("cat", 30)
        assert (result.left, result.unreachable) == (0, "")

    here.run(leave, providers=drained(here, "cat"))
    assert not wide.providers["cat"].objects


# --- shares that are missing ------------------------------------------------------------------------------------------


def test_what_has_come_says_nothing_of_what_is_lost_later(world: World) -> None:
    here = world.machine()
    here.init()
    here.run(write)

    async def body(volume: Volume) -> None:
        await volume.loaded.wait()
        segment = segments(volume)[0]
        without = replace_stored(segment, 2, False)
        fixer = repair.Repair(volume.network)
        fixer.expect(segment.id, [2], Counter())
        fixer.note([without])
        fixer.heard(ShareEvent(segment.shares[2].provider, "x", segment.id, 2, "stored", ""))
        fixer.note([segment])
        fixer.note([without])
        assert fixer.arrivals() == []

    here.run(body)


def test_a_share_comes_home_only_where_no_owner_holds_too_many_then(wide: World) -> None:
    """Providers turn out to have one owner, and a share of one of them is missing."""
    here = wide.machine()
    here.init()
    here.run(write)
    facts = here.config().providers
    together = ("ada", "bee", "cat", "dog")
    one = {name: replace(each, owner="one" if name in together else each.owner) for name, each in facts.items()}

    async def body(volume: Volume) -> None:
        await volume.loaded.wait()
        for segment in segments(volume):
            at = [index for index, share in enumerate(segment.shares) if share.provider in together]
            without = replace_stored(segment, at[-1], False)
            to = volume.repair._destinations(without)
            stored = {share.provider for share in without.shares if share.stored} | set(to.values())
            moved = {segment.shares[index].provider for index in to if without.shares[index].stored}
            assert len((stored - moved) & set(together)) < 4, "four shares are enough to read all"

    here.run(body, providers=one)


def test_a_slow_provider_costs_a_sync_no_more_heads_and_a_recovery_finds_what_came_late(world: World) -> None:
    """It is within its patience for nothing: each run's share comes late, too."""
    slow = world.providers["bee"]
    put, put_new = slow.put, slow.put_new
    here = world.machine()
    key = here.init().recovery_key

    async def late_put(name: str, data: Data) -> None:
        await trio.sleep(2 * PATIENCE_SECONDS)
        await put(name, data)

    async def late_put_new(name: str, data: Data) -> None:
        await trio.sleep(2 * PATIENCE_SECONDS)
        await put_new(name, data)

    async def main(volume: Volume) -> None:
        slow.put, slow.put_new = late_put, late_put_new  # type: ignore[method-assign,assignment]
        await put_file(volume, b"f", b"x" * 300_000)
        before = len(world.objects("heads/")["ada"])
        await volume.sync(deadline=30)
        assert len(world.objects("heads/")["ada"]) - before <= 2
        assert not volume.repair.lacking

    here.run(main)
    slow.put, slow.put_new = put, put_new  # type: ignore[method-assign]
    world.lose("cat", "dog")
    there = world.machine("there")
    there.recover(key)
    assert there.run(lambda volume: get_file(volume, b"f")) == b"x" * 300_000
