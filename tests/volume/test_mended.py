"""A share that is lost again and again is stored at its place ever more seldom."""

from __future__ import annotations

from icnfs.volume import mended
from icnfs.volume.mended import GAP_MAX_SECONDS, GAP_SECONDS, Mended


def test_once_is_nothing_and_then_the_gap_doubles() -> None:
    shares, now = Mended(), 0.0
    shares.note(b"s", 1, "ada", now)
    assert not shares.waits(b"s", 1, "ada", now)
    gaps = []
    for _ in range(12):
        shares.note(b"s", 1, "ada", now)
        gap = next(
            gap for gap in (GAP_SECONDS * 2**i for i in range(20)) if not shares.waits(b"s", 1, "ada", now + gap)
        )
        gaps.append(gap)
        now += gap
    assert gaps[:3] == [GAP_SECONDS, 2 * GAP_SECONDS, 4 * GAP_SECONDS]
    assert not shares.waits(b"s", 1, "ada", now + GAP_MAX_SECONDS)


def test_other_places_and_other_shares_wait_for_nothing() -> None:
    shares = Mended()
    for _ in range(3):
        shares.note(b"s", 1, "ada", 0.0)
    assert shares.waits(b"s", 1, "ada", 1.0)
    assert not shares.waits(b"s", 1, "bee", 1.0)
    assert not shares.waits(b"s", 2, "ada", 1.0)


def test_what_held_long_is_forgiven_and_not_all_is_remembered() -> None:
    shares = Mended()
    shares.note(b"s", 1, "ada", 0.0)
    shares.note(b"s", 1, "ada", GAP_MAX_SECONDS + 1)
    assert not shares.waits(b"s", 1, "ada", GAP_MAX_SECONDS + 1)
    for index in range(mended.REMEMBERED + 5):
        shares.note(b"t", index, "ada", 0.0)
    assert len(shares._shares) == mended.REMEMBERED
