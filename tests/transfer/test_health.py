"""The table of a provider's states, and what is told of it."""

from __future__ import annotations

from icnfs.errors import (
    ProviderAwayError,
)
from icnfs.providers.base import Capacity
from icnfs.transfer.health import Board, Health
from icnfs.transfer.messages import ShareEvent


def test_one_that_is_down_is_not_preferred() -> None:
    health = Health("p")
    assert health.preferred()
    health.failed(ProviderAwayError("p", "away"))
    assert not health.preferred()


def test_what_was_measured_is_told() -> None:
    health = Health("p")
    assert health.snapshot(0.0).latency_s is None and health.snapshot(0.0).rate_down is None
    health.reads.done(health.reads.begin(100, 0.0), 0.5)
    health.reads.done(health.reads.begin(1_000_000, 1.0), 2.5)
    health.writes.done(health.writes.begin(1_000_000, 1.0), 3.0)
    told = health.snapshot(0.0)
    assert (told.latency_s, told.rate_down, told.rate_up) == (0.5, 1_000_000, 500_000)


def test_only_changes_are_news() -> None:
    board = Board(["a", "b"], lambda event: None)
    assert board.news(0.0) == ()
    board["a"].told(Capacity(7, 9, "disk"))
    (news,) = board.news(0.0)
    assert (news.name, news.state, news.free_bytes, news.pool) == ("a", "up", 7, "disk")
    assert board.news(0.0) == ()


def test_a_bad_share_is_told_once_and_counted_until_it_is_mended() -> None:
    told: list[str] = []
    board = Board(["a"], lambda event: told.append(event.what))
    for what in ("bad", "missing", "mended", "bad"):
        board.note_share(ShareEvent("a", "shares/x", bytes(16), 0, what, ""))
        assert board.states(0.0)["a"].bad_shares == (what != "mended")
    board.note_share(ShareEvent("nobody", "shares/x", bytes(16), 0, "bad", ""))
    assert told == ["bad", "mended", "bad"]
