"""Providers whose place becomes another under a volume: nothing is counted as held, or deleted, that is not its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from icnfs.config.volume import VolumeConfig
from icnfs.errors import (
    ConfigError,
    ProviderAwayError,
    ProviderLiesError,
    TooFewProvidersError,
)
from icnfs.format.segment import SegmentInfo
from icnfs.providers.base import Data
from icnfs.providers.memory import MemoryProvider
from icnfs.volume.network import SHARES_PREFIX
from icnfs.volume.volume import Volume
from tests.volume.world import World, believed, get_file, put_file

DATA = os.urandom(3_000_000)


@pytest.fixture
def wide(tmp_path: Path) -> World:
    """Seven providers for six shares."""
    return World(tmp_path, more=("gnu",))


def changed(config: VolumeConfig, name: str, **facts: Any) -> VolumeConfig:
    return replace(config, providers={**config.providers, name: replace(config.providers[name], **facts)})


def empty(name: str) -> MemoryProvider:
    return MemoryProvider(name, capacity=1 << 40, pool="one")


async def moved(world: World, volume: Volume, place: MemoryProvider) -> None:
    """The TOML names another place for `dog`, and the mount takes that over."""
    world.providers["dog"] = place
    await volume.adopt(changed(volume.config, "dog", url="file:///elsewhere"))


def test_who_is_left_at_a_place_of_somebody_elses_deletes_nothing_there(tmp_path: Path) -> None:
    ours, other = World(tmp_path / "ours", more=("gnu",)), World(tmp_path / "other")
    here, there = ours.machine(), other.machine()
    here.init()
    there.init()

    async def write(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()

    there.run(write)
    here.run(write)
    before = dict(other.providers["dog"].objects)

    async def leave(volume: Volume) -> None:
        """Swapped while it is mounted and known to be ours."""
        await volume.looked.wait()
        await volume.loaded.wait()
        own = ours.providers["dog"].objects
        ours.providers["dog"].objects = other.providers["dog"].objects
        await volume.adopt(changed(volume.config, "dog", drain=True))
        result = await volume.leave("dog", 30)
        assert "another volume" in result.unreachable
        assert other.providers["dog"].objects == before
        ours.providers["dog"].objects = own
        result = await volume.leave("dog", 30)
        assert (result.unreachable, own) == ("", {})

    here.run(leave)


def test_a_provider_whose_objects_are_being_deleted_is_not_used_again(wide: World) -> None:
    here = wide.machine()
    here.init()
    dog = wide.providers["dog"]
    begun, go_on = trio.Event(), trio.Event()
    delete = dog.delete

    async def slowly(name: str) -> None:
        begun.set()
        await go_on.wait()
        await delete(name)

    async def main(volume: Volume) -> None:
        for number in range(3):
            await put_file(volume, b"%d" % number, DATA[:900_000])
            await volume.sync()
        config = volume.config
        await volume.adopt(changed(config, "dog", drain=True))
        dog.delete = slowly  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.leave, "dog", 30)
            await begun.wait()
            for wrong in (
                config,
                changed(config, "dog", drain=True, url="file:///other"),
                replace(config, providers={name: one for name, one in config.providers.items() if name != "dog"}),
            ):
                with pytest.raises(ConfigError, match="what lies at provider dog is being deleted"):
                    await volume.adopt(wrong)
            go_on.set()
        assert not dog.objects
        await volume.adopt(config)
        await volume.sync()
        assert "dog" in volume.network.homes and believed(wide, volume) == []

    here.run(main)


def test_a_late_share_that_ends_at_the_old_place_is_not_held_at_the_new(world: World) -> None:
    here = world.machine()
    here.init()
    old = world.providers["dog"]
    put, go_on, ended = old.put, trio.Event(), trio.Event()

    async def slowly(name: str, data: Data) -> None:
        late = name.startswith(SHARES_PREFIX) and len(data) > 200_000
        if late:
            await go_on.wait()
        await put(name, data)
        if late:
            ended.set()

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        old.put = slowly  # type: ignore[method-assign]
        await put_file(volume, b"f", DATA)
        await volume.drain()
        assert volume.repair._late
        await moved(world, volume, empty("dog"))
        go_on.set()
        await ended.wait()
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)


def test_a_place_that_was_taken_without_an_answer_and_then_replaced_holds_nothing(world: World) -> None:
    here = world.machine()
    here.init()
    old = world.providers["dog"]
    put = old.put

    async def unheard(name: str, data: Data) -> None:
        await put(name, data)
        if name == "volume":
            old.away = True
            raise ProviderAwayError("dog", "the answer was lost")

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        old.objects.clear()
        old.put = unheard  # type: ignore[method-assign]
        volume.network.doubt("dog")
        await volume.publisher.settle()
        assert old.away
        old.put, old.away = put, False  # type: ignore[method-assign]
        await volume.sync()
        assert [name for name in old.objects if name.startswith("slots/")], "it is given its key slot all the same"
        await moved(world, volume, empty("dog"))
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)


def test_nothing_more_is_sent_to_a_place_that_is_to_become_another(wide: World) -> None:
    """From before transfer knows the other place until that was looked at, whatever was meant for this one."""
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        segment = max(filter(None, map(volume._segment, volume.repair.ids())), key=lambda s: s.share_len)
        (spare,) = wide.providers.keys() - {share.provider for share in segment.shares}
        volume.repair._waiting = lambda: iter([segment])  # type: ignore[method-assign]
        volume.repair._destinations = lambda _: {0: spare}  # type: ignore[method-assign]
        change, gained = volume.network.transfer.set_providers, 0

        async def changed_and_sent(*args: Any) -> None:
            nonlocal gained
            await change(*args)
            gained += len(await volume.repair.round())

        volume.network.transfer.set_providers = changed_and_sent  # type: ignore[method-assign]
        wide.providers[spare] = other = empty(spare)
        await volume.adopt(changed(volume.config, spare, url="file:///elsewhere"))
        assert gained == 0 and not [name for name in other.objects if name.startswith(SHARES_PREFIX)]

    here.run(main)


def test_what_was_stored_elsewhere_meanwhile_is_not_held_at_a_place_that_comes_back(world: World) -> None:
    here = world.machine()
    here.init()
    old, other = world.providers["dog"], empty("dog")

    async def main(volume: Volume) -> None:
        await put_file(volume, b"one", DATA[:500_000])
        await volume.sync()
        config = volume.config
        await moved(world, volume, other)
        await put_file(volume, b"two", DATA)
        await volume.sync()
        world.providers["dog"] = old
        await volume.adopt(config)
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)


def test_a_place_that_moved_with_all_it_holds_is_sent_nothing_again(world: World) -> None:
    here = world.machine()
    here.init()
    new = empty("dog")

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.sync()
        new.objects = dict(world.providers["dog"].objects)
        shares = {name: data for name, data in new.objects.items() if name.startswith(SHARES_PREFIX)}
        sent: list[str] = []
        put = new.put

        async def counted(name: str, data: Data) -> None:
            sent.append(name)
            await put(name, data)

        new.put = counted  # type: ignore[method-assign]
        await moved(world, volume, new)
        await volume.sync()
        assert not volume.network.unsure and not shares.keys() & set(sent)
        assert believed(world, volume) == []

    here.run(main)


def test_sync_waits_until_what_a_provider_held_that_the_toml_no_longer_names_is_elsewhere(wide: World) -> None:
    """No share of it is missing: its table was taken out between two mounts."""
    here = wide.machine()
    key = here.init().recovery_key

    async def write(volume: Volume) -> None:
        for number in range(3):
            await put_file(volume, b"%d" % number, DATA)
            await volume.sync()

    async def again(volume: Volume) -> None:
        await volume.sync()
        assert "dog" not in volume.holdings()

    async def read(volume: Volume) -> None:
        for number in range(3):
            assert await get_file(volume, b"%d" % number) == DATA

    here.run(write)
    config = wide.config
    wide.config = replace(config, providers={name: one for name, one in config.providers.items() if name != "dog"})
    here.run(again)
    wide.lose("ada", "bee")
    there = wide.machine("there")
    there.recover(key)
    there.run(read)


def chunks(volume: Volume) -> list[SegmentInfo]:
    """Segments that records name, which stay where they are; parts of runs are stored anew."""
    found = [volume.store.segment(id) for id in volume.repair.ids()]
    return [segment for segment in found if segment is not None]


def test_owners_that_became_one_are_shown_as_a_risk_that_sync_cannot_mend(wide: World) -> None:
    here = wide.machine()
    here.init()

    async def write(volume: Volume) -> None:
        """Until both hold shares of one segment of chunks: those go round seven providers."""
        number = 0
        while not any({"dog", "eel"} <= {share.provider for share in each.shares} for each in chunks(volume)):
            number += 1
            await put_file(volume, b"%d" % number, os.urandom(300_000))
            await volume.sync()

    async def again(volume: Volume) -> None:
        await volume.sync()
        assert volume.status().degraded and volume.status().unsafe_segments

    here.run(write)
    wide.config = changed(changed(wide.config, "dog", owner="One"), "eel", owner="One")
    here.run(again)


@pytest.mark.parametrize("silent", [False, True])
def test_an_older_copy_of_a_place_is_not_believed_before_it_has_told_of_its_heads(world: World, silent: bool) -> None:
    here = world.machine()
    here.init()
    old = empty("dog")

    async def main(volume: Volume) -> None:
        await put_file(volume, b"one", DATA[:500_000])
        await volume.sync()
        old.objects = dict(world.providers["dog"].objects)
        await put_file(volume, b"two", DATA)
        await volume.sync()
        listing, failures = old.list, [ProviderLiesError("dog", "half a listing")] * 2 * silent

        async def fails(prefix: str, after: str = "") -> list[str]:
            if failures and prefix == "heads/":
                raise failures.pop()
            return await listing(prefix, after)

        old.list = fails  # type: ignore[method-assign]
        await moved(world, volume, old)
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)


def test_a_new_provider_takes_the_place_of_those_that_are_lost_for_good(world: World) -> None:
    """As many as may be are silent for ever; the new one, still empty, is not one more of them."""
    wide = World(world.root / "wide", more=("gnu",))
    whole = wide.config
    wide.config = replace(whole, providers={name: one for name, one in whole.providers.items() if name != "gnu"})
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await put_file(volume, b"f", DATA)
        await volume.sync()
        wide.lose("ada", "bee")
        await volume.network.wake()
        await volume.adopt(whole)
        await put_file(volume, b"g", DATA)
        await volume.drain(20)
        assert "gnu" in volume.network.homes
        assert any(name.startswith(SHARES_PREFIX) for name in wide.providers["gnu"].objects)
        wide.lose("cat")
        with pytest.raises(TooFewProvidersError, match="do not answer to publish: ada, bee, cat"):
            await volume.publisher.settle()

    here.run(main)


def test_what_a_publish_stored_at_the_old_place_is_not_held_at_a_faithful_copy(world: World) -> None:
    """The copy was made before, and shows every head: also that of the publish, which was under way."""
    here = world.machine()
    here.init()
    old, other = world.providers["dog"], empty("dog")
    go_on, stored = trio.Event(), trio.Event()
    put_old = old.put

    def held_up(provider: MemoryProvider) -> None:
        put = provider.put

        async def slowly(name: str, data: Data) -> None:
            if name.startswith(SHARES_PREFIX):
                await go_on.wait()
            await put(name, data)

        provider.put = slowly  # type: ignore[method-assign]

    async def tell(name: str, data: Data) -> None:
        await put_old(name, data)
        if name.startswith(SHARES_PREFIX):
            stored.set()

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await put_file(volume, b"one", DATA[:500_000])
        await volume.sync()
        other.objects.update(old.objects)
        for name in ("ada", "bee", "cat"):
            held_up(world.providers[name])
        old.put = tell  # type: ignore[method-assign]
        await put_file(volume, b"two", DATA)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.sync)
            await stored.wait()
            nursery.start_soon(moved, world, volume, other)
            while "dog" not in volume.network.moved:
                await trio.sleep(0.01)
            go_on.set()
        await volume.sync()
        assert believed(world, volume) == []

    here.run(main)


def test_a_dead_provider_that_was_drained_is_doubted_no_more(wide: World) -> None:
    """Compaction waits while anything is in doubt."""
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await put_file(volume, b"f", DATA)
        await volume.sync()
        wide.lose("dog")
        await volume.adopt(changed(volume.config, "dog", drain=True))
        assert (await volume.leave("dog", 30)).unreachable
        assert not volume.network.doubted and not volume.network.clearing

    here.run(main)


def test_a_url_that_is_corrected_while_a_loss_is_noted_marks_no_place_of_somebody_elses(tmp_path: Path) -> None:
    ours, other = World(tmp_path / "ours"), World(tmp_path / "other")
    here, there = ours.machine(), other.machine()
    here.init()
    there.init()
    foreign = other.providers["dog"]
    before = dict(foreign.objects)

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await put_file(volume, b"f", DATA)
        await volume.sync()
        ours.providers["dog"].objects.clear()
        volume.network.doubt("dog")
        begun, go_on = trio.Event(), trio.Event()
        note_lost = volume.publisher._note_lost

        async def slowly(provider: str) -> None:
            await note_lost(provider)
            begun.set()
            await go_on.wait()

        volume.publisher._note_lost = slowly  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.publisher.settle)
            await begun.wait()
            nursery.start_soon(moved, ours, volume, foreign)
            while "dog" not in volume.network.foreign:
                await trio.sleep(0.01)
            go_on.set()
        assert foreign.objects == before and "dog" not in volume.network.taken

    here.run(main)


def test_a_mount_that_may_not_write_takes_over_a_toml_and_writes_nothing(world: World) -> None:
    here = world.machine()
    here.init()
    other = empty("dog")

    async def main(volume: Volume) -> None:
        await volume.loaded.wait()
        await moved(world, volume, other)
        assert not other.objects and "dog" in volume.network.vacant

    here.run(main, read_only=True)


def test_who_is_drained_gets_no_heads_and_is_not_doubted_for_want_of_them(wide: World) -> None:
    """A doubt at each publish, and at each sync, made a drain find its place unknown just when it was to be cleared."""
    here = wide.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await volume.looked.wait()
        await put_file(volume, b"f", b"1" * 1000)
        await volume.sync()
        await volume.adopt(changed(volume.config, "cat", drain=True))
        doubted: list[str] = []
        doubt = volume.network.doubt

        def spy(provider: str) -> trio.Event:
            doubted.append(provider)
            return doubt(provider)

        volume.network.doubt = spy  # type: ignore[method-assign]
        for text in (b"2", b"3"):
            await put_file(volume, b"f", text * 1000)
            await volume.sync()
            await volume.sync()
        assert doubted == []

    here.run(main)
