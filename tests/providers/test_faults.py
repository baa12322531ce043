"""Each fault does what its name says, and a seed replays it."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from icnfs.errors import ObjectMissingError, ProviderAwayError, ProviderError, ProviderLiesError
from icnfs.limits import KIB, MIB
from icnfs.providers.faults import FaultPlan, Faults
from icnfs.providers.memory import MemoryProvider


def faulty(**plan: float) -> Faults:
    inner = MemoryProvider("alpha")
    inner.objects["a"] = b"0123456789"
    return Faults(inner, FaultPlan(**plan))  # type: ignore[arg-type]


def stored(faults: Faults) -> dict[str, bytes]:
    assert isinstance(faults.inner, MemoryProvider)
    return faults.inner.objects


def test_flip_changes_one_bit() -> None:
    data = trio.run(faulty(flip=1).get, "a")
    changed = int.from_bytes(data, "big") ^ int.from_bytes(b"0123456789", "big")
    assert len(data) == 10 and changed.bit_count() == 1


def test_truncate_cuts_whole_objects_and_ranges_lie() -> None:
    faults = faulty(truncate=1)
    assert len(trio.run(faults.get, "a")) < 10
    with pytest.raises(ProviderLiesError):
        trio.run(faults.get, "a", 0, 10)


def test_lost_put_is_accepted_and_forgotten() -> None:
    faults = faulty(lose=1)
    trio.run(faults.put, "b", b"x")
    assert trio.run(faults.put_new, "b", b"x")
    assert "b" not in stored(faults)


def test_error_comes_before_and_after_the_effect() -> None:
    faults = faulty(error=1)
    for i in range(20):
        with pytest.raises(ProviderAwayError, match="on purpose"):
            trio.run(faults.put, f"b{i}", b"x")
    assert 0 < len(stored(faults)) - 1 < 20


def test_hang_never_answers() -> None:
    async def main() -> None:
        with trio.move_on_after(1e6) as scope:
            await faulty(hang=1).get("a")
        assert scope.cancelled_caught

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_latency_and_bandwidth_take_time() -> None:
    async def main() -> None:
        began = trio.current_time()
        await faulty(latency=2, bandwidth=10).get("a", 0, 10)
        assert 1 + 1 <= trio.current_time() - began <= 1 + 3

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_all_calls_of_a_provider_share_its_bandwidth_and_a_small_one_need_not_wait_for_large_ones() -> None:
    async def main() -> None:
        faults = faulty(bandwidth=MIB)
        ends: dict[str, float] = {}

        async def put(name: str, size: int) -> None:
            await faults.put(name, bytes(size))
            ends[name] = trio.current_time() - began

        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            for index in range(4):
                nursery.start_soon(put, f"large{index}", 4 * MIB)
            await trio.sleep(1)
            nursery.start_soon(put, "small", KIB)
        assert all(15 < ends[f"large{index}"] <= 16.1 for index in range(4)) and ends["small"] < 1.5
        assert max(ends.values()) == pytest.approx(16, abs=0.01)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_stale_answers_are_what_was_before_the_last_put() -> None:
    async def main() -> None:
        faults = faulty(stale=1)
        await faults.put("a", b"new")
        await faults.put("b", b"new")
        assert await faults.get("a") == b"0123456789"
        assert await faults.get("a", 2, 3) == b"234"
        assert await faults.size("a") == 10
        with pytest.raises(ProviderLiesError):
            await faults.get("a", 8, 3)
        with pytest.raises(ObjectMissingError):
            await faults.get("b")
        assert await faults.list("") == ["a"]
        faults.plan = FaultPlan()
        assert await faults.get("a") == b"new"
        assert await faults.list("") == ["a", "b"]

    trio.run(main)


def test_withheld_objects_are_denied() -> None:
    async def main() -> None:
        faults = faulty()
        faults.withheld.add("a")
        with pytest.raises(ObjectMissingError):
            await faults.get("a")
        with pytest.raises(ObjectMissingError):
            await faults.size("a")
        assert await faults.list("") == []

    trio.run(main)


def test_withheld_page_does_not_end_the_listing() -> None:
    async def main() -> None:
        faults = faulty()
        names = [f"b{i:04}" for i in range(1001)]
        stored(faults).update(dict.fromkeys(names, b""))
        faults.withheld.update(["a", *names[:1000]])
        assert await faults.list("") == names[1000:]

    trio.run(main)


def test_seed_replays_every_fault() -> None:
    async def answers(seed: int) -> list[object]:
        faults = faulty(error=0.3, flip=0.3, truncate=0.3, seed=seed)
        got: list[object] = []
        for _ in range(30):
            try:
                got.append(await faults.get("a"))
            except ProviderError as error:
                got.append(str(error))
        return got

    assert trio.run(answers, 1) == trio.run(answers, 1)
    assert trio.run(answers, 1) != trio.run(answers, 2)


@pytest.mark.parametrize("plan", [{"flip": 1.5}, {"latency": -1}, {"hang": float("nan")}, {"latency": float("inf")}])
def test_plan_out_of_range_is_refused(plan: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        partial(FaultPlan, **plan)()  # type: ignore[arg-type]
