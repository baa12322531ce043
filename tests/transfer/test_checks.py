"""Checks tell present, missing, altered, down and unknown apart, and blame nobody for what they cannot know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from icnfs.errors import FormatError, ProviderError, ProviderLiesError, ProviderRefusedError
from icnfs.format import share as share_format
from icnfs.format.segment import SegmentInfo
from icnfs.limits import LEAF_SIZE
from icnfs.providers.faults import FaultPlan
from icnfs.transfer.engine import Engine
from icnfs.transfer.messages import ShareEvent
from tests.transfer.network import SHARE, Network, run

HEADER = share_format.header_size(SHARE)
LEAVES = -(-SHARE // LEAF_SIZE)


async def looked(engine: Engine, network: Network, info: SegmentInfo, *leaves: int) -> str:
    return (await engine.check(info, network.names, 0, leaves, deadline=30)).outcome


def test_what_is_there_is_present_and_costs_what_it_says() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            whole = await engine.check(info, network.names, 0, (), deadline=30)
            assert (whole.outcome, whole.bytes, whole.detail) == ("present", HEADER + SHARE, "")
            one = await engine.check(info, network.names, 5, (1,), deadline=30)
            assert (one.outcome, one.bytes) == ("present", HEADER + LEAF_SIZE)
            last = await engine.check(info, network.names, 5, (LEAVES - 1, LEAVES - 1), deadline=30)
            assert (last.outcome, last.bytes) == ("present", HEADER + SHARE % LEAF_SIZE)
        assert network.events == []

    run(main)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_byte_that_differs_is_found_by_the_whole_and_by_its_own_leaf_alone(data: st.DataObject) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            at = data.draw(st.one_of(st.integers(0, HEADER - 1), st.integers(0, HEADER + SHARE - 1)))
            network.corrupt(0, lambda file: file[:at] + bytes([file[at] ^ 1]) + file[at + 1 :])
            assert await looked(engine, network, info) == "altered"
            for leaf in range(LEAVES):
                harmed = at < HEADER or (at - HEADER) // LEAF_SIZE == leaf
                assert await looked(engine, network, info, leaf) == ("altered" if harmed else "present")
        [event] = network.events
        assert (event.provider, event.index, event.what) == ("p0", 0, "bad")

    run(main)


@pytest.mark.parametrize("cut", [0, 1, 31, HEADER - 1, HEADER, HEADER + LEAF_SIZE, HEADER + SHARE - 1])
def test_a_share_that_is_cut_short_is_altered(cut: int) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            network.corrupt(0, lambda file: file[:cut])
            assert await looked(engine, network, info) == "altered"
            assert await looked(engine, network, info, LEAVES - 1) == "altered"

    run(main)


def test_a_share_that_has_grown_is_altered_as_a_whole_and_at_its_last_leaf() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            network.corrupt(0, lambda file: file + b"x")
            assert await looked(engine, network, info) == "altered"
            assert await looked(engine, network, info, LEAVES - 1) == "altered"
            assert await looked(engine, network, info, 0) == "present"

    run(main)


def test_another_share_of_the_segment_is_altered() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            network.memories[0].objects[network.names[0]] = network.memories[1].objects[network.names[1]]
            for leaf in range(LEAVES):
                assert await looked(engine, network, info, leaf) == "altered"
            assert await looked(engine, network, info) == "altered"

    run(main)


def test_missing_is_said_only_where_the_provider_says_so() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            del network.memories[0].objects[network.names[0]]
            assert await looked(engine, network, info) == "missing"
            assert await looked(engine, network, info, 1) == "missing"
        [event] = network.events
        assert isinstance(event, ShareEvent) and event.what == "missing"

    run(main)


@pytest.mark.parametrize("plan", [FaultPlan(hang=1.0), FaultPlan(error=1.0)])
def test_no_answer_is_down_within_the_deadline(plan: FaultPlan) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            network.plan(0, plan)
            begun = trio.current_time()
            assert await looked(engine, network, info) == "down"
            assert await looked(engine, network, info, 2) == "down"
            assert trio.current_time() - begun <= 61
        assert network.events == []

    run(main)


@pytest.mark.parametrize(
    ("error", "sized", "outcome"),
    [
        (ProviderRefusedError("p0", "no"), True, "unknown"),
        (ProviderLiesError("p0", "a page of HTML"), False, "unknown"),
        (ProviderLiesError("p0", "cut short"), True, "altered"),
    ],
)
def test_a_refusal_is_unknown_and_so_is_one_who_speaks_no_sense(
    monkeypatch: pytest.MonkeyPatch, error: ProviderError, sized: bool, outcome: str
) -> None:
    async def fail(*_: object) -> bytes:
        raise error

    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            monkeypatch.setattr(network.memories[0], "get", fail)
            if not sized:
                monkeypatch.setattr(network.memories[0], "size", fail)
            assert await looked(engine, network, info, 0) == outcome

    run(main)


def test_one_whom_the_toml_does_not_name_is_unknown() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            engine.set_providers(network.faults[1:])
            assert await looked(engine, network, info) == "unknown"

    run(main)


def test_a_whole_share_that_is_right_again_is_no_longer_bad() -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            file = network.memories[0].objects[network.names[0]]
            network.corrupt(0, lambda file: file[:-1])
            assert await looked(engine, network, info) == "altered"
            assert engine.states()["p0"].bad_shares == 1
            network.corrupt(0, lambda _: file)
            assert await looked(engine, network, info, 0) == "present"
            assert engine.states()["p0"].bad_shares == 1, "one leaf does not acquit it"
            assert await looked(engine, network, info) == "present"
            assert engine.states()["p0"].bad_shares == 0

    run(main)


@pytest.mark.parametrize("change", [lambda n: (6, ()), lambda n: (0, (LEAVES,))])
def test_what_its_segment_does_not_have_is_refused(change: Callable[[Network], tuple[int, tuple[int, ...]]]) -> None:
    async def main() -> None:
        network = Network()
        async with network.engine() as engine:
            info = await network.stored(engine)
            index, leaves = change(network)
            with pytest.raises(FormatError):
                await engine.check(info, network.names, index, leaves, deadline=1)

    run(main)
