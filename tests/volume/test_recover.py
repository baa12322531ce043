"""A machine with only the TOML and a secret gets back exactly what was published, or is told why it cannot."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.crypto.keys import MasterKey, Secret
from icnfs.crypto.slots import (
    SlotKind,
    encode_slot,
    format_recovery_key,
    make_slot,
    new_recovery_key,
    parse_recovery_key,
)
from icnfs.errors import (
    FencedError,
    NewerFormatError,
    NoVolumeError,
    RolledBackError,
    SecretError,
    TooFewProvidersError,
    VolumeExistsError,
)
from icnfs.format import head as head_format
from icnfs.format.head import HeadName
from icnfs.providers.memory import MemoryProvider
from icnfs.volume import recover as recovering
from icnfs.volume.heads import Survey
from icnfs.volume.keyring import Secrets
from icnfs.volume.recover import Bound
from icnfs.volume.volume import Volume
from tests.volume.world import NAMES, Machine, World, believed, flip, get_file, list_files, put_file

CONTENTS = {b"small": b"hello", b"empty": b"", b"large": os.urandom(700_000), b"chunk": os.urandom(1 << 17)}


async def write_all(volume: Volume) -> tuple[int, int]:
    for name, data in CONTENTS.items():
        await put_file(volume, name, data)
    await volume.sync()
    return volume.fence.number


async def read_all(volume: Volume) -> dict[bytes, bytes]:
    return {name: await get_file(volume, name) for name in list_files(volume)}


def filled(world: World) -> tuple[Machine, str, tuple[int, int]]:
    here = world.machine()
    key = here.init().recovery_key
    return here, key, here.run(write_all)


@pytest.mark.parametrize("lost", [(), ("ada", "bee"), ("cat", "fox"), ("dog", "eel")])
def test_everything_published_comes_back_whichever_two_providers_are_lost(world: World, lost: tuple[str, ...]) -> None:
    _, key, number = filled(world)
    world.lose(*lost)
    there = world.machine("there")
    steps: list[tuple[int, int]] = []
    found = there.recover(key, progress=lambda done, whole: steps.append((done, whole)))
    assert (found.epoch, found.sequence) == number
    assert found.time_ns > 0
    assert steps[-1][0] == steps[-1][1] == found.record_bytes
    assert there.run(read_all) == CONTENTS


def test_with_three_lost_it_says_which_and_writes_nothing(world: World) -> None:
    _, key, _ = filled(world)
    world.lose("ada", "cat", "eel")
    before = {name: dict(p.objects) for name, p in world.providers.items()}
    there = world.machine("there")
    with pytest.raises(TooFewProvidersError) as caught:
        there.recover(key)
    for name in ("ada", "cat", "eel"):
        assert f"provider {name}" in str(caught.value)
    assert not there.state_dir.exists()
    assert not there.state_dir.with_name("demo.partial").exists()
    assert {name: dict(p.objects) for name, p in world.providers.items()} == before


def test_more_silent_owners_than_may_be_are_told_as_such_though_enough_providers_answer(world: World) -> None:
    _, key, _ = filled(world)
    others = {name: replace(world.config.providers["ada"], name=name, owner=name) for name in ("gnu", "hen", "ibis")}
    there = world.machine("there")
    for name in others:
        world.providers[name] = MemoryProvider(name)
    world.config = replace(world.config, providers=world.config.providers | others)
    with pytest.raises(TooFewProvidersError) as caught:
        there.recover(key)
    message = str(caught.value)
    assert "no more than 2 owners may be silent, or a newer head could be missed" in message
    assert "are needed" not in message and "out of the TOML" in message
    for name in others:
        assert f"provider {name}: its place is empty" in message
    world.config = replace(world.config, providers={n: f for n, f in world.config.providers.items() if n != "hen"})
    there.recover(key)


def test_a_wrong_secret_and_an_existing_state_are_refused(world: World) -> None:
    here, key, _ = filled(world)
    with pytest.raises(SecretError):
        world.machine("there").recover(format_recovery_key(new_recovery_key()))
    with pytest.raises(VolumeExistsError):
        here.recover(key)
    assert here.run(read_all) == CONTENTS


def test_a_volume_that_was_never_made_is_not_found(world: World) -> None:
    with pytest.raises(NoVolumeError):
        world.machine("there").recover(format_recovery_key(new_recovery_key()))


def test_an_older_head_than_the_caller_knows_of_is_refused(world: World) -> None:
    _, key, (epoch, sequence) = filled(world)
    there = world.machine("there")
    with pytest.raises(RolledBackError, match=f"epoch {epoch}, sequence {sequence}"):
        there.recover(key, at_least=(epoch, sequence + 1))
    there.recover(key, at_least=(epoch, sequence))


def test_it_is_told_how_many_owners_show_the_head(world: World) -> None:
    here, key, number = filled(world)
    older = dict(world.providers["cat"].objects)

    async def more(volume: Volume) -> tuple[int, int]:
        await put_file(volume, b"more", b"x")
        await volume.sync()
        return volume.fence.number

    newer = here.run(more)
    world.away("ada")
    world.providers["cat"].objects = older
    found = world.machine("there").recover(key, bound=Bound(number=newer))
    assert (found.epoch, found.sequence, found.owners) == (*newer, 4)
    found = world.machine("again").recover(key, bound=Bound(number=number))
    assert (found.epoch, found.sequence, found.owners) == (*number, 5)


async def ruin(volume: Volume) -> tuple[int, int]:
    """What an intruder does who has the machine."""
    for name in list_files(volume):
        await put_file(volume, name, b"pay")
        await volume.sync()
    return volume.fence.number


def test_what_an_intruder_published_is_gone_back_behind_by_number_or_by_time(world: World) -> None:
    here, key, number = filled(world)
    before = time.time_ns()
    ruined = here.run(ruin)
    for name, bound in (("by number", Bound(number=number)), ("by time", Bound(time_ns=before))):
        there = world.machine(name)
        found = there.recover(key, bound=bound)
        assert (found.epoch, found.sequence) == number, name
        assert there.run(read_all, read_only=True) == CONTENTS, name
    with pytest.raises(FencedError):
        here.run(ruin)

    async def go_on(volume: Volume) -> tuple[int, int]:
        await put_file(volume, b"since", b"then")
        await volume.sync()
        return volume.fence.number

    assert there.run(go_on) > ruined
    again = world.machine("again")
    again.recover(key)
    assert again.run(read_all) == {**CONTENTS, b"since": b"then"}


def test_going_back_brings_no_removed_key_back_and_hides_none_that_was_added(world: World) -> None:
    here, key, _ = filled(world)
    old, new = Secret.random(), Secret.random()

    async def change(volume: Volume) -> tuple[int, int]:
        removed = add(volume, old)
        await volume.publisher.publish()
        number = volume.fence.number
        volume.remove_key(removed)
        await put_file(volume, b"f", b"ruined")
        await volume.sync()
        add(volume, new)
        await put_file(volume, b"f", b"worse")
        await volume.sync()
        return number

    def add(volume: Volume, secret: Secret) -> str:
        entry = volume.keyring.add(
            SlotKind.KEYFILE, secret, volume.network.master, label=secret.reveal().hex(), providers=NAMES
        )
        volume.keyring.save()
        return entry.id

    async def use(volume: Volume) -> dict[bytes, bytes]:
        await volume.looked.wait()
        assert [entry.label for entry in volume.keyring.entries()][1:] == ["passphrase", new.reveal().hex()]
        volume.remove_key(volume.keyring.entries()[-1].id)
        await put_file(volume, b"since", b"then")
        await volume.sync()
        return await read_all(volume)

    there = world.machine("there")
    there.recover(key, bound=Bound(number=here.run(change)))
    assert there.run(use) == {**CONTENTS, b"since": b"then"}
    for secret in (old, new):
        again = world.machine("again")
        again.secrets = Secrets(keyfile=secret)
        with pytest.raises(SecretError):
            again.recover()
    assert world.machine("again").recover(key)


def test_going_back_keeps_the_key_that_it_took_though_it_was_removed_since(world: World) -> None:
    """A provider that was away kept its slot."""
    here, key, number = filled(world)

    async def rob(volume: Volume) -> None:
        world.away("fox")
        volume.keyring.add(SlotKind.KEYFILE, Secret.random(), volume.network.master, label="evil", providers=NAMES)
        volume.remove_key(next(entry.id for entry in volume.keyring.entries() if entry.kind == "recovery"))
        await put_file(volume, b"small", b"pay")
        await volume.publisher.publish()

    async def keys(volume: Volume) -> list[str]:
        await volume.sync()
        return sorted(entry.label for entry in volume.keyring.entries())

    here.run(rob)
    world.away()
    there = world.machine("there")
    there.recover(key, bound=Bound(number=number))
    assert there.run(keys) == ["evil", "passphrase", "recovery key"]
    assert len([slots for slots in world.objects("slots/").values() if len(slots) == 2]) == 6
    assert world.machine("again").recover(key)


@pytest.mark.parametrize("bound", [Bound(number=(0, 5)), Bound(time_ns=10**9)])
def test_where_no_head_is_so_old_nothing_is_recovered(world: World, bound: Bound) -> None:
    _, key, _ = filled(world)
    with pytest.raises(NoVolumeError, match="so old"):
        world.machine("there").recover(key, bound=bound)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_newest_head_at_any_time_is_found_though_some_cannot_be_read(data: st.DataObject) -> None:
    times = sorted(data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=40)))
    unreadable = data.draw(st.sets(st.sampled_from(range(len(times)))))
    wanted = data.draw(st.integers(-1, 61))
    numbers = [(1, sequence) for sequence in range(len(times))]
    survey = Survey({"ada": tuple(HeadName(1, sequence, bytes(16)) for sequence in range(len(times)))}, {})

    class Shown:
        async def newest(self, survey: Survey) -> object:
            for name in reversed(survey.listed["ada"]):
                if name.sequence not in unreadable:
                    return SimpleNamespace(number=(1, name.sequence), time_ns=times[name.sequence])
            return None

    count = trio.run(recovering._until, Shown(), survey, numbers, wanted)
    late = [at for at in range(count) if at not in unreadable and times[at] > wanted]
    missed = [at for at in range(count, len(times)) if at not in unreadable and times[at] <= wanted]
    assert not late and not missed


def test_damaged_heads_slots_and_shares_at_two_providers_change_nothing(world: World) -> None:
    _, key, number = filled(world)
    for name in ("bee", "eel"):
        objects = world.providers[name].objects
        for object_name in objects:
            objects[object_name] = flip(objects[object_name], len(objects[object_name]) // 2)
    there = world.machine("there")
    found = there.recover(key)
    assert (found.epoch, found.sequence) == number
    assert there.run(read_all) == CONTENTS


def test_made_up_slots_are_tried_after_one_of_each_provider_and_take_no_more_than_their_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key, number = filled(world)
    liar = world.providers["bee"]
    real = {name: data for name, data in liar.objects.items() if name.startswith("slots/")}
    for count in range(40):
        liar.objects[f"slots/{count:032x}"] = next(iter(real.values()))
    seen: list[str] = []
    slots_of, get = recovering.slots_of, liar.get
    asked = 0

    async def spy(*args: Any) -> Any:
        found = await slots_of(*args)
        seen[:] = [provider for provider, _ in found]
        return found

    async def slowly(name: str, offset: int = 0, length: int | None = None) -> bytes:
        nonlocal asked
        if name.startswith("slots/"):
            asked += 1
            await trio.sleep(0.1)
        return await get(name, offset, length)

    monkeypatch.setattr(recovering, "slots_of", spy)
    assert world.machine("there").recover(key).sequence == number[1]
    assert sorted(seen[:6]) == sorted(NAMES)
    assert seen.count("bee") > 40
    liar.get = slowly  # type: ignore[method-assign]
    monkeypatch.setattr(recovering, "SLOTS_SECONDS", 0.5)
    world.machine("elsewhere").recover(key)
    assert 1 <= asked <= 6


def test_a_slot_of_another_volume_that_the_same_secret_opens_changes_nothing(world: World) -> None:
    """Who holds places of both can show it, before all real ones."""
    _, key, number = filled(world)
    other = encode_slot(make_slot("recovery", parse_recovery_key(key), MasterKey.random(), label=""))
    for name in NAMES[:2]:
        objects = world.providers[name].objects
        for real in [real for real in objects if real.startswith("slots/")]:
            del objects[real]
        objects["slots/" + "0" * 32] = other
    there = world.machine("there")
    found = there.recover(key)
    assert (found.epoch, found.sequence) == number
    assert there.run(read_all) == CONTENTS


@pytest.mark.parametrize("prefix", ["heads/", "slots/", "shares/"])
def test_any_one_provider_may_lie_about_anything(world: World, prefix: str) -> None:
    _, key, number = filled(world)
    for name in NAMES:
        objects = world.providers[name].objects
        kept = dict(objects)
        for object_name in [n for n in objects if n.startswith(prefix)]:
            objects[object_name] = flip(objects[object_name], len(objects[object_name]) - 1)
        there = world.machine(f"there-{name}")
        found = there.recover(key)
        assert (found.epoch, found.sequence) >= number
        assert there.run(read_all) == CONTENTS
        objects.update(kept)


def test_made_up_heads_cost_nothing(world: World) -> None:
    _, key, number = filled(world)
    objects = world.providers["cat"].objects
    for i in range(100):
        name = head_format.HeadName(2**40 + i, 2**30, os.urandom(16))
        objects[str(name)] = os.urandom(200)
    found = world.machine("there").recover(key)
    assert (found.epoch, found.sequence) == number


def test_an_authentic_newer_head_asks_for_an_upgrade(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    key = here.init().recovery_key
    with monkeypatch.context() as patch:
        patch.setattr(head_format, "VERSION", 2)
        here.run(write_all)
    there = world.machine("there")
    with pytest.raises(NewerFormatError, match="upgrade"):
        there.recover(key)
    assert not there.state_dir.exists()


def test_a_recovery_that_broke_off_is_started_over(world: World) -> None:
    _, key, _ = filled(world)
    there = world.machine("there")
    half = there.state_dir.with_name("demo.partial")
    (half / "meta").mkdir(parents=True)
    (half / "meta" / "data.mdb").write_bytes(b"half")
    there.recover(key)
    assert not half.exists()
    assert there.run(read_all) == CONTENTS


def test_recovered_volumes_go_on_and_recover_again(world: World) -> None:
    _, key, _ = filled(world)
    machine = world.machine("m0")
    machine.recover(key)
    for i in range(1, 4):

        async def more(volume: Volume, i: int = i) -> None:
            await put_file(volume, b"more%d" % i, os.urandom(50_000 * i))
            await volume.sync()

        machine.run(more)
        expected = machine.run(read_all)
        machine = world.machine(f"m{i}")
        machine.recover(key)
        assert machine.run(read_all) == expected
    assert len(expected) == len(CONTENTS) + 3


def test_a_recovered_volume_goes_on_without_losing_what_small_runs_alone_hold(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def large(volume: Volume) -> int:
        for i in range(1500):
            await put_file(volume, b"many-%04d" % i, b"")
        await volume.sync()
        return await more(volume)

    async def more(volume: Volume) -> int:
        await put_file(volume, b"more-%04d" % len(list_files(volume)), b"")
        await volume.sync()
        return len(volume.publisher.head.runs)

    assert here.run(large) == 2
    for i in range(3):
        machine = world.machine(f"m{i}")
        machine.recover(key)
        assert machine.run(more) > 1, "not a checkpoint: that would hold everything anyhow"
    last = world.machine("last")
    last.recover(key)

    async def names(volume: Volume) -> list[bytes]:
        return [name for name in list_files(volume) if name.startswith(b"more")]

    assert last.run(names) == [b"more-%04d" % (1500 + i) for i in range(4)]


def test_the_passphrase_opens_a_recovered_volume_too(world: World) -> None:
    here, key, _ = filled(world)
    passphrase = here.secrets
    there = world.machine("there")
    there.recover(key)
    there.secrets = passphrase
    assert there.run(read_all) == CONTENTS


@pytest.mark.parametrize("new", [("cat", "dog", "gnu", "hen"), ("ada", "bee", "cat", "dog")])
def test_half_of_the_owners_may_be_lost_where_the_code_says_so_once_others_stand_in_their_stead(
    new: tuple[str, ...], tmp_path: Path
) -> None:
    """The head that takes over has to be where whatever n - k owners vanish leave one: k of 2k are too few for that."""
    world = World(tmp_path, "2-of-4", more=("gnu", "hen"))
    whole = world.config.providers
    world.config = replace(world.config, providers={name: whole[name] for name in ("ada", "bee", "cat", "dog")})
    _, key, _ = filled(world)
    world.lose("ada", "bee")
    with pytest.raises(TooFewProvidersError, match="have new ones stand in their stead"):
        world.machine("early").recover(key)
    world.config = replace(world.config, providers={name: whole[name] for name in new})
    world.away()  # where the names are the same, at new and empty places
    there = world.machine("there")
    there.recover(key)

    async def mended(volume: Volume) -> dict[bytes, bytes]:
        await volume.sync()
        assert believed(world, volume) == []
        return await read_all(volume)

    assert there.run(mended) == CONTENTS
