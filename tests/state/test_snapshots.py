"""What snapshots keep: the bisection says the same as asking each."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from icnfs.state.snapshots import Kept
from tests.format.test_snapshot import ONE


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=8),
    st.integers(0, 40),
    st.integers(0, 45),
)
def test_a_version_is_kept_where_any_snapshot_names_it(steps: list[tuple[int, int]], version: int, died: int) -> None:
    """Generations rise, and the next version with them."""
    generation = following = 0
    ones = []
    for more, new in steps:
        generation, following = generation + more, following + new
        ones.append(msgspec.structs.replace(ONE, generation=generation, counters=(0, 0, 0, following, 0, 0)))
    expected = any(version < one.next_version and died > one.generation for one in ones)
    assert Kept(reversed(ones)).keeps(version, died) == expected
