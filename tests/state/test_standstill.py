"""Who waits for room waits while something moves, and not as long again as somebody before him."""

from __future__ import annotations

import errno

import pytest
import trio

from icnfs.errors import FsError
from icnfs.state.standstill import FULL_WAIT, Standstill
from icnfs.state.store import Store
from tests.state.local import Local


def test_a_standstill_begins_when_things_last_moved_and_is_shared() -> None:
    still = Standstill()
    assert still.until("a", 100.0) == 100.0 + FULL_WAIT
    assert still.until("a", 105.0) == 100.0 + FULL_WAIT
    assert still.until("b", 106.0) == 106.0 + FULL_WAIT
    still.ends()
    assert still.until("b", 200.0) == 200.0 + FULL_WAIT


def test_a_writer_waits_while_providers_take_data(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icnfs.state.standstill.FULL_WAIT", 1.0)
    monkeypatch.setattr("icnfs.state.store.LEAST_WAIT", 0.02)

    async def body(store: Store) -> None:
        taken = 0
        store.advance = lambda: taken
        store.set_full(True)

        async def writer() -> None:
            with pytest.raises(FsError) as caught:
                await store.wait_room()
            assert caught.value.errno == errno.ENOSPC
            assert taken == 15

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            for _ in range(15):
                await trio.sleep(0.1)
                taken += 1

    local.run(body, upkeep=False)
