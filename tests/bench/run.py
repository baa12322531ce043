"""Running the steps in several file systems, step by step beside each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.acceptance.harness import Volume
from tests.bench import floor
from tests.bench.cold import forget
from tests.bench.figures import MB, REMOVAL, STEPS, Figure, Place, Scale
from tests.bench.table import Table

Say = Callable[[str], None]

COLD: Final = ("walk and stat", "sequential read", "read 4 KiB files")
"""Steps that are repeated on a machine that holds nothing yet."""

SYNC_SECONDS: Final = 900


def processes(volume: Volume) -> list[int]:
    """Those of a mount."""
    ids = [volume.front.pid if volume.front else None, volume.transfer_pid()]
    return [pid for pid in ids if pid is not None]


def place_in(volume: Volume, scale: Scale) -> Place:
    """A place on a mounted volume, whose cold reads are cold."""
    folder = volume.mountpoint / "bench"
    folder.mkdir(exist_ok=True)
    return Place(folder, scale, forget=lambda: forget(processes(volume), volume.root))


def step(name: str, figure: Figure, places: Mapping[str, Place], table: Table, say: Say) -> None:
    """One step in each of the places (column -> place), in order."""
    for column, place in places.items():
        value = figure.step(place)
        table.add(name, figure.unit, column, value)
        say(f"{name}: {column} {value:,.1f} {figure.unit}")


def measure(work: Path, scale: Scale, table: Table, say: Say, *, with_floor: bool = False) -> None:
    """One repetition below `work`, an empty folder: columns icnfs, local and, if asked for, floor."""
    local = work / "local"
    local.mkdir()
    with ExitStack() as stack:
        volume = stack.enter_context(Volume(work / "volume"))
        volume.init()
        volume.mount()
        places = {"icnfs": place_in(volume, scale), "local": Place(local, scale)}
        if with_floor:
            daemon = stack.enter_context(floor.mounted(work / "floor"))
            places["floor"] = Place(work / "floor", scale, forget=lambda: forget([daemon], work))
        for name, figure in STEPS.items():
            step(name, figure, places, table, say)
        publish(volume, places["icnfs"], places["local"], table, say)
        elsewhere(volume, scale, places["local"], work, table, say)
        step(*REMOVAL, places, table, say)


def publish(volume: Volume, place: Place, local: Place, table: Table, say: Say) -> None:
    """A new file written, and all of it at the providers; beside it, written locally and synced."""
    volume.sync(seconds=SYNC_SECONDS)
    for column, each in (("icnfs", place), ("local", local)):
        path = each.root / "published"
        began = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            for number in range(each.scale.big // len(each.block)):
                file.write(each.block[number % 977 :] + each.block[: number % 977])
            os.fsync(file.fileno())
        if column == "icnfs":
            volume.sync(seconds=SYNC_SECONDS)
        value = each.scale.big / MB / (time.perf_counter() - began)
        table.add("sequential write to published", "MB/s", column, value)
        say(f"sequential write to published: {column} {value:,.1f} MB/s")
        path.unlink()


def elsewhere(volume: Volume, scale: Scale, local: Place, work: Path, table: Table, say: Say) -> None:
    """From the providers alone, on a machine that has recovered the volume and read nothing yet.

    The steps see the small files and the big one; the tree of the later steps is walked too.  Afterwards the first
    machine has recovered the volume in turn.
    """
    volume.umount("--drain")
    with volume.elsewhere(work / "elsewhere") as other:
        other.recover()
        other.mount()
        places = {"icnfs": place_in(other, scale), "local": local}
        for name in COLD:
            step(f"from the providers: {name}", STEPS[name], places, table, say)
        other.umount("--drain")
    volume.drop_state()
    volume.recover()
    volume.mount()
