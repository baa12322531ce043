"""No request costs more than it did: functions entered, looks at LMDB, and memory, none of which depends on a clock.

`python -m tests.bench.requests` prints what a row should be, and the time that it takes.
"""

from __future__ import annotations

import sys
from typing import Final

import pytest

from tests.bench.requests import FIGURES, Counts, counts, make_volume
from tests.state.local import Local

CALLS: Final = 200
GROWTH: Final = 1.2

BASELINE: Final[dict[str, Counts]] = {
    "lookup": Counts(47.0, 1.00, 1054),
    "lookup, cold": Counts(61.0, 2.00, 1611),
    "lookup, none": Counts(32.0, 1.00, 1340),
    "getattr": Counts(9.0, 0.00, 592),
    "chmod": Counts(26.0, 0.00, 668),
    "chown": Counts(24.0, 0.00, 700),
    "utimens": Counts(30.0, 0.00, 700),
    "getxattr, none": Counts(18.0, 0.00, 1128),
    "create": Counts(80.0, 1.00, 1344),
    "mknod": Counts(78.0, 1.00, 1256),
    "mkdir": Counts(78.0, 1.00, 1256),
    "unlink": Counts(76.0, 1.00, 1168),
    "unlink, new": Counts(79.0, 1.00, 901),
    "rename": Counts(115.1, 2.00, 1265),
    "rename, over": Counts(130.0, 2.00, 1500),
    "open, release": Counts(20.0, 0.00, 680),
    "read 4K file": Counts(98.0, 4.00, 10516),
    "read 4K": Counts(57.8, 1.08, 34401),
    "append 4K": Counts(35.6, 0.00, 4928),
    "write 4K": Counts(35.0, 0.00, 864),
    "readdir of 10": Counts(222.0, 12.00, 2451),
    "forget": Counts(9.0, 0.00, 600),
}
"""Measured with CPython 3.11; other releases count the calls and sizes of their own objects differently."""


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Local:
    return make_volume(tmp_path_factory.mktemp("requests") / "state")


@pytest.mark.parametrize("figure", FIGURES)
def test_a_request_costs_what_it_did(volume: Local, figure: str) -> None:
    found, before = counts(volume, figure, CALLS), BASELINE[figure]
    assert found.gets <= before.gets * GROWTH + 0.01
    if sys.version_info[:2] == (3, 11):
        assert found.calls <= before.calls * GROWTH
        assert found.peak <= before.peak * GROWTH


def test_requests_are_counted_alike_every_time(volume: Local) -> None:
    first, second = (counts(volume, "rename", CALLS) for _ in range(2))
    assert first == second


def test_what_a_request_costs_more_is_seen(volume: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters count: a request done twice costs twice."""
    prepare, right = FIGURES["lookup"]

    def twice(bench: object) -> object:
        request = prepare(bench)  # type: ignore[arg-type]
        return lambda number: (request(number + 3 * CALLS), request(number))[1]

    once = counts(volume, "lookup", CALLS)
    monkeypatch.setitem(FIGURES, "lookup", (twice, right))
    found = counts(volume, "lookup", CALLS)
    assert found.calls > once.calls * 1.8
    assert found.gets == once.gets * 2
