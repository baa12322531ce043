"""Snapshots of a simulated world: what each holds, and that it goes on holding it.

A snapshot that was made is there after every crash and recovery until somebody deletes it, and shows the tree as it was
to whoever opens it.  One whose making or deleting was broken off may be there or not; where it is, it is whole.
"""

from __future__ import annotations

from icnfs.errors import IcnfsError, SnapshotError
from icnfs.volume.past import open_past
from tests.simulation.history import UNKNOWN, Tree, describe, matches
from tests.simulation.lives import Life, look
from tests.simulation.world import BrokenError, DiedError


class Snapshots:
    """Those of one world."""

    def __init__(self) -> None:
        self._trees: dict[str, Tree] = {}
        self._kept: set[str] = set()
        """Those that must be there."""

    async def make(self, life: Life, deadline: float) -> None:
        assert life.history is not None and life.volume is not None
        name, volume = f"s{len(self._trees)}", life.volume
        self._trees[name] = life.history.tree
        await life.within(lambda: volume.snapshots.create(name, deadline))
        self._kept.add(name)
        life.world.note(f"  snapshot {name} holds [{describe(self._trees[name])}]")

    async def delete(self, life: Life, name: str) -> None:
        assert life.volume is not None
        volume = life.volume
        self._kept.discard(name)
        await life.within(lambda: volume.snapshots.delete(name))
        life.world.note(f"  snapshot {name} is deleted")

    def there(self, life: Life) -> list[str]:
        """The names that a volume lists; BrokenError where one is missing."""
        if life.dead:
            raise DiedError
        assert life.volume is not None
        names = [snapshot.name for snapshot in life.volume.snapshots.list()]
        if missing := self._kept.difference(names):
            raise BrokenError(f"{life.name} has no snapshot {', '.join(sorted(missing))}")
        return names

    async def check(self, life: Life, name: str, *, must: bool) -> None:
        """Open a snapshot beside the volume and compare; an error will do unless it `must` be had."""
        machine = life.machine

        async def read() -> None:
            opened = open_past(machine.config, name, machine.folder, machine.secrets, start=life.start)
            async with opened as past:
                seen = await look(past)
            if not matches(seen, self._trees[name]) or (must and UNKNOWN in seen.values()):
                raise BrokenError(f"snapshot {name} shows [{describe(seen)}], not [{describe(self._trees[name])}]")
            life.world.note(f"  snapshot {name} shows what it held")

        try:
            await life.within(read)
        except SnapshotError as error:  # the newest head does not know it yet
            if must and name in self._kept:
                raise BrokenError(f"snapshot {name} cannot be opened: {error}") from error
        except IcnfsError as error:
            if must:
                raise BrokenError(f"snapshot {name} cannot be opened: {error}") from error
            life.world.note(f"  snapshot {name} cannot be opened now: {error}")
