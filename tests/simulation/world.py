"""The simulated world: providers, machines that live and die, and what is checked while they do.

A `Machine` is a disk; a `Life` is one process that has it open.  A crash copies the disk as it is at that instant, cuts
the life off from everything, and cancels it; the machine goes on from the copy.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import trio

from icnfs import config as configs
from icnfs.config import VolumeConfig
from icnfs.crypto.slots import parse_recovery_key
from icnfs.errors import FsError, IcnfsError
from icnfs.format.head import PREFIX, Head
from icnfs.placement import Policy
from icnfs.providers.open import ProviderSpec
from icnfs.state import loader
from icnfs.transfer.engine import in_place, open_engine
from icnfs.transfer.messages import Limits, ShareEvent
from icnfs.vfs.vfs import Vfs
from icnfs.volume.create import create
from icnfs.volume.keyring import Secrets, unlock_local
from icnfs.volume.recover import Found, recover
from icnfs.volume.volume import Volume, open_volume
from tests.simulation.history import UNKNOWN, History, Seen, Tree, Unknown, describe, matches
from tests.simulation.sites import Line, Site
from tests.simulation.tamed import OWNER, Mood, Stepper, Wall
from tests.simulation.truth import Number, Published, Truth
from tests.volume.world import CHEAP, PASSPHRASE, LocalTransfer, files_of, table

T = TypeVar("T")

CRASH_GRACE = 1.0
"""Seconds: what a crash may cost, where no fsync vouched for it."""

COUNTRIES = ("AT", "DE", "DE", "FR", "NL", "FI", "CH", "SE")
PEOPLE = ("ada", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")

HEADING = """
[volume]
code = "{k}-of-{n}"
safe = {safe}
publish_seconds = {seconds}
publish_mib = 1
"""


class BrokenError(Exception):
    """A promise was not kept."""


class DiedError(Exception):
    """The machine that was doing something is no more."""


class World:
    """Everything that a seed has made."""

    def __init__(self, seed: int, root: Path, wire: trio.Nursery, wall: Wall, mood: Mood, verbose: bool) -> None:
        self.rng = random.Random(f"schedule {seed}")
        self.chance = random.Random(f"chance {seed}")
        """For what is drawn while tasks run."""
        self.root = root
        self.wire = wire
        self.wall = wall
        self.mood = mood
        self.verbose = verbose
        self.k, self.n = self.rng.choice([(2, 4), (2, 4), (3, 5), (2, 3), (4, 6)])
        self.safe = self.n if self.rng.random() < 0.7 else self.rng.randint(self.k + 1, self.n)
        self.spare = self.rng.choice([0, 0, 1, 1, 2])
        self.names = PEOPLE[: self.n + self.spare]
        seconds = self.rng.choice([1, 5, 30, 1000])
        text = HEADING.format(k=self.k, n=self.n, safe=self.safe, seconds=seconds)
        text += "".join(map(table, self.names, COUNTRIES))
        self.config = configs.parse("demo", root / "demo.toml", text.encode())
        if self.rng.random() < 0.3:
            self.config = replace(self.config, cache_clean=0)
        self.current = self.config
        """The TOML as it was last edited."""
        self.sites = {name: Site(name, self, seed * 100 + at) for at, name in enumerate(self.names)}
        self.truth = Truth(self.config, {name: (lambda site=site: site.objects) for name, site in self.sites.items()})
        self.heads: dict[tuple[Number, bytes], Published] = {}
        self.harmed: set[str] = set()
        """Providers that lost something, and may lack it still."""
        self.liars: set[str] = set()
        self.trace: list[str] = []
        self.broken = ""
        """The first promise that was not kept."""
        self.puts: dict[tuple[str, str], bytes] = {}
        self.secrets = Secrets(passphrase=PASSPHRASE)
        self.lives: list[Life] = []
        self._machines = 0

    # --- what happened ------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """One more line of the trace."""
        self.trace.append(f"{trio.current_time():10.4f} {text}")
        self.say(text)

    def say(self, text: str) -> None:
        """For whoever watches; no part of the trace."""
        if self.verbose:
            print(f"{trio.current_time():10.4f} {text}")

    def digest(self) -> str:
        return hashlib.blake2b("\n".join(self.trace).encode(), digest_size=16).hexdigest()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A broken promise ends the run, whoever would catch it."""
        try:
            yield
        except BrokenError as error:
            self.fail(str(error))
            raise

    def fail(self, text: str) -> None:
        """A promise was not kept."""
        self.broken = self.broken or text
        self.note(f"!! {text}")
        self.wire.cancel_scope.cancel()

    def landed(self, site: str, name: str, before: bytes | None, data: bytes) -> None:
        """An object is there now: promise 4, none is ever replaced by other bytes."""
        with self.watched():
            self._landed(site, name, before, data)

    def _landed(self, site: str, name: str, before: bytes | None, data: bytes) -> None:
        self.note(f"  landed at {site}: {name}")
        mark = hashlib.blake2b(data, digest_size=8).digest()
        if before is not None and before != data and site not in self.harmed:
            raise BrokenError(f"{name} at {site} was replaced by other bytes")
        if self.puts.setdefault((site, name), mark) != mark:
            raise BrokenError(f"{name} at {site} was stored again with other bytes")
        if name.startswith(PREFIX) and self.truth._network is not None:
            self.head_landed(site, name, data)

    def head_landed(self, site: str, name: str, data: bytes) -> None:
        head = self.truth.open_head(site, name, data)
        if head is None or (head.number, head.writer) not in self.heads:
            raise BrokenError(f"a head landed at {site} that no machine was seen to put: {name}")
        published = self.heads[head.number, head.writer]
        published.holders.add(site)
        self.perhaps_durable(published, frozenset())

    def perhaps_durable(self, published: Published, pretenders: Collection[str]) -> None:
        """A head is durable where enough owners hold it, or pretend to."""
        owners = {self.config.providers[one].owner for one in published.holders.union(pretenders)}
        if published.durable_at is None and len(owners) >= self.n - self.k + 1:
            published.durable_at = trio.current_time()
            self.note(f"  head {published.head.number} is durable")
            self.check_head(published)

    # --- faults -------------------------------------------------------------------------------------------------------

    @property
    def spared(self) -> int:
        """Owners that may fail at a time: never so many that the rest could not take a head over."""
        return min(self.safe - self.k, self.k - 1)

    def durable(self) -> list[Published]:
        """Newest last."""
        return sorted((one for one in self.heads.values() if one.durable_at is not None), key=lambda p: p.head.number)

    def heal(self) -> None:
        """After a `sync`: who has again all that it lost, and tells the truth, is harmed no more."""
        newest = self.durable()[-1].head
        segments = self.truth.segments(newest)
        if segments is None or any(life.is_publishing for life in self.lives):
            return
        for name in sorted(self.harmed - self.liars):
            lacks = any(
                share.provider == name and share.stored and self.truth.payload(segment, index) is None
                for segment in segments
                for index, share in enumerate(segment.shares)
            )
            if not lacks and self.truth.holds_head(name, newest):
                self.note(f"-- {name} is whole again")
                self.harmed.discard(name)

    def troubled(self) -> set[str]:
        """Providers that do not answer, or not always the truth."""
        silent = {n for n, s in self.sites.items() if s.is_down or s.faults.plan.error > 0}
        return silent | self.harmed

    def may_harm(self, name: str) -> bool:
        """Whether `name` may lose something and every promise must hold all the same."""
        if len(self.troubled() | {name}) > self.spared or any(life.is_publishing for life in self.lives):
            return False
        durable = self.durable()
        if not durable:
            return False
        return all(self._bears(one.head, name) for one in (durable[-1], *self._newer(durable[-1])))

    def _newer(self, published: Published) -> list[Published]:
        return [one for one in self.heads.values() if one.head.number > published.head.number]

    def _bears(self, head: Head, loss: str) -> bool:
        segments = self.truth.segments(head)
        lost = self.harmed | {loss}
        return segments is not None and all(self.truth.owners(s, without=lost) >= s.k for s in segments)

    def may_silence(self, name: str) -> bool:
        return not self.harmed or len(self.troubled() | {name}) <= self.spared

    def clear_weather(self) -> None:
        """Everybody answers, and tells the truth; what is lost is lost."""
        for site in self.sites.values():
            site.vault.away = site.vault.read_only = False
            site.vault.capacity = 1 << 40
            site.plan()
        self.liars.clear()
        self.mood.commit_s = self.mood.thread_s = 0.0
        self.note("-- clear weather")

    # --- heads --------------------------------------------------------------------------------------------------------

    def calling(self, life: Life, site: str, name: str, data: bytes) -> None:
        """A machine begins to put an object."""
        with self.watched():
            self._calling(life, site, name, data)

    def _calling(self, life: Life, site: str, name: str, data: bytes) -> None:
        if not name.startswith(PREFIX) or self.truth._network is None:
            return
        head = self.truth.open_head(site, name, data)
        if head is None:
            raise BrokenError(f"{life.name} puts {name}, which is no head")
        if (head.number, head.writer) in self.heads:
            return
        published = self.heads[head.number, head.writer] = Published(head, life.name, life.trees_at(head))
        before = [one.line for one in self.heads.values() if one.head.number == head.previous]
        published.line = frozenset({published.key}).union(life.machine.line, *before)
        life.machine.line = published.line
        self.note(f"  {life.name} puts head {head.number} cut {head.cut}")
        life.check_unfenced(head)

    def check_head(self, published: Published) -> None:
        """What a durable head names can be had, and lies where it may."""
        head = published.head
        segments = self.truth.segments(head)
        if segments is None:
            raise BrokenError(f"head {head.number} is durable and its runs are not")
        harmed = self.harmed
        before = {s.id for one in self.durable()[:-1] for s in self.truth.segments(one.head) or ()}
        for segment in segments:
            good = self.truth.good(segment)
            lost = [
                share.provider
                for index, share in enumerate(segment.shares)
                if share.stored and index not in good and share.provider not in harmed
            ]
            if lost:
                raise BrokenError(f"head {head.number} says that {lost} hold shares which they do not")
            if len(good) + len(harmed) < segment.k or (not harmed and len(good) < segment.k):
                raise BrokenError(f"head {head.number} names a segment with {len(good)} good shares of {segment.k}")
            self._check_rules(published, segment, segment.id not in before)

    def _check_rules(self, published: Published, segment: Any, is_new: bool) -> None:
        owners: dict[str, int] = {}
        countries: dict[str, int] = {}
        for share in segment.shares:
            if share.stored:
                facts = self.config.providers[share.provider]
                owners[facts.owner] = owners.get(facts.owner, 0) + 1
                countries[facts.country] = countries.get(facts.country, 0) + 1
        if max(owners.values(), default=0) >= segment.k and segment.k > 1:
            raise BrokenError(f"head {published.head.number}: an owner holds {max(owners.values())} shares")
        policies = self.policies.get(published.by, [self.config.policy])
        if is_new and all(
            policy.max_per_country is not None and max(countries.values()) > policy.max_per_country
            for policy in policies[-2:]
        ):
            raise BrokenError(f"head {published.head.number}: a new segment breaks the policy: {countries}")

    @property
    def policies(self) -> dict[str, list[Policy]]:
        return {life.name: life.policies for life in self.lives}

    def trees_of(self, number: Number) -> list[Tree]:
        """What a recovery from the head of this number may show."""
        found = [tree for one in self.heads.values() if one.head.number == number for tree in one.trees]
        if not found:
            raise BrokenError(f"nobody put head {number}")
        return found

    # --- machines -----------------------------------------------------------------------------------------------------

    def machine(self) -> Machine:
        self._machines += 1
        return Machine(self, f"m{self._machines}")

    async def create(self) -> Machine:
        """The volume, as it is after `init`, on a first machine."""
        first = self.machine()
        life = Life(first)
        created = await life.within(
            lambda: create(self.config, first.folder, self.secrets, costs=CHEAP, start=life.start)
        )
        self.recovery = Secrets(recovery=parse_recovery_key(created.recovery_key))
        _, master = await unlock_local(first.folder, self.secrets)
        self.truth.learn(master)
        for name, site in self.sites.items():
            for object_name, raw in sorted(site.objects.items()):
                head = self.truth.open_head(name, object_name, raw)
                if head is not None:
                    key = head.number, head.writer
                    self.heads.setdefault(key, Published(head, first.name, [{}])).holders.add(name)
        for published in self.heads.values():
            published.durable_at, published.line = 0.0, frozenset({published.key})
        life.dead = True
        first.trees = [{}]
        return first


class Machine:
    """A disk with a volume's local state, or an empty one."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
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
        """Do `work` as this process; DiedError where that comes to no end."""
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
        return publisher.standstill.locked() or publisher.owes_head or bool(publisher._uploads.segments)

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
            transfers.append(LocalTransfer(engine, [], {line.name: line for line in lines}))
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
        return await self.within(self._look)

    async def _look(self) -> Seen:
        assert self.volume is not None
        vfs, seen = self.vfs, dict[bytes, bytes | Unknown | None]()
        for entry in list(self.volume.store.entries(loader.ROOT_INO, 0)):
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

    async def greet(self) -> None:
        """After opening: the tree is one that may be, and the history begins with it."""
        assert self.volume is not None
        trees = self.machine.trees
        names = sorted(entry.name for entry in self.volume.store.entries(loader.ROOT_INO, 0))
        possible = [tree for tree in trees if sorted(tree) == names]
        if not possible:
            raise BrokenError(f"{self.name} opens with {names}, which is none of {[describe(t) for t in trees]}")
        self.history = History(possible[0], self.volume.store.committed, trio.current_time())
        seen = await self.look()
        found = next((tree for tree in trees if matches(seen, tree)), None)
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
