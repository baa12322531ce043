"""The engine over a network that fails: what must hold whatever n - k of its providers do."""

from __future__ import annotations

from itertools import combinations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.errors import (
    DamagedError,
    FormatError,
    ObjectMissingError,
    ProviderAwayError,
    ProviderFullError,
    ProviderRefusedError,
    TooFewProvidersError,
)
from icnfs.format import share as share_format
from icnfs.format.segment import SegmentInfo
from icnfs.providers.breaker import PROBE_SECONDS
from icnfs.providers.faults import FaultPlan
from icnfs.transfer.engine import Engine
from icnfs.transfer.fetch import code_for
from icnfs.transfer.upload import prove
from tests.transfer.network import SHARE, K, N, Network, run

HANGS, DEAD, LIES = FaultPlan(hang=1.0), FaultPlan(error=1.0), FaultPlan(flip=1.0)
DEADLINE = 100.0


# --- storing ----------------------------------------------------------------------------------------------------------


def test_every_share_is_stored_under_its_name_and_its_root() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            for index, memory in enumerate(network.memories):
                file, root = share_format.pack(share_format.parse(memory.objects[network.names[index]]).payload)
                assert list(memory.objects) == [network.names[index]]
                assert (file, root) == (memory.objects[network.names[index]], info.shares[index].root)

    run(main)


@pytest.mark.parametrize("n_less_k_wrong", list(combinations(range(N), N - K)))
def test_uploads_report_each_failure_by_share_and_store_the_rest(n_less_k_wrong: tuple[int, int]) -> None:
    async def main() -> None:
        network = Network()
        hanging, full = n_less_k_wrong
        network.plan(hanging, HANGS)
        network.memories[full].capacity = 1000
        async with network.engine() as engine:
            result = await engine.put_segment(network.order, memoryview(network.payload), deadline=10)
            kinds = {index: type(error) for index, error in result.errors.items()}
            assert kinds == {hanging: ProviderAwayError, full: ProviderFullError}
            assert all(error.provider == f"p{index}" for index, error in result.errors.items())
            data = await engine.get_segment(network.info(result), network.names, deadline=DEADLINE)
            assert b"".join(data) == network.payload

    run(main)


def test_only_the_shares_that_are_asked_for_are_stored_and_all_roots_are_told() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            whole = await network.stored(engine)
            for memory in network.memories:
                memory.objects.clear()
            result = await engine.put_segment(network.order, memoryview(network.payload), [1, 5], deadline=60)
            assert [index for index in range(N) if network.memories[index].objects] == [1, 5]
            assert result.roots == tuple(share.root for share in whole.shares)

    run(main)


def test_one_failed_try_is_mended_by_a_second() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            network.memories[2].away = True

            async def back() -> None:
                await trio.sleep(0.2)
                network.memories[2].away = False

            async with trio.open_nursery() as nursery:
                nursery.start_soon(back)
                await network.stored(engine)

    run(main)


def test_a_segment_that_does_not_decode_is_never_uploaded() -> None:
    code = code_for(K, N)
    data = [bytes([index]) * 1000 for index in range(K)]
    parity = code.encode(data)
    prove(code, data, parity)
    for index in range(N - K):
        broken = [bytearray(share) for share in parity]
        broken[index][777] ^= 1
        with pytest.raises(DamagedError, match="do not decode"):
            prove(code, data, broken)


@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 5), (3, 3), (2, 9), (10, 16)])
def test_every_code_stores_and_reads_back(k: int, n: int) -> None:
    async def main() -> None:
        network = Network(k, n, share_len=1000)
        async with network.engine() as engine:
            info = await network.stored(engine)
            for index in range(n - k):
                network.plan(index, DEAD)
            assert b"".join(await engine.get_segment(info, network.names, deadline=DEADLINE)) == network.payload

    run(main)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_healthy_read_is_one_ranged_read_of_one_share() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            assert await _fetch(engine, network, info, 2, 70_000, 5_000) == network.expected(2, 70_000, 5_000)
            down = {name: state.bytes_down for name, state in engine.states().items()}
            assert down == {f"p{index}": 5_000 if index == 2 else 0 for index in range(N)}

    run(main)


