"""Room and risk are counted by what could really happen."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.transfer.messages import ProviderState
from icnfs.volume.status import share_pools, survives, usable_bytes


@pytest.mark.parametrize(
    ("free", "expected"),
    [([60] * 6, 240), ([0, 60, 60, 60, 60, 60], 0), ([1000] * 5 + [10], 40), ([60] * 7, 280), ([60] * 5, 0), ([], 0)],
)
def test_room_is_what_n_distinct_providers_can_take(free: list[int], expected: int) -> None:
    assert usable_bytes(free, 4, 6) == expected


def test_a_disk_that_several_providers_share_is_counted_once() -> None:
    states = [ProviderState(f"p{i}", free_bytes=600, pool="disk") for i in range(6)] + [ProviderState("q")]
    assert share_pools(states) == [100] * 6
    apart = [ProviderState(f"p{i}", free_bytes=600) for i in range(3)]
    assert share_pools(apart) == [600] * 3


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=2, max_size=6), st.integers(1, 4))
def test_survives_is_what_the_worst_losses_leave(shares: list[tuple[str, bool]], k: int) -> None:
    k = min(k, len(shares))
    segment = SegmentInfo(
        bytes(16), k, len(shares), 1, 1, tuple(ShareInfo(f"p{i}", bytes(32), s) for i, (_, s) in enumerate(shares))
    )
    owners = {f"p{i}": owner for i, (owner, _) in enumerate(shares)}
    held = [owner for owner, stored in shares if stored]
    worst = -1
    for lost in range(len(set(held)) + 1):
        if all(sum(o not in gone for o in held) >= k for gone in itertools.combinations(sorted(set(held)), lost)):
            worst = lost
        else:
            break
    assert survives(segment, owners) == worst
