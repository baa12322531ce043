"""Providers that lose everything, or go back to an older state: it is noticed, told, and made good as far as can be."""

from __future__ import annotations

import logging
import os

import pytest
import trio

from icnfs.errors import DegradedError, FencedError, RolledBackError
from icnfs.volume.volume import Volume
from tests.volume.world import Machine, World, get_file, list_files, put_file

CONTENTS = {b"one": os.urandom(700_000), b"two": b"small", b"three": os.urandom(1 << 17)}


async def write_all(volume: Volume) -> None:
    for name, data in CONTENTS.items():
        await put_file(volume, name, data)
    await volume.sync()


async def read_all(volume: Volume) -> dict[bytes, bytes]:
    return {name: await get_file(volume, name) for name in list_files(volume)}


async def first_look(volume: Volume) -> None:
    """What a mount begins with, certainly done."""
    await volume.first_look()
    await volume.load_segments()


def filled(world: World) -> tuple[Machine, str]:
    here = world.machine()
    key = here.init().recovery_key
    here.run(write_all)
    return here, key


# --- down or empty ----------------------------------------------------------------------------------------------------


def test_shares_at_a_provider_that_is_down_count_as_at_risk(world: World) -> None:
    here, _ = filled(world)

    async def look(volume: Volume) -> None:
        await first_look(volume)
        assert not volume.status().degraded
        assert volume.status().lost_shares == 0
        world.away("cat", "eel")
        await first_look(volume)
        status = volume.status()
        segments = volume.store.reader.count(9) + len(volume.fence.base.segments())  # type: ignore[arg-type, union-attr]
        assert status.lost_shares == 2 * segments
        assert status.unsafe_segments == segments
        assert status.missing_shares == 0
        assert status.degraded
        world.away()
        await volume.network.wake()
        assert not volume.status().degraded

    here.run(look)


def test_right_after_a_recovery_without_two_providers_status_is_degraded(world: World) -> None:
    _, key = filled(world)
    world.lose("cat", "eel")
    there = world.machine("there")
    there.recover(key)

    async def look(volume: Volume) -> None:
        await first_look(volume)
        status = volume.status()
        assert status.degraded
        assert status.lost_shares > 0
        assert {p.name for p in status.providers if p.state == "down"} == {"cat", "eel"}

    there.run(look)


@pytest.mark.parametrize("recovering", [False, True])
def test_what_an_emptied_place_held_is_stored_there_again(world: World, recovering: bool) -> None:
    here, key = filled(world)
    before = world.objects("shares/")
    for name in ("cat", "eel"):
        world.providers[name].objects.clear()
    if recovering:
        here = world.machine("there")
        here.recover(key)

    async def mend(volume: Volume) -> None:
        await first_look(volume)
        await volume.sync()
        while volume.repair.lacking:
            await volume.care_once()
        await volume.publisher.publish()
        assert not volume.status().degraded
        assert volume.status().missing_shares == 0

    here.run(mend)
    for name in ("cat", "eel"):
        assert len(world.objects("shares/")[name]) >= len(before[name]) - 1  # of a run that was taken in
        assert world.objects("slots/")[name]
        assert world.objects("heads/")[name]
    world.lose("ada", "bee")
    last = world.machine("last")
    last.recover(key)
    assert last.run(read_all) == CONTENTS


