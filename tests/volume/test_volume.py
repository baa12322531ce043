"""An open volume: cold reads, places, keys and facts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from math import inf
from typing import Any

import pytest
import trio

from icnfs.crypto.keys import Secret
from icnfs.crypto.slots import SlotKind, parse_recovery_key
from icnfs.errors import (
    DegradedError,
    FormatError,
    IcnfsError,
    MountedError,
    ProviderAwayError,
    ProviderRefusedError,
    SecretError,
    TooFewProvidersError,
    UsageError,
)
from icnfs.format.marker import pack_marker
from icnfs.state.cut import put_segments
from icnfs.volume.heads import Stored
from icnfs.volume.keyring import Keyring, Secrets
from icnfs.volume.places import Places
from icnfs.volume.recover import recover
from icnfs.volume.volume import Volume
from tests.volume.world import CHEAP, NAMES, PASSPHRASE, World, chunks_of, flip, get_file, list_files, put_file

DATA = os.urandom(1_000_000)


async def write(volume: Volume) -> int:
    ino = await put_file(volume, b"f", DATA)
    await volume.sync()
    return ino


async def read(volume: Volume) -> bytes:
    return await get_file(volume, b"f")


# --- cold reads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "gone"])
@pytest.mark.parametrize("name", NAMES)
def test_cold_reads_are_right_with_every_share_of_one_provider_bad(world: World, name: str, damage: str) -> None:
    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    there = world.machine("there")
    there.recover(key)
    objects = world.providers[name].objects
    shares = sorted(n for n in objects if n.startswith("shares/"))
    contents = [objects[n] for n in shares]
    for at, share in enumerate(shares):
        match damage:
            case "flip":
                objects[share] = flip(objects[share], len(objects[share]) // 2)
            case "cut":
                objects[share] = objects[share][: len(objects[share]) // 2]
            case "swap":
                objects[share] = contents[at - 1]
            case "gone":
                del objects[share]
    assert there.run(read) == DATA


def test_status_names_the_provider_whose_shares_are_bad(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    here.run(write)
    there = world.machine("there")
    there.recover(key)

    async def look(volume: Volume) -> None:
        first = (await chunks_of(volume, volume.store.find(1, b"f").ino))[0]
        liar = first.shares[first.share].provider
        objects = world.providers[liar].objects
        for share in [n for n in objects if n.startswith("shares/")]:
            objects[share] = objects[share][:100] + os.urandom(len(objects[share]) - 100)
        assert await get_file(volume, b"f") == DATA
        while True:
            bad = {p.name for p in volume.status().providers if p.bad_shares}
            if bad:
                break
            await trio.sleep(0.01)
        assert bad == {liar}

    there.run(look)


def test_a_file_that_cannot_be_had_fails_alone_and_in_time(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def two(volume: Volume) -> None:
        await put_file(volume, b"gone", os.urandom(200_000))
        await volume.sync()
        await put_file(volume, b"f", DATA)
        await volume.sync()

    here.run(two)
    there = world.machine("there")
    there.recover(key)

    async def look(volume: Volume) -> None:
        chunks = await chunks_of(volume, volume.store.find(1, b"gone").ino)
        assert {chunk.survives for chunk in chunks} == {2}
        holder = chunks[0].shares[chunks[0].share].provider
        others = [name for name in NAMES if name != holder]
        world.away(holder, *others[:2])
        with pytest.raises(IcnfsError) as caught:
            await get_file(volume, b"gone")
        assert caught.value.errno == 5
        world.away(*others[:2])
        assert await get_file(volume, b"f") == DATA

    there.run(look)


# --- places -----------------------------------------------------------------------------------------------------------


def test_a_place_that_turned_foreign_is_never_written_to(world: World) -> None:
    here = world.machine()
    here.init()
    other = {"volume": pack_marker(b"y" * 16), "heads/" + "0" * 16 + "-" + "0" * 16 + "-" + "0" * 32: b"theirs"}
    world.providers["fox"].objects = dict(other)

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.publisher.publish()
        status = next(p for p in volume.status().providers if p.name == "fox")
        assert status.state == "foreign"
        assert "another volume" in status.error
        assert volume.status().degraded

    here.run(body)
    assert world.providers["fox"].objects == other


def test_a_place_that_is_another_providers_too_is_foreign_and_names_it(world: World) -> None:
    here = world.machine()
    here.init()
    world.providers["fox"].objects = world.providers["eel"].objects

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.publisher.publish()
        status = next(p for p in volume.status().providers if p.name == "fox")
        assert (status.state, status.error[:33]) == ("foreign", "its place is that of provider eel")

    here.run(body)


def test_an_emptied_place_is_taken_again_with_its_key_slot(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    world.providers["fox"].objects.clear()
    here.run(write)
    assert set(world.providers["fox"].objects) > {"volume"}
    world.lose("ada", "bee")
    for name in ("cat", "dog", "eel"):
        for slot in world.objects("slots/")[name]:
            del world.providers[name].objects[slot]
    there = world.machine("there")
    there.recover(key)
    assert there.run(read) == DATA


# --- keys -------------------------------------------------------------------------------------------------------------


def test_an_added_key_opens_the_volume_here_and_from_any_provider(world: World) -> None:
    here = world.machine()
    here.init()
    keyfile = Secret.random()

    async def body(volume: Volume) -> None:
        world.away("eel")
        volume.keyring.add(SlotKind.KEYFILE, keyfile, volume.network.master, label="laptop", providers=NAMES)
        volume.keyring.save()
        await volume.publisher.publish()
        world.away()
        await write(volume)

    here.run(body)
    assert all(len(names) == 2 for names in world.objects("slots/").values()), "eel got its copy when it returned"
    here.secrets = Secrets(keyfile=keyfile)
    assert here.run(read) == DATA
    there = world.machine("there")
    there.secrets = Secrets(keyfile=keyfile)
    there.recover()
    assert there.run(read) == DATA


def test_a_removed_key_is_gone_everywhere(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        entry = next(e for e in volume.keyring.entries() if e.kind == "recovery")
        volume.remove_key(entry.id)
        with pytest.raises(DegradedError, match="lost with this machine"):
            await write(volume)
        with pytest.raises(UsageError, match="last"):
            volume.remove_key(volume.keyring.entries()[0].id)

    here.run(body)
    assert not any(world.objects("slots/").values())
    with pytest.raises(IcnfsError):
        world.machine("there").recover(key)
    assert here.run(read) == DATA


def test_a_passphrase_added_later_stays_local(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        volume.keyring.add(SlotKind.PASSPHRASE, Secret(b"second"), volume.network.master, label="two", costs=CHEAP)
        volume.keyring.save()
        await write(volume)

    here.run(body)
    assert all(len(names) == 1 for names in world.objects("slots/").values())
    here.secrets = Secrets(passphrase=Secret(b"second"))
    assert here.run(read) == DATA
    here.secrets = Secrets(passphrase=Secret(b"third"))
    with pytest.raises(SecretError):
        here.run(read)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_it_opens_and_works_with_every_provider_away(world: World) -> None:
    here = world.machine()
    here.init()
    world.away(*NAMES)

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", DATA)
        await volume.store.flush()
        assert await read(volume) == DATA

    here.run(body)
    assert here.run(read) == DATA
    world.away()

    async def drain(volume: Volume) -> int:
        await volume.drain()
        return volume.store.dirty_bytes

    assert here.run(drain) == 0


def test_a_second_opening_on_this_machine_is_refused(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        with pytest.raises(MountedError):
            await trio.to_thread.run_sync(here.run, read)

    here.run(body)


def test_read_only_publishes_nothing(world: World) -> None:
    here = world.machine()
    here.init()
    here.run(write)
    before = world.objects("heads/")
    assert here.run(read, read_only=True, publish_seconds=0.01) == DATA
    assert world.objects("heads/") == before


def test_a_damaged_keyring_is_one_clear_error(world: World) -> None:
    here = world.machine()
    here.init()
    path = here.state_dir / "slots"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="keyring"):
        here.run(write)
    path.write_bytes(whole)
    here.run(write)


def test_a_damaged_key_is_whole_again_once_the_volume_was_opened_by_another(world: World) -> None:
    here = world.machine()
    here.init()
    path = here.state_dir / "slots"
    whole = Keyring.load(here.state_dir)
    slot = next(entry.slot for entry in whole.entries() if entry.kind == "recovery")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(slot, flip(slot, len(slot) // 2)))
    assert len(Keyring.load(here.state_dir).entries()) == 1
    here.run(write)
    assert {entry.id for entry in Keyring.load(here.state_dir).entries()} == {entry.id for entry in whole.entries()}


def test_errors_of_the_block_come_out_as_themselves(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        raise TooFewProvidersError("as it is")

    with pytest.raises(TooFewProvidersError, match="as it is"):
        here.run(body)


# --- facts ------------------------------------------------------------------------------------------------------------


def test_facts_become_json(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        ino = await put_file(volume, b"f", DATA)
        await volume.store.flush()
        assert {chunk.survives for chunk in await chunks_of(volume, ino)} == {-1}
        assert volume.status().pending
        await volume.sync()
        await volume.publisher.publish()
        for name in NAMES:
            await volume.network.transfer.probe(name)
        status, chunks, usage = volume.status(), await chunks_of(volume, ino), volume.usage()
        for facts in (status, *chunks, usage):
            json.dumps(asdict(facts))
        assert not status.pending
        assert not status.degraded
        assert status.files == 2
        assert status.published_age_s is not None
        assert {chunk.survives for chunk in chunks} == {2}
        assert len(chunks) == -(-len(DATA) // (1 << 17))
        assert {place.owner for place in chunks[0].shares} == {f"{name} inc" for name in NAMES}
        assert usage.free_bytes == pytest.approx((1 << 40) / 6 * 4, rel=0.001), "one disk is counted once"
        assert list_files(volume) == [b"f"]

    here.run(body)
    assert PASSPHRASE.reveal() not in json.dumps(asdict(here.config()), default=str).encode()


# --- emptied places ---------------------------------------------------------------------------------------------------


def after_two_losses(world: World, key: str) -> bytes:
    """The file, on a new machine, without as many owners as may go."""
    world.lose("ada", "bee")
    there = world.machine("there")
    there.recover(key)
    return there.run(read)


def missing_shares(world: World, volume: Volume) -> list[str]:
    """Providers that are said to hold a share of a segment that they do not hold."""
    return [
        share.provider
        for segment in volume.publisher.stored()
        for share, name in zip(segment.shares, volume.network.names_of(segment), strict=True)
        if share.stored and name not in world.providers[share.provider].objects
    ]


def test_a_place_emptied_between_two_attempts_is_noticed_in_what_the_first_had_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        await volume.looked.wait()
        await put_file(volume, b"before", b"x" * 1000)
        await volume.sync()
        await put_file(volume, b"f", DATA)

        async def refuse(*_args: object, **_more: object) -> Stored:
            return Stored()

        with monkeypatch.context() as patched:
            patched.setattr(volume.heads, "store", refuse)
            for attempt in range(2):
                with pytest.raises(TooFewProvidersError):
                    await volume.publisher.publish()
                if not attempt:
                    world.providers["cat"].objects.clear()
        await volume.sync()
        assert not missing_shares(world, volume)

    here.run(body)
    assert after_two_losses(world, key) == DATA


def test_sync_waits_for_what_its_own_survey_has_shown(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        await volume.looked.wait()
        await write(volume)
        world.providers["cat"].objects.clear()
        await put_file(volume, b"more", b"x" * 1000)
        await volume.sync()
        assert not volume.network.doubted

    here.run(body)
    assert after_two_losses(world, key) == DATA


def test_a_doubt_outlives_a_visit_that_was_not_answered(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await write(volume)
        places, network = Places(volume.network, volume.keyring, lambda: None), volume.network
        seen = network.doubt("cat")
        world.away("cat")
        with pytest.raises(ProviderAwayError):
            await places.visit("cat")
        assert seen.is_set(), "whoever waits for the visit hears of its end"
        assert "cat" in network.doubted
        world.away()
        await network.wake()
        await places.visit("cat")
        assert "cat" not in network.doubted

    here.run(body)


def test_a_sync_that_is_given_up_while_a_loss_is_noted_leaves_nothing_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        await volume.loaded.wait()
        await write(volume)
        world.providers["cat"].objects.clear()
        volume.network.doubt("cat")
        scope, task = trio.CancelScope(), volume.store.task

        async def interrupted(work: Any, *more: Any) -> Any:
            if getattr(work, "func", None) is put_segments:
                scope.cancel()
            return await task(work, *more)

        monkeypatch.setattr(volume.store, "task", interrupted)
        with scope:
            await put_file(volume, b"g", b"x")
            await volume.sync()
        monkeypatch.undo()
        assert scope.cancelled_caught
        await volume.sync()
        assert not missing_shares(world, volume)

    here.run(body)
    assert after_two_losses(world, key) == DATA


def test_doubts_about_providers_that_others_stand_for_hold_no_sync_up(world: World) -> None:
    world.config = replace(world.config, safe=5)
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await write(volume)
        volume.network.doubt("cat")
        assert not volume.repair.unsure
        volume.network.doubt("dog")
        assert volume.repair.unsure

    here.run(body)


def test_a_provider_that_hangs_and_that_others_stand_for_holds_no_sync_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icnfs.volume.places.VISIT_SECONDS", inf)
    world.config = replace(world.config, safe=5)
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await volume.looked.wait()
        await write(volume)
        monkeypatch.setattr(world.providers["cat"], "get", lambda *_args, **_more: trio.sleep_forever())
        volume.network.doubt("cat")
        with trio.fail_after(60):
            await volume.sync()

    here.run(body)


def unreadable(world: World, name: str, prefix: str) -> None:
    """From now on `name` lists objects under `prefix`, and does not hand them out."""
    provider = world.providers[name]
    get = provider.get

    async def refusing(object_name: str, *args: Any, **more: Any) -> Any:
        if object_name.startswith(prefix):
            raise ProviderRefusedError(name, "429; slow down")
        return await get(object_name, *args, **more)

    provider.get = refusing  # type: ignore[method-assign]


def test_a_head_that_is_listed_and_cannot_be_read_is_not_passed_over_by_a_recovery(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def more(volume: Volume) -> tuple[int, int]:
        await put_file(volume, b"new", b"said to be safe")
        await volume.sync()
        return volume.fence.number

    here.run(write)
    epoch, sequence = here.run(more)
    newest = f"heads/{epoch:016x}-{sequence:016x}"
    for name in ("dog", "eel", "fox"):  # durable at the three others; the machine was lost before these had theirs
        for head in world.objects(newest)[name]:
            del world.providers[name].objects[head]
    world.lose("ada", "bee")
    unreadable(world, "cat", newest)
    there = world.machine("there")
    with pytest.raises(TooFewProvidersError, match="cat list cannot be read there: try again, or go back to"):
        there.recover(key)


def test_a_rival_whose_head_is_listed_and_cannot_be_read_is_not_passed_by(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    here.run(write)

    async def body(volume: Volume) -> None:
        await volume.looked.wait()
        there = world.machine("there")
        offered = Secrets(recovery=parse_recovery_key(key))
        await recover(there.config(), there.state_dir, offered, start=world.start)
        for name in NAMES:
            unreadable(world, name, "heads/")
        await put_file(volume, b"mine", b"x")
        with pytest.raises(TooFewProvidersError, match="do not answer to publish"):
            await volume.publisher.publish()

    here.run(body)


def test_a_place_that_has_become_somebody_elses_holds_nothing_safe(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await volume.looked.wait()
        await write(volume)
        world.providers["cat"].objects.clear()
        world.providers["cat"].objects["volume"] = pack_marker(b"x" * 32)
        await put_file(volume, b"more", b"x")
        with pytest.raises(DegradedError, match="cat"):
            await volume.sync(1.0)

    here.run(body)
