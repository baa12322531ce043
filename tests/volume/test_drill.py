"""A drill tells truly what would be lost without which providers, and changes nothing anywhere."""

from __future__ import annotations

import fcntl
import os
from functools import partial
from itertools import combinations
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from icnfs.crypto.slots import parse_recovery_key
from icnfs.errors import LocalDiskError, MountedError, SecretError, TooFewProvidersError, UsageError
from icnfs.format.records import U64, Table
from icnfs.format.share import header_size
from icnfs.limits import MIB
from icnfs.state import cut as cuts
from icnfs.state.apply import Writer
from icnfs.state.inode import Inode
from icnfs.state.loader import ROOT_INO
from icnfs.volume import drill as drills
from icnfs.volume.drill import Plan, Report, drill
from icnfs.volume.keyring import Secrets
from icnfs.volume.read_back import ReadBack, in_rows
from icnfs.volume.sample import BOUNDS, Sample
from icnfs.volume.volume import Volume
from tests.volume.world import BOUND, NAMES, Machine, World, chunks_of, files_of, flip, get_file, put_file

CONTENTS = {
    b"small": b"hello",
    b"empty": b"",
    b"chunk": os.urandom(1 << 17),
    b"large": os.urandom(3_000_000),
    b"larger": os.urandom(20_000_000),
} | {b"few-%02d" % i: os.urandom(500 * i) for i in range(20)}


