"""Uploads beside slow providers: one costs the others nothing, and what is late stays bounded.  All in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from icnfs.errors import NameTakenError, ProviderAwayError
from icnfs.limits import KIB, LEAF_SIZE, SEGMENT_SIZE
from icnfs.providers.faults import FaultPlan
from icnfs.providers.memory import MemoryProvider
from icnfs.transfer import late as lateness
from icnfs.transfer.engine import Engine
from icnfs.transfer.late import PATIENCE_SECONDS, Late, Storing
from icnfs.transfer.lately import LateShares
from icnfs.transfer.messages import Order, ShareEvent, Stored
from icnfs.transfer.shares import Shares
from icnfs.transfer.upload import PutResult
from tests.transfer.network import SHARE, K, N, Network, run

RATE = 200 * KIB
"""Bytes per second of the fast providers: a share takes about a second."""


def _slowed(slow: int = 5, times: float = 10.0) -> Network:
    network = Network()
    for index in range(N):
        network.plan(index, FaultPlan(bandwidth=RATE / times if index == slow else RATE))
    return network


async def _put(engine: Engine, network: Network, number: int = 0, enough: int = N - 1) -> PutResult:
    names = tuple(f"{name}-{number}" for name in network.names)
    order = Order(bytes([number]) * 16, K, N, SHARE, K * SHARE, names, network.order.providers)
    return await engine.put_segment(order, memoryview(network.payload), enough=enough, deadline=600)


def test_a_slow_share_is_late_and_its_end_is_told_after_the_answer() -> None:
    async def main() -> None:
        network = _slowed()
        async with network.engine() as engine:
            begun = trio.current_time()
            result = await _put(engine, network)
            took = trio.current_time() - begun
            assert took < 1.6 * SHARE / RATE and (result.late, result.errors) == ({5}, {})
            assert not network.events and engine.late.held("p5") == SHARE
            await trio.sleep(20 * SHARE / RATE)
            (event,) = network.events
            assert (event.provider, event.index, event.what) == ("p5", 5, "stored")
            assert event.name in network.memories[5].objects and engine.late.held() == 0

    run(main)


def test_a_late_share_that_fails_is_told_with_the_reason() -> None:
    async def main() -> None:
        network = _slowed()
        async with network.engine() as engine:
            assert (await _put(engine, network)).late == {5}
            network.memories[5].read_only = True
            await trio.sleep(100)
            assert [(event.what, "read-only" in event.detail) for event in network.events] == [("failed", True)]
            assert engine.late.held() == 0

    run(main)


def test_a_little_difference_makes_nobody_late() -> None:
    async def main() -> None:
        network = _slowed(times=1.3)
        async with network.engine() as engine:
            assert await _put(engine, network) == await _put(engine, network, enough=N)

    run(main)


def test_all_are_waited_for_unless_fewer_are_enough() -> None:
    async def main() -> None:
        network = _slowed()
        async with network.engine() as engine:
            result = await engine.put_segment(network.order, memoryview(network.payload), deadline=600)
            assert not result.late and not result.errors and trio.current_time() > 9 * SHARE / RATE

    run(main)


def test_many_segments_go_at_the_pace_of_the_fast_and_late_ones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lateness, "LATE_PER_PROVIDER", 3 * SHARE)
    most = 0

    async def main() -> None:
        nonlocal most
        network = _slowed()
        async with network.engine() as engine:
            begun = trio.current_time()
            results = []
            for number in range(40):
                results.append(await _put(engine, network, number))
                most = max(most, engine.late.held("p5"))
                assert engine.late.held() == engine.late.held("p5")
            took = trio.current_time() - begun
            # The first segment pays the patience, once; and the last one that of a share which is held back.
            assert took <= 40 * SHARE / RATE * 1.05 + 2 * PATIENCE_SECONDS + SHARE / RATE
            assert all(result.late | result.errors.keys() <= {5} for result in results)
            refused = [result for result in results if result.errors]
            assert len(refused) > 20 and "slower than the others" in str(refused[-1].errors[5])
            await trio.sleep(100)
            at_slow = len(network.memories[5].objects)
            assert at_slow >= 4 and at_slow == sum(not result.errors for result in results)
            assert at_slow == sum(result.late == {5} for result in results) == len(network.events)

    run(main)
    assert most == 3 * SHARE


def test_a_provider_that_pauses_among_full_segments_is_given_up_by_none() -> None:
    """Segments as publishes make them, the next as soon as one of four is answered; each share takes 0.6 s."""
    share_len = SEGMENT_SIZE // K + LEAF_SIZE
    told: list[ShareEvent] = []
    answered: list[Storing] = []

    async def put(provider: int, number: int) -> None:
        await trio.sleep(1.1 if provider == 0 and 8 <= number < 12 else 0.6)

    def event(index: int, what: str, detail: str) -> ShareEvent:
        return ShareEvent(f"p{index}", f"name-{index}", b"i" * 16, index, what, detail)

    async def segment(late: Late, number: int, slots: trio.Semaphore) -> None:
        storing = Storing(
            late,
            {index: partial(put, index, number) for index in range(N)},
            event,
            {index: f"p{index}" for index in range(N)},
            {index: share_len * (K if index < K else 1) for index in range(N)},
            trio.current_time() + 300,
        )
        await storing.answer(K + 1)
        answered.append(storing)
        slots.release()

    async def main() -> None:
        slots = trio.Semaphore(4)
        async with trio.open_nursery() as nursery:
            late = Late(nursery, told.append)
            for number in range(24):
                await slots.acquire()
                nursery.start_soon(segment, late, number, slots)
        assert late.held() == 0

    run(main)
    assert len(answered) == 24 and not any(storing.errors for storing in answered)
    assert len(told) == sum(len(storing.late) for storing in answered) >= 4


def test_a_provider_with_many_late_shares_is_used_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lateness, "LATE_PER_PROVIDER", SHARE)

    async def main() -> None:
        network = _slowed()
        async with network.engine() as engine:
            assert (await _put(engine, network, 0)).late == {5}
            network.memories[0].away = True
            result = await _put(engine, network, 1)
            assert set(result.errors) == {0} and not result.late

    run(main)


def test_a_provider_that_hangs_holds_up_nobody_and_fails_in_the_end() -> None:
    async def main() -> None:
        network = Network()
        network.plan(2, FaultPlan(hang=1.0))
        async with network.engine() as engine:
            begun = trio.current_time()
            assert (await _put(engine, network)).late == {2}
            assert trio.current_time() - begun <= PATIENCE_SECONDS
            await trio.sleep(600)
            assert [(event.index, event.what) for event in network.events] == [(2, "failed")]

    run(main)


def test_an_upload_that_is_cancelled_stops_everywhere() -> None:
    async def main() -> None:
        network = _slowed()
        async with network.engine() as engine:
            with trio.move_on_after(SHARE / RATE / 2):
                await _put(engine, network)
            await trio.sleep(100)
            assert not any(memory.objects for memory in network.memories)
            assert engine.late.held() == 0 and not network.events

    run(main)


def test_moving_a_share_reads_it_alone_where_that_can_be_done() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            before = {name: state.bytes_down for name, state in engine.states().items()}
            result = await engine.complete_segment(info, network.names, [2], ["p0"], ["shares/new"], deadline=60)
            after = {name: state.bytes_down for name, state in engine.states().items()}
            assert not result.errors
            assert network.memories[0].objects["shares/new"] == network.memories[2].objects[network.names[2]]
            assert {name for name in after if after[name] != before[name]} == {"p2"}

    run(main)


@pytest.mark.parametrize("plan", [FaultPlan(hang=1.0), FaultPlan(flip=1.0), FaultPlan(error=1.0)], ids=str)
def test_moving_a_share_from_a_provider_that_does_not_give_it_rebuilds_it(plan: FaultPlan) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            whole = network.memories[2].objects[network.names[2]]
            network.plan(2, plan)
            result = await engine.complete_segment(info, network.names, [2], ["p0"], ["shares/new"], deadline=100)
            assert not result.errors and network.memories[0].objects["shares/new"] == whole

    run(main)


# --- what the front makes of it ---------------------------------------------------------------------------------------

ORDER = Order(b"i" * 16, 1, 3, 10, 10, ("s/0", "s/1", "s/2"), ("a", "b", "c"))
ROOTS = (b"r" * 32,) * 3


def _event(index: int, what: str) -> ShareEvent:
    return ShareEvent(ORDER.providers[index], ORDER.names[index], ORDER.id, index, what, "why")


def test_an_end_that_was_told_before_the_answer_is_part_of_it() -> None:
    late = LateShares()
    with late.following(ORDER):
        assert not late.ended(_event(0, "stored")) and not late.ended(_event(1, "failed"))
        settled = late.settle(ORDER, Stored(1, ROOTS, {}, (0, 1, 2)), alive=True)
    assert settled.late == (2,) and {index: fault.detail for index, fault in settled.errors.items()} == {1: "why"}
    assert late.ended(_event(2, "stored")) and not late.ended(_event(2, "stored")) and late.lost() == []


def test_a_process_that_ends_takes_its_late_shares_with_it() -> None:
    late = LateShares()
    with late.following(ORDER):
        late.settle(ORDER, Stored(1, ROOTS, {}, (1,)), alive=True)
    (event,) = late.lost()
    assert (event.provider, event.name, event.index, event.what) == ("b", "s/1", 1, "failed")
    assert late.lost() == []
    with late.following(ORDER):
        settled = late.settle(ORDER, Stored(1, ROOTS, {}, (1,)), alive=False)
    assert not settled.late and list(settled.errors) == [1] and late.lost() == []


# --- providers that change --------------------------------------------------------------------------------------------


def test_providers_come_and_go_while_others_stay_as_they_are() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine(watch=True) as engine:
            info = await network.stored(engine)
            gone, new = network.faults[5], network.order
            before = engine.states()["p0"]
            closed = trio.Event()

            async def close() -> None:
                closed.set()

            gone.close = close  # type: ignore[method-assign]
            network.plan(5, FaultPlan(latency=4.0))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine._lanes["p5"].get, network.names[5])
                await trio.testing.wait_all_tasks_blocked()
                engine.set_providers(network.faults[:5])
                assert engine.states().keys() == {f"p{index}" for index in range(5)}
                assert engine.states()["p0"] == before and not closed.is_set()
            await trio.testing.wait_all_tasks_blocked()
            assert closed.is_set()
            assert b"".join(await engine.get_segment(info, network.names, deadline=60)) == network.payload
            result = await engine.put_segment(new, memoryview(network.payload), deadline=60)
            assert set(result.errors) == {5} and "does not name it" in str(result.errors[5])
            network.plan(5, FaultPlan())
            engine.set_providers(network.faults)
            await trio.sleep(1)
            assert engine.states()["p5"].state == "up"
            assert not (await engine.put_segment(new, memoryview(network.payload), deadline=60)).errors

    run(main)


def test_a_share_does_not_go_to_a_place_that_took_the_name_of_its_own_while_it_was_coded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        network = Network()
        others: list[MemoryProvider] = []
        async with network.engine() as engine:
            compute = Shares.compute

            async def replaced(shares: Shares, size: int, work: Callable[[], Any]) -> Any:
                others.append(MemoryProvider("p5"))
                engine.set_providers([*network.faults[:5], others[-1]])
                return await compute(shares, size, work)

            monkeypatch.setattr(Shares, "compute", replaced)
            result = await engine.put_segment(network.order, memoryview(network.payload), deadline=60)
            assert set(result.errors) == {5} and "it was replaced" in str(result.errors[5])
            lacking = network.info(result)
            result = await engine.complete_segment(lacking, network.names, [5], ["p5"], ["again"], deadline=60)
            assert set(result.errors) == {5}
            assert not any(other.objects for other in others)

    run(main)


def test_an_object_that_must_be_new_is_taken_by_equal_bytes_alone() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            for _ in range(2):
                await engine.put_object("p0", "volume", b"mine", new=True, deadline=5)
            with pytest.raises(NameTakenError, match="volume is there already"):
                await engine.put_object("p0", "volume", b"yours", new=True, deadline=5)
            assert network.memories[0].objects["volume"] == b"mine"
            network.memories[0].away = True
            with pytest.raises(ProviderAwayError):
                await engine.put_object("p0", "heads/1", b"", new=True, deadline=5)

    run(main)