@pytest.mark.parametrize("plan", [HANGS, DEAD], ids=["hang", "dead"])
@pytest.mark.parametrize("wrong", list(combinations(range(N), N - K)))
def test_any_n_less_k_providers_may_be_gone(wrong: tuple[int, ...], plan: FaultPlan) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            for index in wrong:
                network.plan(index, plan)
            for share in range(K):
                begun = trio.current_time()
                got = await _fetch(engine, network, info, share, 65_000, 70_001)
                assert got == network.expected(share, 65_000, 70_001)
                assert trio.current_time() - begun < 10
            assert b"".join(await engine.get_segment(info, network.names, deadline=DEADLINE)) == network.payload
            assert not network.events  # who does not answer says nothing of his shares

    run(main)


@pytest.mark.parametrize("wrong", list(combinations(range(N), N - K)))
def test_lying_providers_poison_nothing_and_are_named(wrong: tuple[int, ...]) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            for index in wrong:
                network.plan(index, LIES)
            for share in range(K):
                got = await _fetch(engine, network, info, share, 1, SHARE - 2, distrust=frozenset({share}))
                assert got == network.expected(share, 1, SHARE - 2)
            assert b"".join(await engine.get_segment(info, network.names, deadline=DEADLINE)) == network.payload
            assert {event.provider for event in network.events} <= {f"p{index}" for index in wrong}
            bad = {name for name, state in engine.states().items() if state.bad_shares}
            assert bad >= {f"p{index}" for index in wrong if index < K}

    run(main)


