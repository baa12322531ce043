"""Machines of a simulated world, and the processes that live and die on them.

A `Machine` is a disk; a `Life` is one process that has it open.  A crash copies the disk as it is at that instant, cuts
the life off from everything, and cancels it; the machine goes on from the copy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from icnfs.config import VolumeConfig
from icnfs.crypto.slots import parse_recovery_key
from icnfs.errors import FsError, IcnfsError
from icnfs.format.head import Head
from icnfs.format.segment import SegmentInfo
from icnfs.providers.open import ProviderSpec
from icnfs.state import loader
from icnfs.transfer.engine import in_place, open_engine
from icnfs.transfer.messages import Limits, ShareEvent
from icnfs.transfer.upload import PutResult
from icnfs.vfs.vfs import Vfs
from icnfs.volume.create import create
from icnfs.volume.heads import Survey
from icnfs.volume.keyring import Secrets, unlock_local
from icnfs.volume.recover import Found, recover
from icnfs.volume.volume import Volume, open_volume
from tests.simulation.history import UNKNOWN, History, Seen, Tree, Unknown, describe, matches
from tests.simulation.keeping import SURVEYED, Keeping
from tests.simulation.sites import Line
from tests.simulation.tamed import OWNER, Stepper
from tests.simulation.truth import Number, Published
from tests.simulation.world import BrokenError, DiedError, World
from tests.volume.world import CHEAP, LocalTransfer, files_of

T = TypeVar("T")

CRASH_GRACE = 1.0
"""Seconds: what a crash may cost, where no fsync vouched for it."""


class Machine:
    """A disk with a volume's local state, or an empty one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = f"m{world.machines}"
        world.machines += 1
        self.secrets = world.secrets
        self.copies = 0
        self.config: VolumeConfig = world.current
        self.trees: list[Tree] = []
        """What the tree may be when it is next opened."""
        self.line: frozenset[tuple[Number, bytes]] = frozenset()
        """The heads that what it holds goes back to: a crash takes none of them back."""
        self.life: Life | None = None
        self.disk.mkdir(parents=True)

    @property
    def disk(self) -> Path:
        return self.world.root / f"{self.name}.{self.copies}"

    @property
    def folder(self) -> Path:
        return self.disk / "demo"

    def freeze(self) -> None:
        """Go on with a copy of the disk as it is now."""
        old = self.disk
        self.copies += 1
        for folder, _, files in os.walk(old):
            new = self.disk / Path(folder).relative_to(old)
            new.mkdir(mode=0o700, parents=True)
            for name in files:
                if name not in ("lock", "lock.mdb", "reserve"):
                    shutil.copyfile(Path(folder) / name, new / name)

    def wipe(self) -> None:
        self.copies += 1
        self.disk.mkdir(parents=True)


