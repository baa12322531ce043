"""Full collections happen at rest, or when they can wait no longer, and Python's own way of it comes back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from icnfs.control import cycles


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


class Node:
    def __init__(self) -> None:
        self.me = self


def old_garbage() -> weakref.ref[Node]:
    """A cycle that only a full collection finds."""
    node = Node()
    for _ in range(2):
        gc.collect(1)
    found = weakref.ref(node)
    del node
    return found


async def _looks(busy: bool, monkeypatch: pytest.MonkeyPatch, *, middle: int) -> bool:
    """Whether old garbage is gone after a look that finds so many collections of the middle generation."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cycles.run, lambda: busy)
        await trio.testing.wait_all_tasks_blocked()
        garbage = old_garbage()
        gc.collect(1)
        assert garbage() is not None
        monkeypatch.setattr(cycles.gc, "get_count", lambda: (0, 0, middle))
        await trio.sleep(cycles.LOOK_SECONDS + 0.1)
        gone = garbage() is None
        nursery.cancel_scope.cancel()
    return gone


@pytest.mark.parametrize(
    ("busy", "middle", "gone"),
    [
        (False, cycles.DUE - 1, False),
        (False, cycles.DUE, True),
        (True, cycles.DUE, False),
        (True, cycles.MOST - 1, False),
        (True, cycles.MOST, True),
    ],
)
def test_when_it_collects(busy: bool, middle: int, gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    assert trio.run(lambda: _looks(busy, monkeypatch, middle=middle), clock=clock) is gone