DAMAGE = {
    "flipped": lambda file, other: file[:-5] + bytes([file[-5] ^ 4]) + file[-4:],
    "cut": lambda file, other: file[:-9],
    "emptied": lambda file, other: b"",
    "exchanged": lambda file, other: other,
    "leaf list flipped": lambda file, other: file[:40] + bytes([file[40] ^ 1]) + file[41:],
    "header flipped": lambda file, other: bytes([file[0] ^ 1]) + file[1:],
    "newer": lambda file, other: file[:9] + b"\x02" + file[10:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_providers_damaged_shares_are_worked_around_and_named_once(damage: str) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            other = network.memories[3].objects[network.names[3]]
            network.corrupt(1, lambda file: DAMAGE[damage](file, other))
            for _ in range(3):
                got = await _fetch(engine, network, info, 1, SHARE - 300, 300, distrust=frozenset({1}))
                assert got == network.expected(1, SHARE - 300, 300)
            await trio.testing.wait_all_tasks_blocked()
            assert [(event.provider, event.name, event.what) for event in network.events] == [
                ("p1", network.names[1], "bad")
            ]
            assert engine.states()["p1"].bad_shares == 1

    run(main)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shares_do_not_poison_a_whole_segment(damage: str) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            other = network.memories[3].objects[network.names[3]]
            for index in (1, 2):
                network.corrupt(index, lambda file: DAMAGE[damage](file, other))
            assert b"".join(await engine.get_segment(info, network.names, deadline=DEADLINE)) == network.payload
            assert {event.name for event in network.events} == {network.names[1], network.names[2]}

    run(main)


def test_a_share_that_is_whole_again_counts_as_mended() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            good = network.memories[1].objects[network.names[1]]
            network.corrupt(1, lambda file: file[:-1])
            await engine.get_segment(info, network.names, deadline=DEADLINE)
            assert engine.states()["p1"].bad_shares == 1
            network.memories[1].objects[network.names[1]] = good
            network.memories[0].away = network.memories[2].away = True
            await engine.get_segment(info, network.names, deadline=DEADLINE)
            assert engine.states()["p1"].bad_shares == 0

    run(main)


def test_a_withheld_share_is_named_as_missing() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            network.faults[0].withheld.add(network.names[0])
            assert await _fetch(engine, network, info, 0, 0, 10) == network.expected(0, 0, 10)
            assert [event.what for event in network.events] == ["missing"]
            assert engine.states()["p0"].state == "up"

    run(main)


def test_with_fewer_than_k_shares_the_refusal_says_what_is_missing() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            for index in range(N - K + 1):
                network.plan(index, DEAD)
            with pytest.raises(TooFewProvidersError, match=r"3 of the 4 shares.*provider p0.*provider p1.*provider p2"):
                await _fetch(engine, network, info, 0, 0, 10)
            assert await _fetch(engine, network, info, 5 - 2, 0, 10) == network.expected(3, 0, 10)

    run(main)


def test_no_read_outlives_its_deadline() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            for index in range(N):
                network.plan(index, HANGS)
            for call in (
                lambda: engine.fetch(info, network.names, 0, 0, 10, deadline=20),
                lambda: engine.get_segment(info, network.names, deadline=20),
                lambda: engine.get_object("p0", "volume", deadline=20),
                lambda: engine.list_objects("p0", "heads/", deadline=20),
                lambda: engine.complete_segment(info, network.names, [1], ["p1"], [network.names[1]], deadline=20),
            ):
                begun = trio.current_time()
                with pytest.raises(ProviderAwayError):
                    await call()
                assert trio.current_time() - begun <= 20.1

    run(main)


def test_a_hanging_provider_costs_the_hedge_once_and_not_with_every_read() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            network.plan(0, HANGS)
            begun = trio.current_time()
            for _ in range(10):
                assert await _fetch(engine, network, info, 0, 0, 10) == network.expected(0, 0, 10)
            assert 2.0 <= trio.current_time() - begun < 2.5

    run(main)


def test_a_provider_that_hangs_on_many_reads_does_not_slow_the_others() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            network.plan(0, HANGS)
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(_fetch, engine, network, info, 0, 0, 10)
                await trio.testing.wait_all_tasks_blocked()
                begun = trio.current_time()
                assert await _fetch(engine, network, info, 1, 0, 10) == network.expected(1, 0, 10)
                assert trio.current_time() == begun

    run(main)


def test_ranges_that_do_not_exist_are_refused() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            for share, offset, length in [(K, 0, 1), (0, SHARE, 1), (0, -1, 1), (0, 0, SHARE + 1)]:
                with pytest.raises(FormatError):
                    await _fetch(engine, network, info, share, offset, length)
            assert await _fetch(engine, network, info, 0, SHARE, 0) == b""

    run(main)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    wrong=st.sets(st.integers(0, N - 1), max_size=N - K),
    share=st.integers(0, K - 1),
    place=st.tuples(st.integers(0, SHARE - 1), st.integers(1, 140_000)),
    data=st.data(),
)
def test_any_range_comes_back_right_under_seeded_faults(
    seed: int, wrong: set[int], share: int, place: tuple[int, int], data: st.DataObject
) -> None:
    plans = [
        FaultPlan(hang=0.5, seed=seed),
        FaultPlan(error=0.7, seed=seed),
        FaultPlan(flip=0.5, truncate=0.2, seed=seed),
        FaultPlan(latency=5.0, seed=seed),
    ]
    chosen = {index: data.draw(st.sampled_from(plans)) for index in sorted(wrong)}
    offset, length = place[0], min(place[1], SHARE - place[0])

    async def main() -> None:
        network = Network(seed=seed)
        async with network.engine(watch=True) as engine:
            info = await network.stored(engine)
            for index, plan in chosen.items():
                network.plan(index, plan)
            got = await _fetch(engine, network, info, share, offset, length, verified=True)
            assert got == network.expected(share, offset, length)

    run(main)


# --- completing -------------------------------------------------------------------------------------------------------


def test_missing_shares_are_rebuilt_as_they_were_and_count_as_mended() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            files = [memory.objects[name] for memory, name in zip(network.memories, network.names, strict=True)]
            network.memories[1].objects.clear()
            network.corrupt(5, lambda file: file[:-1] + b"!")
            with pytest.raises(ObjectMissingError):
                await engine.get_object("p1", network.names[1], deadline=DEADLINE)
            await _fetch(engine, network, info, 1, 0, 10)
            targets = [network.names[1], network.names[5]]
            result = await engine.complete_segment(
                info, network.names, [1, 5], ["p1", "p5"], targets, deadline=DEADLINE
            )
            assert not result.errors and result.roots == tuple(share.root for share in info.shares)
            assert [memory.objects[name] for memory, name in zip(network.memories, network.names, strict=True)] == files
            assert network.events[-1].what == "mended" and engine.states()["p1"].bad_shares == 0

    run(main)


def test_completing_never_stores_what_does_not_fit_its_root() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            other = Network(seed=1)
            info, foreign = (
                await network.stored(engine),
                await engine.put_segment(other.order, memoryview(other.payload), deadline=60),
            )
            shares = (*info.shares[:5], other.info(foreign).shares[5])
            forged = type(info)(info.id, info.k, info.n, info.share_len, info.size, shares)
            before = dict(network.memories[5].objects)
            with pytest.raises(DamagedError, match="do not fit their roots"):
                await engine.complete_segment(forged, network.names, [5], ["p5"], [network.names[5]], deadline=DEADLINE)
            assert network.memories[5].objects == before

    run(main)


def test_completing_with_too_few_shares_stores_nothing() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            for index in (0, 1, 2):
                network.memories[index].objects.clear()
            with pytest.raises(TooFewProvidersError):
                await engine.complete_segment(info, network.names, [0], ["p0"], [network.names[0]], deadline=DEADLINE)

    run(main)


# --- objects and health -----------------------------------------------------------------------------------------------


def test_objects_are_stored_listed_read_and_deleted() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            names = [f"heads/{index:04}" for index in range(2500)]
            network.memories[0].objects.update(dict.fromkeys(names, b""))
            await engine.put_object("p0", "heads/9999", b"head", deadline=5)
            assert await engine.list_objects("p0", "heads/", deadline=5) == [*names, "heads/9999"]
            assert await engine.get_object("p0", "heads/9999", deadline=5) == b"head"
            await engine.delete_object("p0", "heads/9999", deadline=5)
            await engine.delete_object("p0", "heads/9999", deadline=5)
            with pytest.raises(ObjectMissingError):
                await engine.get_object("p0", "heads/9999", deadline=5)
            with pytest.raises(ProviderRefusedError):
                await engine.get_object("nobody", "volume", deadline=5)
            with pytest.raises(ProviderRefusedError):
                await engine.put_object("p0", "../escape", b"", deadline=5)

    run(main)


def test_states_follow_what_providers_do() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine(watch=True) as engine:
            assert {state.state for state in engine.states().values()} == {"unknown"}
            await trio.testing.wait_all_tasks_blocked()
            assert {state.state for state in engine.states().values()} == {"up"}
            network.memories[3].away = True
            with pytest.raises(ProviderAwayError):
                await engine.probe("p3", deadline=5)
            assert engine.states()["p3"].state == "down" and "not answer" in engine.states()["p3"].error
            network.memories[3].away = False
            await trio.sleep(70)
            assert engine.states()["p3"].state == "up" and engine.states()["p3"].error == ""

    run(main)


def test_a_provider_that_nobody_asks_anything_is_seen_to_be_gone_within_20_seconds() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine(watch=True) as engine:
            await trio.testing.wait_all_tasks_blocked()
            network.memories[3].away = True
            network.plan(4, FaultPlan(hang=1.0))
            await trio.sleep(20.1)
            gone = [name for name, state in engine.states().items() if state.state == "down"]
            assert gone == ["p3", "p4"]

    run(main)


def test_a_queue_behind_a_hanging_provider_drains_in_the_time_of_one_probe() -> None:
    async def main() -> None:
        network = Network()
        network.plan(4, HANGS)
        async with network.engine() as engine:
            with pytest.raises(ProviderAwayError):
                await engine.probe("p4", deadline=60)
            begun = trio.current_time()

            async def put(index: int) -> None:
                with pytest.raises(ProviderAwayError):
                    await engine.put_object("p4", f"heads/{index}", b"", deadline=60)

            async with trio.open_nursery() as nursery:
                for index in range(20):
                    nursery.start_soon(put, index)
            assert trio.current_time() - begun <= PROBE_SECONDS

    run(main)


def test_a_provider_that_breaks_its_contract_is_an_error_of_the_closed_list(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        network = Network()

        async def broken(name: str, data: object) -> None:
            raise RuntimeError("a bug")

        network.faults[2].put = broken  # type: ignore[method-assign]
        async with network.engine() as engine:
            result = await engine.put_segment(network.order, memoryview(network.payload), deadline=60)
            assert set(result.errors) == {2} and "broke its contract" in str(result.errors[2])

    run(main)
    assert "provider p2 broke its contract" in caplog.text


async def _fetch(
    engine: Engine,
    network: Network,
    info: SegmentInfo,
    share: int,
    offset: int,
    length: int,
    distrust: frozenset[int] = frozenset(),
    verified: bool = False,
) -> bytes:
    return await engine.fetch(
        info,
        network.names,
        share,
        offset,
        length,
        distrust=distrust,
        verified=verified,
        deadline=DEADLINE,
    )