def test_shares_of_an_emptied_place_are_missing_even_after_a_crash(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount ends right after it took the place: what it had noted before must be there."""
    here, _ = filled(world)
    world.providers["cat"].objects.clear()

    async def dies(volume: Volume) -> None:
        taken = volume.places.take
        scope = trio.CancelScope()

        async def take(provider: str) -> None:
            await taken(provider)
            scope.cancel()
            await trio.sleep_forever()

        volume.places.take = take  # type: ignore[method-assign]
        with scope:
            await volume.publisher.settle()

    async def look(volume: Volume) -> None:
        await volume.load_segments()
        assert volume.repair.lacking_at().get("cat", 0) >= 2, "segments of chunks and of runs"

    here.run(dies, read_only=True)  # its own first look would race with ours
    assert "volume" in world.providers["cat"].objects
    here.run(look, read_only=True)


# --- an overtaken machine ---------------------------------------------------------------------------------------------


def test_an_overtaken_machine_changes_no_place_and_deletes_no_slot(world: World) -> None:
    """It removed the recovery key while it was offline; meanwhile that key opened the volume elsewhere."""
    here, key = filled(world)

    async def remove(volume: Volume) -> None:
        entry = next(e for e in volume.keyring.entries() if e.kind == "recovery")
        volume.remove_key(entry.id)

    world.away(*world.providers)
    here.run(remove)
    world.away()
    world.machine("there").recover(key)
    world.providers["cat"].objects.clear()
    before = {name: dict(provider.objects) for name, provider in world.providers.items()}

    async def overtaken(volume: Volume) -> None:
        await volume.first_look()
        with pytest.raises(FencedError):
            await volume.publisher.publish()

    here.run(overtaken)
    assert {name: dict(provider.objects) for name, provider in world.providers.items()} == before
    world.machine("again").recover(key)


# --- rollback ---------------------------------------------------------------------------------------------------------


def roll_back(world: World, here: Machine) -> None:
    """All providers together go back to the state before the last publishes."""
    kept = {name: dict(provider.objects) for name, provider in world.providers.items()}

    async def more(volume: Volume) -> None:
        await put_file(volume, b"newer", b"published")
        await volume.sync()

    here.run(more)
    for name, objects in kept.items():
        world.providers[name].objects = objects


def test_a_machine_that_remembers_notices_a_rollback_and_publishes_its_records_anew(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    here, key = filled(world)
    roll_back(world, here)

    async def notice(volume: Volume) -> None:
        await put_file(volume, b"newest", b"too")
        await volume.store.flush()
        try:
            await volume.publisher.publish()
        except RolledBackError as error:
            assert volume.publisher.failure is error
        with caplog.at_level(logging.CRITICAL), pytest.raises(DegradedError):
            await volume.sync(3)  # the contents of one file are gone
        assert volume.publisher.head.runs[0].is_checkpoint  # type: ignore[union-attr]
        assert len(volume.publisher.head.runs) == 1  # type: ignore[union-attr]

    with caplog.at_level(logging.ERROR):
        here.run(notice)
    assert "went back to an older state" in caplog.text
    there = world.machine("there")
    there.recover(key)

    async def compare(volume: Volume) -> None:
        assert list_files(volume) == sorted([*CONTENTS, b"newer", b"newest"])
        for name, data in CONTENTS.items():
            assert await get_file(volume, name) == data

    there.run(compare)


def test_a_machine_that_does_not_remember_is_told_the_age_and_refuses_below_at_least(world: World) -> None:
    here, key = filled(world)

    async def number(volume: Volume) -> tuple[int, int]:
        return volume.fence.number

    roll_back(world, here)
    newest = here.run(number, read_only=True)
    there = world.machine("there")
    with pytest.raises(RolledBackError):
        there.recover(key, at_least=newest)
    found = there.recover(key)
    assert (found.epoch, found.sequence) < newest
    assert found.time_ns > 0


@pytest.mark.parametrize("withholding", [("ada", "bee"), ("dog", "fox")])
def test_the_newest_head_withheld_by_any_two_is_found_at_the_others(world: World, withholding: tuple[str, ...]) -> None:
    _, key = filled(world)
    for name in withholding:
        objects = world.providers[name].objects
        del objects[max(n for n in objects if n.startswith("heads/"))]
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all) == CONTENTS


def test_losing_too_many_at_once_is_told_as_degraded_by_sync(world: World) -> None:
    here, _ = filled(world)

    async def sync(volume: Volume) -> None:
        world.away("ada", "bee")
        await put_file(volume, b"new", b"x")
        with pytest.raises(DegradedError):
            await volume.sync(0.5)

    here.run(sync)


def test_key_slots_that_are_altered_or_gone_are_named_and_stored_anew_by_the_next_mount(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is exchanged with another provider's, which opens the volume as well as its own."""
    here, _ = filled(world)
    slots = {name: [n for n in names if n.startswith("slots/")] for name, names in world.objects("slots/").items()}
    before = {name: dict(world.providers[name].objects) for name in world.providers}
    world.providers["bee"].objects[slots["bee"][0]] = before["dog"][slots["dog"][0]]
    del world.providers["eel"].objects[slots["eel"][0]]

    async def look(volume: Volume) -> None:
        await volume.looked.wait()

    here.run(look)
    for name, mine in slots.items():
        assert all(world.providers[name].objects[n] == before[name][n] for n in mine)
    assert f"provider bee: key slot {slots['bee'][0]} is altered" in caplog.text
    assert f"provider eel: key slot {slots['eel'][0]} is missing" in caplog.text
    assert caplog.text.count("it is stored anew") == 2
