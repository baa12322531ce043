"""Publishing loses nothing, whoever is away, and says what it could not do."""

from __future__ import annotations

import os
import random
from collections import Counter
from types import SimpleNamespace
from typing import NoReturn

import pytest
import trio

from icnfs.errors import DegradedError, TooFewProvidersError
from icnfs.format.records import Table
from icnfs.state.loader import ROOT_INO
from icnfs.volume import attempt, runs
from icnfs.volume.attempt import Attempt
from icnfs.volume.publish import LOOK_SECONDS
from icnfs.volume.volume import SyncProgress, Volume
from icnfs.volume.withdraw import withdraw
from tests.volume.world import NAMES, World, files_of, get_file, list_files, put_file


async def read_all(volume: Volume) -> dict[bytes, bytes]:
    return {name: await get_file(volume, name) for name in list_files(volume)}


async def publish_fails(volume: Volume) -> str:
    await volume.store.flush()
    with pytest.raises(TooFewProvidersError) as caught:
        await volume.publisher.publish()
    return str(caught.value)


def test_with_one_provider_away_it_is_published_and_sync_says_degraded(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    data = os.urandom(300_000)

    async def body(volume: Volume) -> None:
        world.away("cat")
        await put_file(volume, b"f", data)
        with pytest.raises(DegradedError, match="cat lacks") as caught:
            await volume.sync(1.0)
        assert "published" in str(caught.value)
        status = volume.status()
        assert status.degraded
        assert status.unsafe_segments > 0
        assert next(p for p in status.providers if p.name == "cat").missing == status.missing_shares > 0

    here.run(body)
    world.machine("there").recover(key)


def test_missing_shares_are_completed_when_the_provider_returns(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    data = os.urandom(300_000)

    async def degraded(volume: Volume) -> None:
        world.away("cat")
        await put_file(volume, b"f", data)
        with pytest.raises(DegradedError):
            await volume.sync(1.0)

    async def mended(volume: Volume) -> None:
        world.away()
        await volume.sync()
        status = volume.status()
        assert not status.degraded
        assert status.missing_shares == 0
        await volume.publisher.publish()

    here.run(degraded)
    here.run(mended)
    world.lose("ada", "bee")
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all) == {b"f": data}

    async def nothing_lacks(volume: Volume) -> int:
        return volume.status().missing_shares

    assert there.run(nothing_lacks) == 0


def test_with_too_few_providers_nothing_is_lost_and_what_was_stored_is_not_sent_again(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    data = os.urandom(3_000_000)

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", data)
        real = volume.heads.store

        async def no_head(*args: object, **options: object) -> object:
            world.away("ada", "bee", "cat", "dog")
            return await real(*args, **options)  # type: ignore[arg-type]

        volume.heads.store = no_head  # type: ignore[assignment, method-assign]
        assert "head" in await publish_fails(volume)
        volume.heads.store = real  # type: ignore[method-assign]
        assert volume.store.dirty_bytes >= len(data)
        assert "do not answer" in await publish_fails(volume) or volume.publisher.failure is not None
        world.away()
        world.calls.clear()
        await volume.sync()
        assert world.calls.count("put_segment") == 1, "only the run; the chunks were stored before"
        assert volume.store.dirty_bytes == 0

    here.run(body)
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all) == {b"f": data}


def shares(world: World) -> dict[str, list[str]]:
    return world.objects("shares/")


async def withdrawn(volume: Volume) -> None:
    """Wait until nothing is being withdrawn."""
    with trio.fail_after(20):
        while any(task.name == f"{withdraw.__module__}.withdraw" for task in volume.publisher._spare.child_tasks):
            await trio.sleep(0.01)


def test_what_no_head_will_name_does_not_stay_at_the_providers(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key
    data = os.urandom(3_000_000)

    async def body(volume: Volume) -> None:
        await put_file(volume, b"before", os.urandom(200_000))
        await volume.publisher.publish()
        before = shares(world)
        for name in ("ada", "bee", "cat"):
            provider = world.providers[name]
            provider.capacity = sum(map(len, provider.objects.values())) + 100_000
        await put_file(volume, b"f", data)
        for _ in range(3):
            assert "no room for" in await publish_fails(volume)
            await withdrawn(volume)
            assert shares(world) == before
        for provider in world.providers.values():
            provider.capacity = 1 << 40
        await volume.sync()

    here.run(body)
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all)[b"f"] == data


def test_stored_segments_that_nobody_needs_any_more_go_unless_a_head_was_sent(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await put_file(volume, b"before", os.urandom(200_000))
        await volume.publisher.publish()
        before = shares(world)

        async def fails(*_: object) -> NoReturn:
            raise TooFewProvidersError("for this test")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Attempt, "_put_run", fails)
            await put_file(volume, b"f", os.urandom(3_000_000))
            await publish_fails(volume)
        kept = shares(world)
        assert kept != before, "the next attempt is to name them"
        files_of(volume).unlink(ROOT_INO, b"f")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Attempt, "_put_run", fails)
            await publish_fails(volume)
        await withdrawn(volume)
        assert shares(world) == before
        await put_file(volume, b"g", os.urandom(3_000_000))
        for step in ("_put_run", "_put_head"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Attempt, step, fails)
                await publish_fails(volume)
        told = shares(world)
        assert told != before
        files_of(volume).unlink(ROOT_INO, b"g")
        await volume.publisher.publish()
        await withdrawn(volume)
        assert all(set(told[name]) <= set(now) for name, now in shares(world).items()), "a head may name them"

    here.run(body)


