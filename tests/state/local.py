"""A local state in a folder, opened for a stretch of a test as often as it likes."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from icnfs.crypto.keys import MasterKey
from icnfs.state import loader
from icnfs.state.layers import ColdSource
from icnfs.state.store import Store
from icnfs.state.upkeep import Budget, Upkeep

T = TypeVar("T")
BOUND = 30.0
"""Seconds after which a test that waits is a failure."""


class Local:
    """Created empty; `run` opens it, calls back, and closes it again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.master = MasterKey.random()
        self.volume = secrets.token_bytes(16)
        loader.create(root, self.volume, self.master)

    def run(
        self,
        body: Callable[[Store], Awaitable[T]],
        *,
        source: ColdSource | None = None,
        budget: Budget | None = None,
        upkeep: bool = True,
    ) -> T:
        async def main() -> T:
            store = Store.open(self.root, self.master)
            if source is not None:
                store.source = source
            try:
                with trio.fail_after(BOUND):
                    async with trio.open_nursery() as nursery:
                        await nursery.start(store.run)
                        if upkeep:
                            nursery.start_soon(Upkeep(store, budget or Budget(reserve=0)).run)
                        result = await body(store)
                        nursery.cancel_scope.cancel()
            finally:
                await store.close()
            return result

        return trio.run(main)


async def until(store: Store, true: Callable[[], bool]) -> None:
    """Wait until `true()`, looking after each commit; the run's bound ends the wait."""
    while not true():
        store.want_upkeep()
        await trio.sleep(0.01)


def deadline() -> float:
    return trio.current_time() + BOUND