class Life(Stepper):
    """One process on a machine: from when it opens the volume, or sets about recovering it, until it ends."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.world = machine.world
        self.name = f"{machine.name}.{len(self.world.lives)}"
        self.dead = False
        self.steps_left: int | None = None
        self.volume: Volume | None = None
        self.history: History | None = None
        self.policies = [machine.config.policy]
        self.error: IcnfsError | None = None
        self.leaving = ""
        """The provider that it is leaving."""
        self._scopes: list[trio.CancelScope] = []
        self._at_work: list[trio.CancelScope] = []
        """Of those, the ones in which the open volume may be used: it is not closed before they end."""
        self._idle = trio.Event()
        self._died = trio.Event()
        self._opened, self._ending, self._closed = trio.Event(), trio.Event(), trio.Event()
        self._fenced_at: int | None = None
        self._uploading = 0
        self.world.lives.append(self)
        self.world.wire.start_soon(self._bury)

    # --- life and death -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        if self.steps_left is None or self.dead:
            return
        self.steps_left -= 1
        if self.steps_left <= 0:
            self.crash()

    def crash(self) -> None:
        """It ends at this instant; what it had written is what is left."""
        if self.dead:
            return
        self.dead = True
        self.world.note(f"-- {self.name} crashes")
        self.machine.freeze()
        if self.history is not None:
            self.machine.trees = list(self.history.after_crash(trio.current_time(), CRASH_GRACE))
        self._died.set()

    async def _bury(self) -> None:
        await self._died.wait()
        for scope in self._scopes:
            scope.cancel()

    @contextmanager
    def _scope(self) -> Any:
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            if self.dead:
                scope.cancel()
            try:
                yield scope
            finally:
                self._scopes.remove(scope)

    async def within(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` as this process; DiedError where that comes to no end, or the process to its own before."""
        if self._ending.is_set():
            raise DiedError
        token = OWNER.set(self)
        try:
            with self._scope() as scope:
                self._at_work.append(scope)
                try:
                    answer = await work()
                finally:
                    self._at_work.remove(scope)
                    self._idle.set()
                if not self.dead:
                    return answer
        except Exception:
            if not self.dead:
                raise
        finally:
            OWNER.reset(token)
        raise DiedError

    async def _wait(self, *events: trio.Event) -> None:
        """Until one of them happens; DiedError where the process ends first."""
        with self._scope():
            async with trio.open_nursery() as nursery:
                for event in events:
                    nursery.start_soon(_wait_then_cancel, event, nursery.cancel_scope)
        if self.dead:
            raise DiedError

    async def _leave_work(self) -> None:
        """Whatever uses the volume is cancelled, and what is shielded comes to its end first, as in a daemon."""
        for scope in self._at_work:
            scope.cancel()
        with trio.CancelScope(shield=True):
            while self._at_work:
                self._idle = trio.Event()
                await self._idle.wait()

    @property
    def is_publishing(self) -> bool:
        volume = self.volume
        if self.dead or volume is None:
            return not self.dead
        publisher = volume.publisher
        return publisher.standstill.locked() or publisher.owes_head or bool(publisher.uploads.segments)

    @asynccontextmanager
    async def start(self, specs: Sequence[ProviderSpec], limits: Limits) -> AsyncIterator[LocalTransfer]:
        """The way to the providers."""
        world = self.world

        def calling(site: str, name: str, data: bytes) -> None:
            world.calling(self, site, name, data)

        lines = [
            Line(site, world, world.wire, world.chance, self.name, lambda: self.dead, calling)
            for site in world.sites.values()
        ]
        transfers: list[LocalTransfer] = []

        def heard(event: ShareEvent) -> None:
            if event.what in ("stored", "failed"):
                transfers[0].heard(event)

        async with open_engine(lines, offload=in_place, notify=heard) as engine:
            transfers.append(_Transfer(engine, [], {line.name: line for line in lines}, world.keeping))
            yield transfers[0]

    # --- opening and closing ------------------------------------------------------------------------------------------

    async def open(self, *, read_only: bool = False) -> Volume:
        """Open the machine's volume; its tree must be one of those that it may be."""
        self.world.note(f"-- {self.name} opens")
        self.world.wire.start_soon(self._hold, read_only)
        await self._wait(self._opened, self._closed)
        if self.error is not None:
            raise self.error
        assert self.volume is not None
        self.machine.life = self
        return self.volume

    async def _hold(self, read_only: bool) -> None:
        OWNER.set(self)
        machine = self.machine
        try:
            with self._scope():
                async with open_volume(
                    machine.config, machine.folder, machine.secrets, read_only=read_only, start=self.start
                ) as volume:
                    self.volume = volume
                    self._mark_surveys(volume)
                    self._opened.set()
                    try:
                        await self._ending.wait()
                    finally:
                        await self._leave_work()
        except IcnfsError as error:
            self.error = error
        except Exception:
            if not self.dead:
                raise
        finally:
            self._closed.set()

    def _mark_surveys(self, volume: Volume) -> None:
        """Whoever makes a survey is known to have."""
        survey, clock = volume.heads.survey, self.world.clock

        async def marked(*args: Any) -> Survey:
            begun = clock.real
            answer: Survey = await survey(*args)
            SURVEYED.set(begun)
            return answer

        volume.heads.survey = marked  # type: ignore[method-assign]

    async def close(self) -> None:
        """As `umount`: what was accepted is committed."""
        self.world.note(f"-- {self.name} closes")
        self._ending.set()
        await self._wait(self._closed)
        assert self.history is not None
        self.machine.trees = [self.history.tree]
        self.dead = True
        self._died.set()
        self.machine.freeze()

    async def recover(self, offered: Secrets, at_least: Number | None = None) -> Found:
        machine = self.machine
        self.world.note(f"-- {self.name} recovers")
        found = await self.within(
            lambda: recover(machine.config, machine.folder, offered, start=self.start, at_least=at_least)
        )
        machine.secrets = offered
        self.world.note(f"-- {self.name} recovered {(found.epoch, found.sequence)}")
        machine.trees = self.world.trees_of((found.epoch, found.sequence))
        self.dead = True
        self.machine.freeze()
        return found

    # --- the tree -----------------------------------------------------------------------------------------------------

    @property
    def vfs(self) -> Vfs:
        assert self.volume is not None
        return files_of(self.volume)

    async def look(self) -> Seen:
        """The whole tree, as far as it can be read."""
        volume = self.volume
        assert volume is not None
        return await self.within(lambda: look(volume))

    async def greet(self) -> None:
        """After opening: the tree is one that may be, and the history begins with it."""
        assert self.volume is not None
        trees = self.machine.trees
        names = sorted(entry.name for entry in self.volume.store.entries(loader.ROOT_INO, 0))
        possible = [tree for tree in trees if sorted(tree) == names]
        if not possible:
            raise BrokenError(f"{self.name} opens with {names}, which is none of {[describe(t) for t in trees]}")
        self.machine.trees = possible  # also where it crashes while it is looked at
        seen = await self.look()
        found = next((tree for tree in possible if matches(seen, tree)), None)
        if found is None:
            raise BrokenError(
                f"{self.name} opens with [{describe(seen)}], which is none of {[describe(t) for t in trees]}"
            )
        self.history = History(found, self.volume.store.committed, trio.current_time())
        self.world.note(f"  {self.name} has [{describe(seen)}]")

    def trees_at(self, head: Head) -> list[Tree]:
        """What may be recovered from a head that this process puts."""
        if self.history is not None:
            return self.history.at_cut(head.cut)
        if self.machine.trees and self.volume is not None:
            return list(self.machine.trees)
        return self.world.trees_of(head.previous)

    # --- being fenced -------------------------------------------------------------------------------------------------

    def check_unfenced(self, head: Head) -> None:
        """A head may not be numbered after this process knew that it is fenced."""
        if self.volume is None:
            return
        if self.volume.store.fenced is None:
            self._fenced_at = None
            return
        claim = self.volume.fence.claim
        if self._fenced_at is None:
            self._fenced_at = claim.current.sequence if claim is not None else 0
        if head.sequence > self._fenced_at:
            raise BrokenError(f"{self.name} is fenced and puts head {head.number}")