@pytest.fixture(autouse=True)
def engine_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells at once what it has read."""
    monkeypatch.setattr(drills, "TOLD_SECONDS", 0.0)


async def write_all(volume: Volume) -> None:
    for name, data in CONTENTS.items():
        await put_file(volume, name, data)
    await volume.sync()


def filled(world: World) -> tuple[Machine, Secrets]:
    here = world.machine()
    key = here.init().recovery_key
    here.run(write_all)
    return here, Secrets(recovery=parse_recovery_key(key))


def everything(world: World) -> dict[str, dict[str, bytes]]:
    return {name: {n: bytes(d) for n, d in provider.objects.items()} for name, provider in world.providers.items()}


def tried(machine: Machine, offered: Secrets, plan: Plan, **options: Any) -> Report:
    async def main() -> Report:
        with trio.fail_after(BOUND):
            return await drill(machine.config(), machine.state_dir, offered, plan, start=machine.world.start, **options)

    return trio.run(main)


def scratch_of(machine: Machine) -> list[str]:
    return [p.name for p in machine.state_dir.parent.iterdir() if p.name != "demo"]


@pytest.mark.parametrize("without", [(), ("ada",), ("ada", "bee"), ("cat", "fox"), ("dog", "eel")])
def test_nothing_is_lost_without_any_two_and_nothing_is_changed(world: World, without: tuple[str, ...]) -> None:
    here, key = filled(world)
    before = everything(world)
    steps: list[tuple[int, int]] = []
    report = tried(here, key, Plan(frozenset(without), sample=None), progress=lambda a, b: steps.append((a, b)))
    assert report.is_lossless
    assert (report.lost_files, report.lost_segments, report.wrong_shares, report.away) == ((), 0, (), {})
    assert report.read_files == len([data for data in CONTENTS.values() if data])
    assert report.read_bytes == sum(map(len, CONTENTS.values()))
    assert report.bare_segments == (report.segments if len(without) == 2 else 0)
    assert report.whole_recovery_seconds is not None and report.whole_recovery_seconds >= report.read_seconds
    assert report.fetched_bytes >= report.read_bytes + report.record_bytes
    assert steps[-1][0] == steps[-1][1] == report.read_bytes
    assert everything(world) == before
    assert scratch_of(here) == []


def test_it_needs_no_local_state(world: World) -> None:
    _, key = filled(world)
    there = world.machine("there")
    report = tried(there, key, Plan(frozenset({"ada"}), sample=3))
    assert report.is_lossless and report.read_files == 3
    assert not there.state_dir.exists()


def test_without_three_it_is_told_who_is_missing(world: World) -> None:
    here, key = filled(world)
    before = everything(world)
    with pytest.raises(TooFewProvidersError) as caught:
        tried(here, key, Plan(frozenset({"ada", "cat", "eel"})))
    for name in ("ada", "cat", "eel"):
        assert f"provider {name}: taken to be lost" in str(caught.value)
    assert everything(world) == before
    assert scratch_of(here) == []


def test_a_secret_whose_slot_no_provider_holds_does_not_open_what_is_left(world: World) -> None:
    here, _ = filled(world)
    with pytest.raises(SecretError):
        tried(here, here.secrets, Plan())


def lacking_one(world: World) -> tuple[Machine, Secrets]:
    """A volume with a file of which the share at ada was not stored, and is noted so."""
    here = world.machine()
    offered = Secrets(recovery=parse_recovery_key(here.init().recovery_key))

    async def write_some(volume: Volume) -> None:
        await put_file(volume, b"safe", os.urandom(3_000_000))
        await volume.sync()
        ino = await put_file(volume, b"unsafe", os.urandom(3_000_000))
        await volume.sync()
        for id in {chunk.segment for chunk in await chunks_of(volume, ino)}:
            segment = volume.store.segment(bytes.fromhex(id))
            assert segment is not None
            at = next(i for i, share in enumerate(segment.shares) if share.provider == "ada")
            del world.providers["ada"].objects[volume.network.names_of(segment)[at]]
            shares = list(segment.shares)
            shares[at] = msgspec.structs.replace(shares[at], stored=False)
            changed = [msgspec.structs.replace(segment, shares=tuple(shares))]
            volume.store.touch()
            await volume.store.task(partial(cuts.put_segments, changed))
        await put_file(volume, b"later", b"its publish carries the notes")
        await volume.sync()

    here.run(write_some)
    return here, offered


def test_segments_that_lack_shares_are_named_with_their_files(world: World) -> None:
    here, offered = lacking_one(world)
    good = tried(here, offered, Plan(frozenset({"bee"})))
    assert good.is_lossless and 0 < good.bare_segments < good.segments
    for sample in (0, None):
        report = tried(here, offered, Plan(frozenset({"bee", "cat"}), sample=sample))
        assert not report.is_lossless
        assert [file.path for file in report.lost_files] == ["/unsafe"]
        assert 0 < report.lost_segments < report.segments
        assert report.wrong_shares == ()
    assert tried(here, offered, Plan(frozenset({"ada", "cat"}))).is_lossless, "ada holds nothing of what is unsafe"


def test_the_path_of_a_lost_file_is_from_the_root(world: World) -> None:
    here = world.machine()
    offered = Secrets(recovery=parse_recovery_key(here.init().recovery_key))

    async def write_some(volume: Volume) -> None:
        vfs = files_of(volume)
        parent = vfs.mkdir(vfs.mkdir(ROOT_INO, b"a", 0o755, 0, 0).ino, b"b", 0o755, 0, 0).ino
        handle, _ = vfs.create(parent, b"\xff\n", 0o100644, os.O_RDWR, 0, 0)
        await vfs.write(handle.fh, 0, os.urandom(400_000))
        vfs.release(handle.fh)
        await volume.sync()

    here.run(write_some)
    for name in ("ada", "bee", "cat"):
        objects = world.providers[name].objects
        large = [n for n in objects if n.startswith("shares/") and len(objects[n]) > 100_000]
        for object_name in large:
            del objects[object_name]
    report = tried(here, offered, Plan())
    assert [file.path for file in report.lost_files] == ["/a/b/\\xff\n"]


@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_shares_that_are_gone_or_altered_in_silence_are_met_by_reading(world: World, harm: str) -> None:
    here, key = filled(world)
    large = header_size(1 << 20)
    for name in ("ada", "bee", "cat"):
        objects = world.providers[name].objects
        for object_name in [n for n in objects if n.startswith("shares/") and len(objects[n]) > large + (1 << 20)]:
            data = bytearray(objects.pop(object_name))
            if harm == "flip":
                data[header_size(len(data)) :] = bytes(len(data) - header_size(len(data)))
                objects[object_name] = bytes(data)
    report = tried(here, key, Plan())
    assert report.lost_segments == 0, "records know nothing of it"
    assert "/larger" in [file.path for file in report.lost_files]
    assert not report.is_lossless
    assert {line.split()[1].rstrip(":") for line in report.wrong_shares} == {"ada", "bee", "cat"}
    assert all(("missing" if harm == "delete" else "altered") in line for line in report.wrong_shares)
    assert {"ada", "bee", "cat"} <= report.bad_shares.keys()


def test_a_provider_that_does_not_answer_is_told_of_and_counts_as_lost_too(world: World) -> None:
    here, key = filled(world)
    world.away("fox")
    report = tried(here, key, Plan(frozenset({"ada"}), sample=5))
    assert list(report.away) == ["fox"]
    assert report.read_files == 5 and report.lost_files == ()
    with pytest.raises(TooFewProvidersError, match="provider fox"):
        tried(here, key, Plan(frozenset({"ada", "bee"})))


def test_a_mount_goes_on_publishing_and_keeps_its_epoch(world: World) -> None:
    here, key = filled(world)

    async def body(volume: Volume) -> tuple[Report, bytes]:
        reports: list[Report] = []
        epoch = volume.fence.number[0]

        async def drill_it() -> None:
            for lost in ("ada", "bee"):
                plan = Plan(frozenset({lost}), sample=None)
                reports.append(await drill(here.config(), here.state_dir, key, plan, start=world.start))
            nursery.cancel_scope.cancel()

        async def publish() -> None:
            for i in range(1000):
                await put_file(volume, b"later-%03d" % i, os.urandom(300_000))
                await volume.sync()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            nursery.start_soon(drill_it)
        await volume.sync()
        assert not volume.store.read_only and volume.store.fenced is None
        assert volume.fence.number[0] <= epoch + 1
        assert all(report.is_lossless for report in reports)
        assert reports[0].sequence < reports[1].sequence, "it published between the two"
        return reports[1], await get_file(volume, b"large")

    report, large = here.run(body)
    assert report.read_files > len(CONTENTS) - 2
    assert large == CONTENTS[b"large"]


def test_every_pair_is_judged_and_the_worst_recovered(world: World) -> None:
    here, key = filled(world)
    before = everything(world)
    report = tried(here, key, Plan(any_of=2, sample=10))
    assert report.is_lossless
    assert {trial.without for trial in report.trials} == set(combinations(NAMES, 2))
    assert all((trial.failure, trial.lost_segments, trial.spare_owners) == ("", 0, 0) for trial in report.trials)
    assert len(report.without) == 2 and report.read_files == 10
    assert everything(world) == before and scratch_of(here) == []
    chosen = {tried(here, key, Plan(any_of=2, sample=0, seed=seed)).without for seed in range(4)}
    assert len(chosen) > 1, "of equals, another each time"


def test_the_worst_pair_is_one_that_would_lose_something(world: World) -> None:
    here, offered = lacking_one(world)
    report = tried(here, offered, Plan(any_of=2, sample=0))
    losing = {trial.without for trial in report.trials if trial.lost_segments}
    assert losing == {pair for pair in combinations(NAMES, 2) if "ada" not in pair}
    assert not any(trial.failure for trial in report.trials)
    assert report.without in losing and [file.path for file in report.lost_files] == ["/unsafe"]


def test_records_that_lack_a_share_are_a_loss_of_all(world: World) -> None:
    here = world.machine()
    offered = Secrets(recovery=parse_recovery_key(here.init().recovery_key))

    async def write_some(volume: Volume) -> None:
        world.away("ada")
        await put_file(volume, b"unsafe", os.urandom(3_000_000))
        await volume.drain()

    here.run(write_some)
    world.away()
    report = tried(here, offered, Plan(any_of=2))
    losing = {trial.without for trial in report.trials if "of the records of head" in trial.failure}
    assert losing == {pair for pair in combinations(NAMES, 2) if "ada" not in pair}
    with pytest.raises(TooFewProvidersError):
        tried(here, offered, Plan(frozenset(report.without)))


def test_any_three_of_six_are_too_many_and_said_for_each(world: World) -> None:
    here, key = filled(world)
    report = tried(here, key, Plan(any_of=3))
    assert len(report.trials) == 20 and all(trial.failure for trial in report.trials)
    assert "4 providers are needed" in report.failure and not report.is_lossless
    one = tried(here, key, Plan(frozenset({"ada"}), any_of=1, sample=0))
    assert {trial.without for trial in one.trials} == {("ada", name) for name in NAMES[1:]}


@pytest.mark.parametrize("any_of", [7, 30])
def test_sets_that_do_not_exist_are_refused(world: World, any_of: int) -> None:
    here, key = filled(world)
    with pytest.raises(UsageError, match=f"--any {any_of}: there are only 6 providers"):
        tried(here, key, Plan(any_of=any_of))


def test_a_slot_at_one_provider_alone_is_a_loss_of_all_with_it(world: World) -> None:
    here, key = filled(world)
    for name in NAMES[1:]:
        objects = world.providers[name].objects
        for object_name in [n for n in objects if n.startswith("slots/")]:
            del objects[object_name]
    report = tried(here, key, Plan(any_of=1))
    assert [trial.without for trial in report.trials if trial.failure] == [("ada",)]
    assert "key slot" in report.failure and report.without == ("ada",)


def test_what_a_crash_left_is_removed_and_two_at_once_are_refused(world: World) -> None:
    here, key = filled(world)
    left = here.state_dir.with_name("demo.drill")
    (left / "state" / "meta").mkdir(parents=True)
    (left / "state" / "meta" / "data.mdb").write_bytes(b"half")
    held = os.open(left, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(MountedError, match="another drill"):
        tried(here, key, Plan(sample=0))
    assert (left / "state").exists()
    os.close(held)
    assert tried(here, key, Plan(sample=0)).is_lossless
    assert not left.exists()


def test_scratch_is_private_and_gone_after_an_interrupt(world: World) -> None:
    here, key = filled(world)
    modes: list[int] = []

    def interrupt(done: int, whole: int) -> None:
        modes.append(here.state_dir.with_name("demo.drill").stat().st_mode & 0o777)
        if done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(BaseException) as caught:
        tried(here, key, Plan(sample=None), progress=interrupt)
    assert isinstance(caught.value, KeyboardInterrupt) or caught.value.split(KeyboardInterrupt)[0]  # type: ignore[attr-defined]
    assert set(modes) == {0o700}
    assert scratch_of(here) == []


def test_it_leaves_the_mount_its_reserve(world: World) -> None:
    here, key = filled(world)

    async def main() -> None:
        await drill(here.config(reserve=1 << 60), here.state_dir, key, Plan(), start=world.start)

    with pytest.raises(LocalDiskError, match="free some space"):
        trio.run(main)
    assert scratch_of(here) == []


# --- the sample -------------------------------------------------------------------------------------------------------


def node(ino: int, size: int) -> Inode:
    made = Inode(ino, 0o100644, 0, 0, 0)
    made.size, made.count = size, -(-size // (1 << 17))
    return made


@given(st.lists(st.integers(1, 1 << 30), max_size=60), st.integers(0, 70), st.integers(0, 1 << 63))
def test_a_sample_is_drawn_evenly_from_all_sizes_and_the_same_each_time(sizes: list[int], most: int, seed: int) -> None:
    def draw(limit: int | None) -> list[list[int]]:
        sample = Sample(limit, seed)
        for ino, size in enumerate(sizes):
            sample.see(node(ino, size))
        return [inodes for _, inodes in sample.files()]

    chosen = draw(most)
    assert chosen == draw(most)
    everybody = [[i for i, size in enumerate(sizes) if sum(size > b for b in BOUNDS) == c] for c in range(5)]
    assert [sorted(inodes) for inodes in draw(None)] == everybody
    assert sum(map(len, chosen)) == min(most, len(sizes))
    short = [len(c) for c, all_ in zip(chosen, everybody, strict=True) if len(c) < len(all_)]
    assert not short or max(map(len, chosen)) - min(short) <= 1, "who has more to give has given as many as anybody"
    for some, all_ in zip(chosen, everybody, strict=True):
        assert set(some) <= set(all_) and len(set(some)) == len(some)


def test_the_estimate_goes_by_the_rate_of_each_class() -> None:
    sample = Sample(2, 1)
    for ino in range(100):
        sample.see(node(ino, 10_000))
    sample.see(node(200, 1 << 30))
    (small, _), *_, (large, _) = sample.files()
    assert sample.all_seconds() is None
    small.read_bytes, small.seconds = 10_000, 0.1
    large.read_bytes, large.seconds = 1 << 24, 2.0
    assert sample.all_seconds() == pytest.approx(100 * 0.1 + 64 * 2.0)
    assert Sample(2, 1).all_seconds() == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_a_part_of_a_large_file_is_in_one_piece(seed: int) -> None:
    part = Sample(1, seed).part(7, list(range(5000)))
    assert part == list(range(part[0], part[0] + 128))
    assert Sample(None, seed).part(7, list(range(5000))) == list(range(5000))


@given(st.sets(st.integers(0, 200)), st.integers(1, 9))
def test_rows_hold_every_number_once_in_order(numbers: set[int], most: int) -> None:
    rows = list(in_rows(sorted(numbers), most))
    assert [n for first, count in rows for n in range(first, first + count)] == sorted(numbers)
    assert all(1 <= count <= most for _, count in rows)


def test_a_damaged_location_loses_its_file_alone(world: World) -> None:
    here = world.machine()
    key = here.init().recovery_key

    async def write(volume: Volume) -> int:
        ino = await put_file(volume, b"bad", os.urandom(MIB))
        await put_file(volume, b"good", os.urandom(MIB))
        await volume.sync()
        return ino

    ino = here.run(write)
    there = world.machine("there")
    there.recover(key)

    async def look(volume: Volume) -> None:
        record = volume.store.reader.chunk(ino, 2)
        assert record is not None
        row = U64.pack(record.version)

        def damage(writer: Writer, generation: int) -> None:
            sealed = writer.reader.raw(Table.LOCATIONS, row)
            assert sealed is not None
            writer.put_sealed(Table.LOCATIONS, row, flip(bytes(sealed), len(sealed) - 1), generation)

        await volume.store.task(damage)
        found = ReadBack(volume.store, Sample(most=None, seed=1), 30.0, lambda done, whole: None)
        await found.run()
        assert list(found.lost) == [ino]
        assert found.files == 1

    there.run(look)
