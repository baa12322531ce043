"""The table of a provider's states, and what is told of it."""

from __future__ import annotations

import pytest

from icnfs.errors import (
    IcnfsError,
    ObjectMissingError,
    ProviderAwayError,
    ProviderFullError,
    ProviderLiesError,
    ProviderRefusedError,
)
from icnfs.providers.base import Capacity
from icnfs.transfer.health import SHUN_SECONDS, Board, Health
from icnfs.transfer.messages import ShareEvent


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (ProviderAwayError("p", "away"), "down", "away"),
        (ProviderFullError("p", "full"), "up", "full"),
        (ProviderRefusedError("p", "no"), "up", "no"),
        (ProviderLiesError("p", "lie"), "up", "lie"),
        (ObjectMissingError("p", "none"), "up", ""),
    ],
)
def test_only_silence_means_down(error: IcnfsError, state: str, told: str) -> None:
    health = Health("p")
    health.failed(error)
    assert (health.state, health.error) == (state, told)
    health.answered()
    assert (health.state, health.error) == ("up", "")


def test_a_slow_provider_is_shunned_for_a_while_and_one_that_is_down_always() -> None:
    health = Health("p")
    assert health.preferred(0.0)
    health.shun(0.0)
    assert not health.preferred(SHUN_SECONDS - 1) and health.preferred(SHUN_SECONDS)
    health.failed(ProviderAwayError("p", "away"))
    assert not health.preferred(1e9)


def test_latency_is_the_median_so_that_one_slow_answer_does_not_move_it() -> None:
    health = Health("p")
    assert health.snapshot().latency_s is None
    for latency in (0.1, 9.0, 0.2):
        health.answered(latency)
    assert health.snapshot().latency_s == 0.2


def test_only_changes_are_news() -> None:
    board = Board(["a", "b"], lambda event: None)
    assert board.news() == ()
    board["a"].told(Capacity(7, 9, "disk"))
    (news,) = board.news()
    assert (news.name, news.state, news.free_bytes, news.pool) == ("a", "up", 7, "disk")
    assert board.news() == ()


def test_a_bad_share_is_told_once_and_counted_until_it_is_mended() -> None:
    told: list[str] = []
    board = Board(["a"], lambda event: told.append(event.what))
    for what in ("bad", "missing", "mended", "bad"):
        board.note_share(ShareEvent("a", "shares/x", bytes(16), 0, what, ""))
        assert board.states()["a"].bad_shares == (what != "mended")
    board.note_share(ShareEvent("nobody", "shares/x", bytes(16), 0, "bad", ""))
    assert told == ["bad", "mended", "bad"]