def test_a_machine_that_slept_since_it_looked_at_the_heads_withdraws_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world.machine()
    here.init()
    slept = iter([0.0])
    monkeypatch.setattr("icnfs.volume.withdraw.time", SimpleNamespace(time=lambda: next(slept, 7200.0)))

    async def body(volume: Volume) -> None:
        for provider in list(world.providers.values())[:3]:
            provider.capacity = sum(map(len, provider.objects.values())) + 100_000
        before = shares(world)
        await put_file(volume, b"f", os.urandom(3_000_000))
        await publish_fails(volume)
        stored = shares(world)
        await withdrawn(volume)
        assert shares(world) == stored != before

    here.run(body)


def test_a_machine_that_was_overtaken_withdraws_nothing(world: World) -> None:
    """As one resumed from a snapshot of its memory might: what it stored before, the other one's head names."""
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", os.urandom(3_000_000))
        with pytest.MonkeyPatch.context() as patch:

            async def overtaken(*_: object) -> NoReturn:
                await trio.to_thread.run_sync(there.recover, key)
                raise TooFewProvidersError("for this test")

            patch.setattr(Attempt, "_put_run", overtaken)
            there = world.machine("there")
            await publish_fails(volume)
            kept = shares(world)
            files_of(volume).unlink(ROOT_INO, b"f")
            patch.setattr(Attempt, "_put_run", fails)
            await publish_fails(volume)
        await withdrawn(volume)
        assert all(set(kept[name]) <= set(now) for name, now in shares(world).items())
        assert volume.store.fenced is not None, "it has seen who took over, and takes no more writes"

    async def fails(*_: object) -> NoReturn:
        raise TooFewProvidersError("for this test")

    here.run(body)


