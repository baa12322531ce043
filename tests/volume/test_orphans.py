"""Strays at providers: exactly what nothing names is found, and what is deleted of it is never what anybody needs."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from icnfs.errors import DegradedError, FencedError, ProviderRefusedError, TooFewProvidersError, UsageError
from icnfs.format import share as share_format
from icnfs.format.records import Table
from icnfs.limits import LIST_PAGE
from icnfs.providers.memory import MemoryProvider
from icnfs.volume import condemned
from icnfs.volume.heads import Stored
from icnfs.volume.orphans import PEEKS_AT_ONCE, Named, OrphanReport
from icnfs.volume.repair import Gain
from icnfs.volume.volume import Volume
from tests.volume.test_crash import Cutter
from tests.volume.world import World, believed, files_of, get_file, list_files, put_file

DAY = 86_400.0
Objects = set[tuple[str, str]]


class Clock:
    """Time for the orphans of one volume after the other."""

    def __init__(self) -> None:
        self.now = 1e9

    def set(self, volume: Volume) -> None:
        volume.orphans._now = lambda: self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def shares(world: World) -> Objects:
    return {(provider, name) for provider, names in world.objects("shares/").items() for name in names}


def everything(world: World) -> dict[str, dict[str, bytes]]:
    return {name: dict(provider.objects) for name, provider in world.providers.items()}


def needed(world: World, key: str, name: str) -> tuple[Objects, dict[bytes, bytes]]:
    """What an empty machine that recovers finds named, and its tree; the providers are as before afterwards."""
    kept = everything(world)
    there = world.machine(name)
    there.recover(key)

    async def look(volume: Volume) -> tuple[Objects, dict[bytes, bytes]]:
        await volume.loaded.wait()
        segments = [segment for id in volume.repair.ids() if (segment := volume._segment(id)) is not None]
        named = {each for segment in segments for each in condemned.shares_of(volume.network, segment)}
        return named, {name: await get_file(volume, name) for name in list_files(volume)}

    found = there.run(look, read_only=True)
    for provider, objects in kept.items():
        world.providers[provider].objects = objects
    return found


def noted(volume: Volume) -> Objects:
    reader = volume.store.reader
    notes = [condemned.decode(reader.get(Table.CONDEMNED, key) or b"") for key, _ in reader.rows(Table.CONDEMNED)]
    return {each for note in notes for each in note.objects}


def orphans_of(report: OrphanReport) -> int:
    return sum(there.orphans for there in report.providers.values())


async def publish_cut_off(volume: Volume, cutter: Cutter) -> None:
    """Begin a publish, and break it off at a put, if there are as many."""
    real = MemoryProvider.put

    async def put(self: MemoryProvider, name: str, data: bytes) -> None:
        await cutter.put(self, name, data)

    MemoryProvider.put = put  # type: ignore[method-assign, assignment]
    try:
        with cutter.scope:
            await volume.publisher.publish()
    finally:
        MemoryProvider.put = real  # type: ignore[method-assign]


async def leave_orphans(volume: Volume) -> None:
    """A publish that stores the shares of chunks and breaks off; the mount is to end after it."""
    await put_file(volume, b"cut off", os.urandom(300_000))
    await volume.store.flush()
    await publish_cut_off(volume, Cutter(6, after=True))


@pytest.mark.parametrize("seed", range(8))
def test_after_random_crashes_exactly_what_nothing_names_is_found_and_deleted(
    world: World, clock: Clock, seed: int
) -> None:
    rng = random.Random(seed)
    machine = world.machine()
    key = machine.init().recovery_key
    tree: dict[bytes, bytes] = {}

    async def change(volume: Volume) -> None:
        name, data = b"f%d" % rng.randrange(4), rng.randbytes(rng.choice([10, 5_000, 200_000, 700_000]))
        if name in tree:
            files_of(volume).unlink(1, name)
        await put_file(volume, name, data)
        tree[name] = data

    async def stretch(volume: Volume) -> None:
        """What happens to one mount: at its end it may die in the middle of a publish."""
        clock.set(volume)
        volume.collector._grace = 0.0
        for _ in range(rng.randrange(2, 6)):
            match rng.choice(["change", "change", "sync", "cut off", "collect", "scrub"]):
                case "change":
                    await change(volume)
                case "sync":
                    await volume.sync()
                case "cut off":
                    await volume.store.flush()
                    await publish_cut_off(volume, Cutter(rng.randrange(1, 20), after=rng.random() < 0.5))
                case "collect":
                    await volume.collector.round()
                case "scrub":
                    await volume.orphans.run(delete=not volume.publisher.owes_head)
                    clock.now += rng.choice([1.0, DAY / 2, 2 * DAY])
        await change(volume)
        await volume.store.flush()
        await publish_cut_off(volume, Cutter(rng.randrange(1, 20), after=rng.random() < 0.5))

    async def settled(volume: Volume) -> Objects:
        clock.set(volume)
        await volume.sync()
        return noted(volume)

    async def cleared(volume: Volume, expected: Objects) -> None:
        clock.set(volume)
        before = everything(world)
        clock.now += 2 * DAY
        await volume.orphans.run(delete=True)
        known_long = shares_in(before) - shares(world)
        assert known_long <= expected, "only orphans are deleted"
        assert orphans_of(await volume.orphans.run(delete=True)) == len(expected - known_long)
        clock.now += DAY + 1
        report = await volume.orphans.run(delete=True)
        assert sum(there.deleted for there in report.providers.values()) == len(expected - known_long)
        assert shares_in(before) - shares(world) == expected, "exactly the orphans are deleted"
        for provider, objects in everything(world).items():
            assert objects.items() <= before[provider].items()
            assert before[provider].keys() - objects.keys() <= {n for p, n in expected if p == provider}
        assert orphans_of(await volume.orphans.run()) == 0

    for turn in range(3):
        machine.run(stretch)
        notes = machine.run(settled)
        named, found = needed(world, key, f"look-{seed}-{turn}")
        assert found == tree
        expected = shares(world) - named - notes
        machine.run(partial(cleared, expected=expected))
        world.away("ada", "fox")
        assert needed(world, key, f"check-{seed}-{turn}")[1] == tree, "what is left is enough without any two"
        world.away()
        if rng.random() < 0.5:
            machine = world.machine(f"next-{seed}-{turn}")
            machine.recover(key)


def shares_in(objects: dict[str, dict[str, bytes]]) -> Objects:
    return {(p, name) for p, names in objects.items() for name in names if name.startswith("shares/")}


def test_a_crash_leaves_orphans_which_take_two_runs_and_a_grace_to_go(world: World, clock: Clock) -> None:
    here = world.machine()
    here.init()
    here.run(lambda volume: volume.drain())
    before = shares(world)
    here.run(leave_orphans)
    left = shares(world) - before
    assert len(left) == 6, "shares of a pack or a run, and no head that names them"

    async def main(volume: Volume) -> None:
        clock.set(volume)
        sizes = sum(len(world.providers[provider].objects[name]) for provider, name in left)
        for hours in (0, 1, 22):
            clock.now += hours * 3600.0
            report = await volume.orphans.run(delete=True)
            assert orphans_of(report) == len(left) == sum(there.waiting for there in report.providers.values())
            assert sum(there.orphan_bytes for there in report.providers.values()) == sizes
        clock.now += 3601.0
        assert orphans_of(await volume.orphans.run()) == len(left), "it only looks unless told to delete"
        assert left <= shares(world)
        report = await volume.orphans.run(delete=True)
        assert sum(there.deleted_bytes for there in report.providers.values()) == sizes
        assert shares(world) & left == set()

    here.run(main)


def test_what_a_failed_attempt_stored_for_the_next_one_is_no_orphan(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world.machine()
    key = here.init().recovery_key
    data = os.urandom(300_000)

    async def no_head(*_: object, **__: object) -> Stored:
        raise TooFewProvidersError("nobody takes it")

    async def main(volume: Volume) -> None:
        clock.set(volume)
        await volume.drain()
        before = shares(world)
        await put_file(volume, b"f", data)
        await volume.store.flush()
        monkeypatch.setattr(volume.heads, "store", no_head)
        with pytest.raises(TooFewProvidersError):
            await volume.publisher.publish()
        monkeypatch.undo()
        stored = shares(world) - before
        assert len(stored) == 12, "a pack and a run"
        assert orphans_of(await volume.orphans.run()) == 6, "the run: the next attempt makes another"
        clock.now += DAY + 1
        await volume.orphans.run(delete=True)
        assert len(stored & shares(world)) == 6
        await volume.sync()
        assert len(stored & shares(world)) == 6, "the pack was not stored again"

    here.run(main)
    assert needed(world, key, "there")[1] == {b"f": data}


def test_what_repair_stores_again_stays_though_nobody_waited_until_it_was_noted(tmp_path: Path, clock: Clock) -> None:
    """A crash left a share that was moved; it is moved there again while a run is about to delete it."""
    world = World(tmp_path, more=("gnu",))
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        clock.set(volume)
        await put_file(volume, b"f", os.urandom(300_000))
        await volume.sync()
        await volume.loaded.wait()
        await volume.looked.wait()
        segment = max(filter(None, map(volume._segment, volume.repair.ids())), key=lambda s: s.share_len)
        (spare,) = world.providers.keys() - {share.provider for share in segment.shares}
        moved = await volume.repair._restore(segment, {0: spare})
        assert orphans_of(await volume.orphans.run()) == 1
        clock.now += DAY + 1
        rounds = [[Gain(segment, moved)]]

        async def once() -> list[Gain]:
            return rounds.pop() if rounds else []

        task, peek = volume.store.task, volume.network.transfer.peek

        async def move_meanwhile(*args: Any, **options: Any) -> tuple[int, bytes]:
            with trio.CancelScope() as scope:

                async def given_up(work: Any, *more: Any) -> Any:
                    if "put_segments" in repr(work):
                        scope.cancel()
                    return await task(work, *more)

                volume.store.task = given_up  # type: ignore[method-assign]
                await volume.care_once()
            volume.store.task = task  # type: ignore[method-assign]
            await volume.publisher.publish()
            return await peek(*args, **options)

        volume.repair.round = once  # type: ignore[method-assign]
        volume.network.transfer.peek = move_meanwhile  # type: ignore[method-assign]
        await volume.orphans.run(delete=True)
        now = volume._segment(segment.id)
        assert not rounds and now is not None and now.shares[0].provider == spare, "it is noted all the same"
        assert believed(world, volume) == []

    here.run(main)


def test_what_is_foreign_is_told_and_never_touched(world: World, clock: Clock) -> None:
    here = world.machine()
    here.init()
    like_a_share = f"shares/ab/{'c' * 50}"
    strange = {
        like_a_share: b"not a share at all, however it is called",
        f"shares/ab/{'d' * 50}": share_format.pack(b"x" * 100)[0] + b"longer than it says",
        "shares/readme": b"x",
        "backup/holiday.tar": b"y" * 1000,
        f"heads/{'f' * 16}-{'0' * 15}1-{'a' * 32}": b"a head newer than ours, or none",
        "slots/mine": b"z",
    }

    async def main(volume: Volume) -> None:
        clock.set(volume)
        await put_file(volume, b"f", b"x")
        await volume.sync()
        world.providers["cat"].objects.update(strange)
        before = everything(world)
        await volume.orphans.run(delete=True)
        clock.now += 2 * DAY
        report = await volume.orphans.run(delete=True)
        there = report.providers.pop("cat")
        assert (there.orphans, there.foreign) == (0, 5)
        head = next(name for name in strange if name.startswith("heads/"))
        assert there.foreign_bytes == sum(len(data) for name, data in strange.items() if name != head)
        assert set(there.examples) == strange.keys() - {head}
        assert all((other.orphans, other.foreign) == (0, 0) for other in report.providers.values())
        assert everything(world) == before

    here.run(main)


def test_names_are_listed_page_by_page(world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        clock.set(volume)
        await volume.drain()
        count = 2 * LIST_PAGE + 17
        file, _ = share_format.pack(b"")  # the least that a share can be
        world.providers["bee"].objects.update({f"shares/ab/{at:050}".translate(DIGITS): file for at in range(count)})
        pages: list[int] = []
        real = volume.network.transfer.list_objects

        async def listing(*asked: str, page: bool = False, deadline: float) -> list[str]:
            names = await real(*asked, page=page, deadline=deadline)
            pages.append(len(names))
            return names

        volume.network.transfer.list_objects = listing  # type: ignore[method-assign, assignment]
        told: list[int] = []
        report = await volume.orphans.run(progress=told.append)
        assert report.providers["bee"].orphans == count and not report.providers["bee"].more
        assert max(pages) == LIST_PAGE and told[0] > 0 == told[-1]
        monkeypatch.setattr("icnfs.volume.orphans.STRAYS_MAX", 100)
        report = await volume.orphans.run()
        assert report.providers["bee"].orphans == 100 and report.providers["bee"].more
        monkeypatch.setattr("icnfs.volume.listing.LISTED_MAX", 1500)
        report = await volume.orphans.run()
        assert "does not end" in report.skipped["bee"] and report.providers.keys() == world.providers.keys() - {"bee"}

    here.run(main)


DIGITS = str.maketrans("0123456789", "abcdefghij")


def test_a_provider_that_is_down_or_fails_is_skipped_and_its_orphans_are_remembered(world: World, clock: Clock) -> None:
    here = world.machine()
    here.init()
    here.run(lambda volume: volume.drain())
    here.run(leave_orphans)

    async def main(volume: Volume) -> None:
        clock.set(volume)
        total = orphans_of(await volume.orphans.run())
        world.away("ada", "bee")
        clock.now += DAY + 1
        report = await volume.orphans.run()
        assert report.skipped.keys() == {"ada", "bee"} and orphans_of(report) == total - 2
        world.away()
        report = await volume.orphans.run(delete=True)
        assert sum(there.deleted for there in report.providers.values()) == total

    here.run(main)


def test_a_provider_that_never_tells_how_large_objects_are_is_waited_for_once(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world.machine()
    here.init()
    bee = world.providers["bee"]
    bee.objects |= {f"notes/{number}": b"x" for number in range(100)}
    asked: list[str] = []

    async def size(name: str) -> int:
        asked.append(name)
        await trio.sleep_forever()
        raise AssertionError

    async def main(volume: Volume) -> None:
        clock.set(volume)
        monkeypatch.setattr("icnfs.volume.orphans.PEEK_SECONDS", 0.3)
        bee.size = size  # type: ignore[method-assign]
        report = await volume.orphans.run()
        assert "no answer within" in report.skipped["bee"]
        assert report.providers.keys() == world.providers.keys() - {"bee"}
        assert len(asked) == PEEKS_AT_ONCE

    here.run(main)


def test_an_orphan_that_repair_needs_meanwhile_stays(tmp_path: Path, clock: Clock) -> None:
    """A copy of a share at a place that it has left, to which it comes back while the run is on its way to it."""
    world = World(tmp_path, more=("gnu",))
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        clock.set(volume)
        await put_file(volume, b"f", os.urandom(300_000))
        await volume.sync()
        await volume.loaded.wait()
        segment = max((s for id in volume.repair.ids() if (s := volume._segment(id))), key=lambda s: s.share_len)
        spare = next(name for name in world.providers if name not in {share.provider for share in segment.shares})
        name = volume.network.share_name(segment.id, 0, spare)
        moved = await volume.repair._restore(segment, {0: spare})
        assert name in world.providers[spare].objects
        assert orphans_of(await volume.orphans.run()) == 1, "stored there, and not noted: as a crash leaves it"
        clock.now += DAY + 1
        real = volume.network.transfer.peek

        async def peek(*asked: object, deadline: float) -> object:
            async def round() -> list[object]:
                return [Gain(segment, moved)]

            volume.repair.round = round  # type: ignore[method-assign, assignment]
            await volume.care_once()
            return await real(*asked, deadline=deadline)  # type: ignore[arg-type]

        volume.network.transfer.peek = peek  # type: ignore[method-assign, assignment]
        volume.publisher.owes_head = False
        fence = volume.orphans._publisher
        delete = volume.orphans._delete

        async def unowed(*args: object) -> None:
            fence.owes_head = False
            await delete(*args)  # type: ignore[arg-type]

        volume.orphans._delete = unowed  # type: ignore[method-assign, assignment]
        report = await volume.orphans.run(delete=True)
        assert not sum(there.deleted for there in report.providers.values())
        assert name in world.providers[spare].objects

    here.run(main)


def test_a_machine_that_was_overtaken_deletes_nothing(world: World, clock: Clock) -> None:
    here = world.machine()
    key = here.init().recovery_key
    here.run(lambda volume: volume.drain())
    here.run(leave_orphans)

    async def main(volume: Volume) -> None:
        clock.set(volume)
        assert orphans_of(await volume.orphans.run())
        await trio.to_thread.run_sync(world.machine("there").recover, key)
        clock.now += DAY + 1
        before = everything(world)
        with pytest.raises(FencedError):
            await volume.orphans.run(delete=True)
        assert before == everything(world)

    here.run(main)


def test_what_a_head_names_that_too_few_took_stays(world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery may find it, and take it for the newest."""
    key = world.machine().init().recovery_key
    put_new = MemoryProvider.put_new

    async def refuse(provider: MemoryProvider, name: str, data: bytes) -> None:
        if name.startswith("heads/") and provider.name != "ada":
            raise ProviderRefusedError(provider.name, "no room")
        await put_new(provider, name, data)

    async def main(volume: Volume) -> None:
        clock.set(volume)
        await put_file(volume, b"f", b"1" * 1000)
        await volume.sync()
        await put_file(volume, b"f", b"2" * 1000)
        await volume.store.flush()
        monkeypatch.setattr(MemoryProvider, "put_new", refuse)
        with pytest.raises(TooFewProvidersError):
            await volume.publisher.publish()
        assert orphans_of(await volume.orphans.run()) > 0
        clock.now += DAY + 1
        with pytest.raises(DegradedError, match="not published"):
            await volume.orphans.run(delete=True)

    world.machine().run(main)
    there = world.machine("there")
    monkeypatch.undo()
    there.recover(key)
    assert there.run(lambda volume: get_file(volume, b"f")) == b"2" * 1000


def test_one_at_a_time_and_none_where_nothing_can_be_kept(world: World, clock: Clock) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await volume.drain()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.orphans.run)
            await trio.testing.wait_all_tasks_blocked(0.0)
            with pytest.raises(UsageError, match="already"):
                await volume.orphans.run()
        await volume.orphans.run()
        volume.store.read_only = True
        with pytest.raises(UsageError, match="read-only"):
            await volume.orphans.run()

    here.run(main)


def test_named_takes_eight_bytes_of_each_and_tells_all_apart() -> None:
    named = Named(["ada", "bee"])
    names = [f"shares/{at:052}" for at in range(100_000)]
    named.add(("ada", name) for name in names)
    named.add([("gone", "x")])
    named.sort()
    assert len(named) == len(names) and named._words["ada"].itemsize == 8
    assert all(named.has("ada", name) for name in names)
    assert not any(named.has("bee", name) for name in names[:1000])
    assert not any(named.has("ada", f"{name}x") for name in names)
