"""The one word that `status` begins with says the worst that is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from icnfs.cli.verb_status import _HEAD, _facts, _risk, _row, _stalled, _state
from icnfs.control.facts import MountStatus
from icnfs.control.stalls import Stalls
from icnfs.volume.status import ProviderStatus, Status

HEALTHY = Status(
    name="demo",
    volume="00",
    code="4-of-6",
    safe=6,
    epoch=1,
    sequence=1,
    read_only=False,
    fenced="",
    degraded=False,
    failure="",
    files=1,
    bytes_used=0,
    dirty_bytes=0,
    pending=False,
    committed_batch=1,
    published_batch=1,
    published_ns=1,
    published_age_s=1.0,
    unsafe_segments=0,
    missing_shares=0,
    lost_shares=0,
    transfer_restarts=0,
    providers=(),
)

PROVIDER = ProviderStatus(
    name="north",
    owner="Nord",
    country="FI",
    state="up",
    error="",
    free_bytes=None,
    latency_s=None,
    bytes_up=0,
    bytes_down=0,
    bad_shares=0,
    missing=0,
)


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (HEALTHY, "healthy"),
        (replace(HEALTHY, missing_shares=1), "at risk"),
        (replace(HEALTHY, lost_shares=2), "at risk"),
        (replace(HEALTHY, lost_shares=2, unsafe_segments=2, degraded=True), "degraded"),
        (replace(HEALTHY, read_only=True, lost_shares=1), "read-only, at risk"),
        (replace(HEALTHY, read_only=True, fenced="by another"), "fenced, read-only: by another"),
    ],
)
def test_the_state_is_healthy_only_where_every_share_can_be_had(status: Status, word: str) -> None:
    assert _state(status) == word


def test_what_is_at_risk_is_counted() -> None:
    status = replace(HEALTHY, missing_shares=1, lost_shares=4, unsafe_segments=3)
    assert _risk(status) == "1 missing, 4 where they cannot be had now; 3 segments are not safe"


def test_stalls_are_told_in_milliseconds() -> None:
    assert _stalled(Stalls()).startswith("none")
    found = Stalls(count=900, p50_ms=0.5, p99_ms=1.2, p999_ms=3.04, max_ms=17.9)
    assert _stalled(found) == "0.5 ms half of the time, 3.0 ms at 99.9 %, 17.9 ms at most"


def test_a_drain_shows_at_its_provider_and_in_what_is_to_move() -> None:
    row = dict(zip(_HEAD, _row(replace(PROVIDER, draining=True, shares=12)), strict=True))
    assert (row["state"], row["shares"]) == ("up, draining", "12")
    told = dict(_facts(MountStatus("/mnt", 1, 0, replace(HEALTHY, moving=3))))
    assert told["moving"] == "3 segments have shares where they are to have none"
    assert "moving" not in dict(_facts(MountStatus("/mnt", 1, 0, HEALTHY)))


def test_what_segments_hold_is_told_once_it_was_counted() -> None:
    told = dict(_facts(MountStatus("/mnt", 1, 0, replace(HEALTHY, held_bytes=3 << 20, live_bytes=2 << 20))))
    assert told["segments"] == "3.0 MiB, of which 2.0 MiB live"
    assert "segments" not in dict(_facts(MountStatus("/mnt", 1, 0, HEALTHY)))
