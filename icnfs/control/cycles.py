"""Python's full collections of cyclic garbage happen when the mount rests.

A full collection looks at every object that there is and lets nothing else run: with the inodes and changes of a busy
mount in memory it took 13 to 33 ms, and every request waited.  What lives when the mount begins is never garbage and is
taken out; young garbage is collected as ever.  What is left is little, cycles that outlived two young collections, so
that it can wait for a rest, or for MOST young collections.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Final

import trio

LOOK_SECONDS: Final = 5.0

DUE: Final = 10
"""Collections of the middle generation after which a full one is worth its while: Python's own figure."""

MOST: Final = 500
"""After so many it happens whether the mount rests or not: they follow 4 million new objects."""

_YOUNG: Final = 700
_MIDDLE: Final = 10
_NEVER: Final = 1 << 30


async def run(busy: Callable[[], bool]) -> None:
    """Collect until cancelled, and leave it to Python then; `busy`, asked every LOOK_SECONDS, tells about the mount."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)
    try:
        while True:
            await trio.sleep(LOOK_SECONDS)
            rests, passed = not busy(), gc.get_count()[2]
            if passed >= MOST or (rests and passed >= DUE):
                gc.collect()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
