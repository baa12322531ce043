"""Locked snapshots: no date is shortened, what enforces them is found out, and refused deletions cause no storm."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from icnfs.errors import ProviderRefusedError, SnapshotError
from icnfs.providers.base import Data
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.trial import FOLDER
from icnfs.volume.locks import APPEND_ONLY, RETAINED, Locks
from icnfs.volume.volume import Volume
from tests.volume.test_collect import collected, content
from tests.volume.test_snapshots import make
from tests.volume.world import Machine, World, put_file

SOON = 10 * 86400


class AppendOnly(MemoryProvider):
    """Takes what is new, and neither deletes nor, unless `replaces`, replaces anything."""

    replaces = False

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.asked = 0
        self.deletes = False

    async def put(self, name: str, data: Data) -> None:
        if name in self.objects and not self.replaces:
            raise ProviderRefusedError(self.name, "no permission to replace")
        await super().put(name, data)

    async def delete(self, name: str) -> bool:
        self.asked += 1
        if not self.deletes:
            raise ProviderRefusedError(self.name, "no permission to delete")
        return await super().delete(name)


class Replacing(AppendOnly):
    replaces = True


def with_providers(world: World, kind: type[AppendOnly], *names: str) -> World:
    for name in names:
        world.providers[name] = kind(name, capacity=1 << 40, pool="one")
    return world


def locks_of(volume: Volume) -> Locks:
    return Locks(volume.network, volume.repair, volume.loaded)


def until() -> int:
    return int(time.time()) + SOON


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def here(world: World) -> Machine:
    return world.machine()


def test_no_verb_shortens_a_lock_and_a_later_date_extends_it(here: Machine) -> None:
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        date = until()
        snapshot = await make(volume, "a", date)
        assert (snapshot.until, snapshot.enforced) == (date, False)
        with pytest.raises(SnapshotError, match="no lock is shortened"):
            await volume.snapshots.lock("a", date - 1)
        with pytest.raises(SnapshotError, match="is locked until 20"):
            await volume.snapshots.delete("a")
        extended = await volume.snapshots.lock("a", date + 60)
        assert extended.until == date + 60 == volume.snapshots.find("a").until
        await make(volume, "past")
        assert (await volume.snapshots.lock("past", int(time.time()) - 1)).until < time.time()
        await volume.snapshots.delete("past")

    here.run(main)


def test_a_lock_comes_back_with_a_recovery(world: World, here: Machine) -> None:
    key = here.init().recovery_key
    date = until()

    async def main(volume: Volume) -> None:
        await make(volume, "a", date)

    here.run(main)
    there = world.machine("there")
    there.recover(key)

    async def look(volume: Volume) -> None:
        with pytest.raises(SnapshotError, match="locked"):
            await volume.snapshots.delete("a")

    there.run(look)


@pytest.mark.parametrize(("kept", "enough"), [("ada bee cat", False), ("ada bee cat dog", True)])
def test_k_shares_of_everything_must_lie_where_nothing_can_be_deleted(world: World, kept: str, enough: bool) -> None:
    here = with_providers(world, AppendOnly, *kept.split()).machine()
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        snapshot = await make(volume, "a", until())
        assert snapshot.enforced is enough
        found = await locks_of(volume).judge(until())
        assert found.by == dict.fromkeys(kept.split(), APPEND_ONLY)
        for name in ("eel", "fox"):
            assert not any(each.startswith(FOLDER) for each in world.providers[name].objects), "no trial is left"

    here.run(main)


def test_one_that_lets_an_object_be_replaced_enforces_nothing(world: World) -> None:
    here = with_providers(world, Replacing, "ada", "bee", "cat", "dog").machine()
    here.init()

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        assert (await locks_of(volume).judge(until())).by == {}

    here.run(main)


def test_a_retention_that_covers_the_date_counts(here: Machine) -> None:
    here.init()
    facts = here.config().providers
    config = here.config(providers={name: replace(each, retention_days=11.0) for name, each in facts.items()})

    async def main(volume: Volume) -> None:
        await put_file(volume, b"f", content(1))
        await volume.sync()
        found = await locks_of(volume).judge(until())
        assert found.enough and set(found.by.values()) == {RETAINED}
        assert not (await locks_of(volume).judge(until() + 2 * 86400)).enough

    here.run(main, providers=config.providers)


def test_a_refused_deletion_is_told_and_not_asked_for_again_and_again(world: World) -> None:
    here = with_providers(world, AppendOnly, "cat").machine()
    here.init()
    cat = world.providers["cat"]
    assert isinstance(cat, AppendOnly)

    async def main(volume: Volume) -> None:
        for seed in range(30):
            await put_file(volume, b"f", content(seed, 1000))
            await volume.sync()
        for _ in range(10):
            await collected(volume)
        assert cat.asked <= 16, "those that were under way when the first was refused"
        (shown,) = (each for each in volume.status().providers if each.name == "cat")
        assert "no permission to delete" in shown.error
        assert len(world.providers["ada"].objects) < len(cat.objects) / 2, "the others delete as ever"
        cat.deletes = True
        volume.collector._ask_again.clear()
        for _ in range(3):
            await collected(volume)
        assert len(cat.objects) < len(world.providers["ada"].objects) + 5
        assert volume.collector.refusals == {}

    here.run(main)