def test_nothing_is_clean_before_a_durable_head_names_it(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", os.urandom(1 << 17))
        await volume.store.flush()
        dirty = volume.store.dirty_bytes
        assert dirty >= 1 << 17
        seen: list[int] = []
        real = volume.heads.store

        async def store(*args: object, **options: object) -> object:
            stored = await real(*args, **options)  # type: ignore[arg-type]
            seen.append(volume.store.dirty_bytes)
            return stored

        volume.heads.store = store  # type: ignore[assignment, method-assign]
        await volume.publisher.publish()
        assert seen == [dirty]
        assert volume.store.dirty_bytes == 0

    here.run(body)


@pytest.mark.parametrize("size", [5_000, 600_000])
def test_publishes_draw_on_all_providers_alike(world: World, size: int) -> None:
    """Records and chunks in turn: neither takes every second turn of the other."""
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await volume.publisher.publish()
        data, records = Counter[str](), Counter[str]()
        for number in range(12):
            before = set(volume.publisher.parts())
            await put_file(volume, f"f{number}".encode(), os.urandom(size))
            await volume.publisher.publish()
            for id in volume.publisher.parts() - before:
                part = volume.publisher.part(id)
                assert part is not None
                records.update(share.provider for share in part.shares[: part.k])
        for id in volume.repair.ids():
            if (segment := volume.store.segment(id)) is not None:
                data.update(share.provider for share in segment.shares[: segment.k])
        assert data == dict.fromkeys(NAMES, 12 * volume.network.k // len(NAMES))
        assert records == data

    here.run(body)


def test_a_small_publish_takes_two_round_trips(world: World) -> None:
    """Chunks and run go up together, then the head; the listing of heads runs beside the first."""
    here = world.machine()
    here.init()
    lapse = 0.8  # so much may all else take, on a machine that is busy with other tests

    async def body(volume: Volume) -> float:
        await volume.publisher.publish()
        await put_file(volume, b"f", b"x" * 5000)
        await volume.store.flush()
        for provider in world.providers.values():
            real = provider._turn

            async def turn(*, changes: bool = False, real=real) -> None:  # noqa: ANN001
                await trio.sleep(lapse)
                await real(changes=changes)

            provider._turn = turn  # type: ignore[method-assign]
        begun = trio.current_time()
        await volume.publisher.publish()
        return trio.current_time() - begun

    took = here.run(body)
    assert 2 * lapse <= took < 3 * lapse


def test_publishing_happens_by_itself_when_due_and_not_when_idle(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", b"x")
        await volume.store.flush()
        while volume.publisher.batch < volume.store.committed:
            await trio.sleep(0.01)
        while not volume.publisher.is_idle:
            await trio.sleep(0.01)
        heads = world.objects("heads/")
        calls = len(world.calls)
        await trio.sleep(0.5)
        assert world.objects("heads/") == heads
        assert len(world.calls) == calls

    here.run(body, publish_seconds=0.05)


def test_dirty_bytes_past_the_limit_are_published_early(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        await put_file(volume, b"f", os.urandom(1 << 18))
        while volume.store.dirty_bytes:
            await trio.sleep(0.01)

    here.run(body, publish_bytes=1 << 17)


def test_a_busy_mount_is_published_at_rest_or_once_much_is_dirty(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        publisher, busy = volume.publisher, True
        publisher.busy = lambda: busy
        await publisher.publish()
        first = publisher.batch
        await put_file(volume, b"burst", os.urandom(1 << 18))
        await trio.sleep(4 * LOOK_SECONDS)
        assert publisher.batch == first
        await put_file(volume, b"more", os.urandom(1 << 20))
        while publisher.batch == first:
            await trio.sleep(0.01)
        while volume.store.dirty_bytes:
            await trio.sleep(0.01)
        second = publisher.batch
        await put_file(volume, b"burst", os.urandom(1 << 18))
        await trio.sleep(4 * LOOK_SECONDS)
        assert publisher.batch == second
        busy = False
        while publisher.batch == second:
            await trio.sleep(0.01)

    here.run(body, publish_bytes=1 << 17, cache_dirty=1 << 22)


def test_many_publishes_recover_to_the_last_one(world: World) -> None:
    """Absorbed runs, checkpoints, overwrites, deletions and providers that come and go, from one seed each."""
    chance = random.Random(5)
    here = world.machine()
    key = here.init().recovery_key
    state: dict[bytes, bytes] = {}

    async def body(volume: Volume) -> None:
        for step in range(24):
            world.away(*chance.sample(NAMES, chance.choice([0, 0, 1, 2])))
            for _ in range(chance.randrange(1, 4)):
                name = b"f%d" % chance.randrange(12)
                data = chance.randbytes(chance.choice([10, 3000, 140_000]))
                old = state.get(name, b"")
                await put_file(volume, name, data)
                state[name] = data + old[len(data) :]
            await volume.store.flush()
            await volume.publisher.publish()
            if step % 8 == 7:
                assert await read_all(volume) == state

    here.run(body)
    world.away()
    there = world.machine("there")
    there.recover(key)
    assert there.run(read_all) == state


def test_a_large_tree_is_published_in_small_runs_and_recovers(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> None:
        for i in range(3000):
            await put_file(volume, b"name-%05d" % i, b"")
        await volume.sync()
        whole = volume.publisher.head.runs[0].size
        await put_file(volume, b"one more", b"")
        await volume.sync()
        head = volume.publisher.head
        assert [run.is_checkpoint for run in head.runs] == [True, False]
        assert head.runs[1].size < whole / 50

    here.run(body)
    there = world.machine("there")
    found = there.recover(key)
    assert found.files == 3002

    async def count(volume: Volume) -> int:
        return len(list_files(volume))

    assert there.run(count) == 3001


def test_records_of_many_segments_are_split_into_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "SEGMENT_SIZE", 300_000)
    here = world.machine()
    key = here.init().recovery_key

    async def body(volume: Volume) -> int:
        for i in range(6000):
            await put_file(volume, b"name-%05d" % i, b"")
        await volume.sync()
        return len(volume.publisher.head.runs[0].parts)

    assert here.run(body) > 2
    assert world.machine("there").recover(key).files == 6001


def test_progress_is_told_and_ends_complete(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        told: list[SyncProgress] = []
        await put_file(volume, b"f", os.urandom(2_000_000))
        await volume.drain(progress=told.append)
        assert told[-1].done_bytes == told[-1].total_bytes >= 2_000_000

    here.run(body)


def test_dirty_notes_do_not_pile_up(world: World) -> None:
    here = world.machine()
    here.init()

    async def body(volume: Volume) -> None:
        for i in range(30):
            await put_file(volume, b"same", b"%d" % i)
            await volume.store.flush()
            await volume.publisher.publish()
        assert volume.store.dirty_floor >= runs.remembered(volume.publisher.head.runs) > 0
        assert volume.store.reader.count(Table.DIRTY) < 500

    here.run(body)


def test_nothing_is_called_safe_before_it_is_known_what_there_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.init()

    async def degraded(volume: Volume) -> None:
        world.away("cat")
        await put_file(volume, b"f", os.urandom(300_000))
        with pytest.raises(DegradedError):
            await volume.sync(1.0)

    load = Volume.load_segments

    async def slowly(self: Volume) -> None:
        await trio.sleep(0.5)
        await load(self)

    async def synced(volume: Volume) -> None:
        world.away()
        await volume.sync()
        assert volume.status().missing_shares == 0
        assert all(segment.stored() == 6 for id in volume.repair.ids() if (segment := volume._segment(id)))
        assert volume.loaded.is_set()

    here.run(degraded)
    monkeypatch.setattr(Volume, "load_segments", slowly)
    here.run(synced)
