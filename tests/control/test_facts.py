"""What `info` answers: chunks that share their fate are one extent, and an answer has an end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnfs.control.facts import EXTENTS_MAX, Extent, FileFacts, FileFold
from icnfs.volume.status import ChunkPlace, SharePlace


def chunk(index: int, segment: str = "aa", survives: int = 2, *, local: bool = True, share: int = 0) -> ChunkPlace:
    if not segment:
        return ChunkPlace(index, index, 9, local, "", None, (), -1)
    return ChunkPlace(index, index, 9, local, segment, share, (SharePlace(0, f"at-{segment}", "o", True),), survives)


def fold(chunks: Sequence[ChunkPlace]) -> FileFacts:
    folded = FileFold()
    for each in chunks:
        folded.add(each)
    return folded.facts(7, 1000)


def slowly(chunks: Sequence[ChunkPlace]) -> list[Extent]:
    """All extents, from all chunks at once."""
    found = []
    runs = groupby(enumerate(chunks), key=lambda at: (at[1].index - at[0], at[1].segment, at[1].local, at[1].survives))
    for (_, segment, local, survives), run in runs:
        part = [each for _, each in run]
        shares = sorted({each.share for each in part if each.share is not None})
        found.append(Extent(part[0].index, part[-1].index, local, segment, shares, survives))
    return found


CHUNK = st.tuples(st.integers(1, 3), st.sampled_from(["", "aa", "bb"]), st.booleans(), st.integers(0, 1))


@given(st.lists(CHUNK), st.integers(1, 4))
def test_extents_are_runs_of_one_fate(drawn: list[tuple[int, str, bool, int]], most: int) -> None:
    index, chunks = -1, []
    for step, segment, local, share in drawn:
        index += 1 if step < 3 else 2
        chunks.append(chunk(index, segment, local=local, share=share))
    expected = slowly(chunks)
    facts = fold(chunks)
    assert (facts.ino, facts.size, facts.chunks, facts.more) == (7, 1000, len(chunks), False)
    assert facts.extents == expected
    assert facts.survives == min((each.survives for each in chunks), default=None)
    assert facts.segments == {each.segment: list(each.shares) for each in chunks if each.segment}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icnfs.control.facts.EXTENTS_MAX", most)
        few = fold(chunks)
    assert few.extents == expected[:most]
    assert few.more == (len(expected) > most)
    assert (few.chunks, few.survives) == (facts.chunks, facts.survives)


def test_what_is_left_out_is_not_kept_but_counts() -> None:
    count = 3 * EXTENTS_MAX
    folded = FileFold()
    for index in range(count):
        folded.add(chunk(index, f"{index:032x}"))
    folded.add(chunk(count, ""))
    facts = folded.facts(7, 1000)
    assert len(facts.extents) == EXTENTS_MAX and len(facts.segments) <= EXTENTS_MAX + 1
    assert (facts.chunks, facts.survives, facts.more) == (count + 1, -1, True)