async def _wait_then_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def look(volume: Volume) -> Seen:
    """The whole tree, as far as it can be read."""
    vfs, seen = files_of(volume), dict[bytes, bytes | Unknown | None]()
    for entry in list(volume.store.entries(loader.ROOT_INO, 0)):
        try:
            handle = vfs.open(entry.ino, os.O_RDONLY | os.O_NOATIME)
        except FsError:
            seen[entry.name] = None
            continue
        size = vfs.getattr(entry.ino).size
        try:
            parts, at = [], 0
            while at < size and (part := await vfs.read(handle.fh, at, 1 << 17)):
                parts.append(part)
                at += len(part)
            seen[entry.name] = b"".join(parts)
        except IcnfsError:
            seen[entry.name] = UNKNOWN
        vfs.release(handle.fh)
    return seen


class _Transfer(LocalTransfer):
    """Remembers whose shares objects are."""

    def __init__(self, engine: Any, calls: list[str], providers: Any, keeping: Keeping) -> None:
        super().__init__(engine, calls, providers)
        self._keeping = keeping

    async def put_segment(
        self,
        id: bytes,
        k: int,
        n: int,
        share_len: int,
        size: int,
        names: Sequence[str],
        providers: Sequence[str],
        *args: Any,
        **options: Any,
    ) -> PutResult:
        self._keeping.sent(id, zip(range(n), providers, names, strict=True))
        return await super().put_segment(id, k, n, share_len, size, names, providers, *args, **options)

    async def complete_segment(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        missing: Sequence[int],
        providers: Sequence[str],
        targets: Sequence[str],
        *,
        deadline: float = 60.0,
    ) -> PutResult:
        self._keeping.sent(segment.id, zip(missing, providers, targets, strict=True))
        return await super().complete_segment(segment, names, missing, providers, targets, deadline=deadline)


async def create_volume(world: World) -> Machine:
    """The volume, as it is after `init`, on a first machine."""
    first = Machine(world)
    life = Life(first)
    created = await life.within(
        lambda: create(world.config, first.folder, world.secrets, costs=CHEAP, start=life.start)
    )
    world.recovery = Secrets(recovery=parse_recovery_key(created.recovery_key))
    _, master = await unlock_local(first.folder, world.secrets)
    world.truth.learn(master)
    for name, site in world.sites.items():
        for object_name, raw in sorted(site.objects.items()):
            head = world.truth.open_head(name, object_name, raw)
            if head is not None:
                key = head.number, head.writer
                world.heads.setdefault(key, Published(head, first.name, [{}])).holders.add(name)
    for published in world.heads.values():
        published.durable_at, published.line = 0.0, frozenset({published.key})
        world.is_last(published)
    life.dead = True
    first.trees = [{}]
    return first
