"""One seed, from nothing to its verdict."""

from __future__ import annotations

import logging
import shutil
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from tests.simulation.lives import create_volume
from tests.simulation.schedule import Schedule
from tests.simulation.tamed import Steps, tamed
from tests.simulation.world import BrokenError, World

SHM: Final = Path("/dev/shm")
ACTIONS: Final = 25


@dataclass(frozen=True)
class Result:
    """What became of a seed; `broken` is "" where every promise was kept."""

    seed: int
    broken: str
    digest: str
    """Of the whole trace: equal where two runs did the same."""
    seconds: float
    """Virtual."""
    trace: list[str]


class _Faults(logging.Handler):
    """A traceback in the log is a fault of the product, whoever caught it."""

    def __init__(self, world: list[World], verbose: bool) -> None:
        super().__init__(logging.DEBUG if verbose else logging.ERROR)
        self._world = world
        self._verbose = verbose

    def emit(self, record: logging.LogRecord) -> None:
        if not self._world:
            return
        if self._verbose:
            self._world[0].say(f"    [{record.levelname.lower()}] {record.name}: {record.getMessage()}")
        if record.levelno >= logging.ERROR and record.exc_info and record.exc_info[1] is not None:
            text = "".join(traceback.format_exception(record.exc_info[1]))
            self._world[0].fail(f"{record.getMessage()}\n{text}")


def run_seed(seed: int, *, actions: int = ACTIONS, verbose: bool = False) -> Result:
    """Run it; whatever goes wrong is in the result."""
    root = Path(tempfile.mkdtemp(prefix="icnfs-sim-", dir=SHM if SHM.is_dir() else None))
    worlds: list[World] = []
    handler = _Faults(worlds, verbose)
    log = logging.getLogger("icnfs")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.ERROR)
    broken = ""
    try:
        with tamed(seed) as (clock, wall, mood):

            async def main() -> None:
                async with trio.open_nursery() as wire:
                    worlds.append(World(seed, root, wire, wall, mood, verbose))
                    first = await create_volume(worlds[0])
                    await Schedule(worlds[0], first).run(actions)
                    wire.cancel_scope.cancel()

            try:
                trio.run(main, clock=clock, instruments=[Steps()])
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                broken = _told(error)
            seconds = clock.current_time()
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
        log.setLevel(level)
        shutil.rmtree(root, ignore_errors=True)
    world = worlds[0]
    return Result(seed, world.broken or broken, world.digest(), seconds, world.trace)


def _told(error: BaseException) -> str:
    """A broken promise by its words, anything else by its traceback."""
    found = _find(error)
    return str(found) if found is not None else "".join(traceback.format_exception(error))


def _find(error: BaseException) -> BrokenError | None:
    if isinstance(error, BrokenError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for one in error.exceptions if (found := _find(one)) is not None), None)
    return None
