"""`icnfs health`: what it shows, and how it ends."""

from __future__ import annotations

import json

import pytest

from icnfs.control.facts import HealthFacts
from icnfs.errors import Exit
from icnfs.volume.health import (
    HealthCounts,
    HealthPage,
    ProviderHealth,
    SegmentHealth,
    ShareHealth,
    ShareState,
    Verdict,
)
from tests.cli.machine import World
from tests.cli.test_providing import StandIn, mount, run, world  # noqa: F401 - fixtures

PROVIDERS = [
    ProviderHealth("north", "Nord", "up", 3, 1, "suspended", 5, "it lost much", 0.5, 0.9, {"present": 7, "altered": 2})
]


def segment(number: int, verdict: Verdict) -> SegmentHealth:
    shares = (
        ShareHealth(0, "north", "Nord", ShareState.ALTERED),
        ShareHealth(1, "south", "Sud", ShareState.PRESENT),
    )
    return SegmentHealth(f"{number:032x}", verdict, shares)


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        (HealthCounts(5), Exit.OK),
        (HealthCounts(), Exit.OK),
        (HealthCounts(5, 1), Exit.DEGRADED),
        (HealthCounts(5, 0, 1), Exit.DEGRADED),
        (HealthCounts(5, 1, 1, 1), Exit.DAMAGED),
    ],
)
def test_it_ends_by_the_worst_verdict(
    mount: StandIn,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    counts: HealthCounts,
    code: Exit,
) -> None:
    mount.healths[""] = HealthFacts(6, counts, PROVIDERS, HealthPage((), ""))
    assert run("health", "demo") == code
    out = capsys.readouterr().out
    assert f"{counts.safe} segments safe, {counts.degraded} degraded" in out
    assert "north\tNord\tup\tsuspended\t3\t1\t7\t0\t2\t0\t0\t50%\t90%\tit lost much" in out


def test_keys_that_are_not_safe_are_told_and_count(
    mount: StandIn,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    mount.healths[""] = HealthFacts(6, HealthCounts(5), PROVIDERS, HealthPage((), ""), "2 owners hold the slot")
    assert run("health", "demo") == Exit.DEGRADED
    assert "keys: not safe: 2 owners hold the slot" in capsys.readouterr().out
    assert run("health", "demo", "--json") == Exit.DEGRADED
    assert json.loads(capsys.readouterr().out)["keys"] == "2 owners hold the slot"


def test_without_json_the_worst_are_shown_and_more_is_said_of(
    mount: StandIn,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = HealthPage((segment(1, Verdict.LOST),), "0-01")
    mount.healths[""] = HealthFacts(6, HealthCounts(1, 1, 0, 1), PROVIDERS, page)
    run("health", "demo")
    out = capsys.readouterr().out
    assert f"{1:032x}\tlost\t1 present, north altered" in out
    assert "--json has all" in out
    assert mount.asked == [("", 20)]


def test_json_has_all_of_them_page_by_page(mount: StandIn, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    counts = HealthCounts(1, 2, 0, 1)
    pages = {
        "": HealthPage((segment(1, Verdict.LOST), segment(2, Verdict.DEGRADED)), "2-02"),
        "2-02": HealthPage((segment(3, Verdict.DEGRADED),), ""),
    }
    mount.healths = {after: HealthFacts(6, counts, PROVIDERS, page) for after, page in pages.items()}
    assert run("health", "demo", "--json") == Exit.DAMAGED
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"safe": 1, "degraded": 2, "at_risk": 0, "lost": 1}
    assert [entry["verdict"] for entry in document["segments"]] == ["lost", "degraded", "degraded"]
    assert document["segments"][2]["shares"][0] == {
        "index": 0,
        "provider": "north",
        "owner": "Nord",
        "state": "altered",
    }


def test_without_a_mount_it_says_so(world: World, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert run("health", "demo") == Exit.NOT_MOUNTED
    assert "known to a mount alone" in capsys.readouterr().err
