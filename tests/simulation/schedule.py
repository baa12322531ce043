"""What happens in a seed's world: an endless choice of actions, and the end that checks what is left.

Each action is drawn from a seeded stream; a new kind of action is one more method and a row in `ACTIONS`.  An action
that asks something of the volume may fail with any error that has a name; it may not be wrong.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from icnfs.errors import DegradedError, FencedError, FsError, IcnfsError
from icnfs.state import loader
from icnfs.vfs.attributes import SetAttr
from icnfs.volume.volume import Volume
from tests.simulation.history import UNKNOWN, Tree, describe, matches
from tests.simulation.lives import Life, Machine
from tests.simulation.snapshots import Snapshots
from tests.simulation.truth import Number, Published
from tests.simulation.world import BrokenError, DiedError, World

FILES: Final = tuple(b"f%d" % number for number in range(6))
SIZES: Final = (1, 100, 4096, 5000, 20_000, 70_000, 140_000)
PATIENCE: Final = 600.0
"""Virtual seconds in which everything must have come right once the weather is clear."""


class Schedule:
    """The driver of one world; `run` it once."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.rng = world.rng
        self.machine = machine
        self.vouched: set[tuple[Number, bytes]] = set()
        """The heads that a `sync` vouched for."""
        self.storm = self.rng.choice([0.0, 0.5, 1.0, 2.0])
        """How much goes wrong."""
        self.crashes = self.rng.choice([0.0, 0.5, 1.5])
        self.collecting = self.rng.choice([0.2, 1.0, 1.5])
        world.mood.commit_s = self.rng.choice([0.0, 0.0, 0.02, 0.1])
        world.mood.thread_s = self.rng.choice([0.0, 0.0, 0.02, 0.2])
        self.latency = self.rng.choice([0.0, 0.01, 0.05, 0.4])
        self.background: list[trio.Event] = []
        self.snapshots = Snapshots()
        self.snapping = self.rng.choice([0.0, 0.5, 1.0])

    # --- the course of events -----------------------------------------------------------------------------------------

    async def run(self, actions: int) -> None:
        world = self.world
        world.note(
            f"-- {world.k}-of-{world.n}, safe {world.safe}, {len(world.names)} providers, storm {self.storm}, "
            f"crashes {self.crashes}"
        )
        for name in world.names:
            self.calm(name)
        await self.wake()
        weights = [weight(self) for _, weight in ACTIONS]
        for _ in range(actions):
            action, _ = self.rng.choices(ACTIONS, weights)[0]
            try:
                await action(self)
            except DiedError:
                await self.wake()
        await self.end()

    async def wake(self) -> None:
        """Open the volume again on the machine that has it; it may crash again meanwhile."""
        while True:
            life = Life(self.machine)
            if self.rng.random() < 0.2 * self.crashes:
                life.steps_left = self._steps()
            try:
                await life.open()
                await life.greet()
            except DiedError:
                continue
            if self.rng.random() < 0.3 * self.crashes:
                life.steps_left = self._steps()
            else:
                life.steps_left = None
            return

    def _steps(self) -> int:
        """Of whatever tasks of a process until it crashes: a few, or thousands."""
        return int(2 ** self.rng.uniform(0.0, 12.0))

    @property
    def life(self) -> Life:
        assert self.machine.life is not None
        return self.machine.life

    @property
    def volume(self) -> Volume:
        assert self.life.volume is not None
        return self.life.volume

    # --- requests -----------------------------------------------------------------------------------------------------

    async def write(self) -> None:
        for _ in range(self.rng.randint(1, 4)):
            await self._change(self.life)

    async def _change(self, life: Life) -> None:
        """One change of the tree, which the history is told of."""
        assert life.history is not None and life.volume is not None
        tree = dict(life.history.tree)
        kind = self.rng.choice(["write", "write", "write", "patch", "truncate", "rename", "unlink"])
        name = self.rng.choice(FILES)
        vfs = life.vfs
        if name not in tree and kind != "write":
            return
        old = tree.get(name) or b""
        if kind == "write" and name not in tree:
            await self._request(
                life, {**tree, name: b""}, lambda: _now(lambda: vfs.create(1, name, stat.S_IFREG | 0o644, 0, 0, 0))
            )
            tree = dict(life.history.tree)
            if name not in tree:
                return
        if kind in ("write", "patch"):
            offset = 0 if kind == "write" else self.rng.randrange(len(old) + 1)
            data = self.rng.randbytes(self.rng.choice(SIZES) if kind == "write" else self.rng.randint(1, 3000))
            tree[name] = old[:offset] + data + old[offset + len(data) :]

            async def put() -> None:
                handle = vfs.open(vfs.lookup(loader.ROOT_INO, name).ino, os.O_RDWR)
                try:
                    await vfs.write(handle.fh, offset, data)
                finally:
                    vfs.release(handle.fh)

            await self._request(life, tree, put)
        elif kind == "truncate":
            size = self.rng.randint(0, len(old) + 10)
            tree[name] = old[:size] + bytes(max(size - len(old), 0))

            def resize() -> object:
                return vfs.setattr(vfs.lookup(loader.ROOT_INO, name).ino, SetAttr(size=size))

            await self._request(life, tree, lambda: _now(resize))
        elif kind == "rename":
            other = self.rng.choice(FILES)
            tree[other] = tree.pop(name)
            await self._request(
                life, tree, lambda: _now(lambda: vfs.rename(loader.ROOT_INO, name, loader.ROOT_INO, other))
            )
        elif kind == "unlink":
            del tree[name]
            await self._request(life, tree, lambda: _now(lambda: vfs.unlink(loader.ROOT_INO, name)))

    async def _request(self, life: Life, tree: Tree, request: Callable[[], Awaitable[object]]) -> None:
        assert life.history is not None and life.volume is not None
        history, store = life.history, life.volume.store
        history.begin(tree, store.batch.number, trio.current_time())
        try:
            await life.within(request)
        except FsError as error:
            history.refused()
            self.world.note(f"  refused: {error}")
            return
        history.done(store.batch.number, trio.current_time())
        self.world.note(f"  {life.name} changed to [{describe(tree)}]")

    async def fsync(self) -> None:
        life, history = self.life, self.life.history
        assert history is not None
        mark = history.here()
        await life.within(self.volume.store.persist)
        history.vouch(mark)
        self.world.note(f"  {life.name} fsynced")

    async def read(self) -> None:
        await self._read(self.life, must=False)

    async def _read(self, life: Life, *, must: bool) -> None:
        """What is read is what was written; an error will do unless it `must` be had."""
        assert life.history is not None
        seen = await life.look()
        if not matches(seen, life.history.tree) or (must and UNKNOWN in seen.values()):
            raise BrokenError(f"{life.name} shows [{describe(seen)}], not [{describe(life.history.tree)}]")

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self) -> None:
        try:
            await self.life.within(self.volume.publisher.publish)
        except IcnfsError as error:
            self.world.note(f"  not published: {error}")

    async def sync(self) -> None:
        await self._sync(self.life, self.rng.choice([1.0, 10.0, 60.0]))

    async def sync_aside(self) -> None:
        """`sync`, while other things go on."""
        life, deadline, done = self.life, self.rng.choice([10.0, 60.0]), trio.Event()
        self.background.append(done)

        async def run() -> None:
            try:
                await self._sync(life, deadline)
            except DiedError:
                self.world.note("  a sync died with its machine")
            except BrokenError as error:
                self.world.fail(str(error))
            finally:
                done.set()

        self.world.wire.start_soon(run)

    async def _sync(self, life: Life, deadline: float) -> bool:
        assert life.history is not None and life.volume is not None
        history, volume = life.history, life.volume
        mark = history.here()
        newest = self.world.durable()[-1]
        try:
            batch = await life.within(lambda: volume.sync(deadline))
        except (DegradedError, FencedError) as error:
            self.world.note(f"  {life.name} not synced: {error}")
            if isinstance(error, DegradedError) and volume.store.fenced is not None:
                raise BrokenError("a fenced volume is called degraded") from error
            return False
        except IcnfsError as error:
            self.world.note(f"  {life.name} not synced: {type(error).__name__} {error}")
            return False
        history.vouch(mark)
        self.world.note(f"  {life.name} synced batch {batch}")
        self._check_synced(life, volume, newest)
        return True

    def _check_synced(self, life: Life, volume: Volume, newest: Published) -> None:
        """Promise 1, of this moment: a durable head, and `safe` owners for all that it names.

        `newest` was the newest durable head when the sync began: nobody may go on beside it.
        """
        world, head = self.world, volume.publisher.head
        if head is None:
            raise BrokenError("synced without a head")
        own = [one for one in world.heads.values() if one.head.number == head.number]
        published = next((one for one in own if one.head.writer == head.writer), None)
        if published is None:
            raise BrokenError(f"synced, and head {head.number} was never put")
        world.perhaps_durable(published, world.harmed)
        if published.durable_at is None:
            raise BrokenError(f"synced, and head {head.number} is not durable")
        if newest.key not in published.line and published.key not in newest.line:
            raise BrokenError(f"{life.name} synced {head.number} beside {newest.head.number} of {newest.by}")
        segments = world.truth.segments(published.head)
        if segments is None:
            raise BrokenError(f"synced, and the runs of head {head.number} are not there")
        for segment in segments:
            owners = world.truth.owners(segment)
            if owners + len(world.harmed) < world.safe:
                raise BrokenError(f"synced, and a segment of head {head.number} is with {owners} owners only")
        self.vouched.add(published.key)
        world.heal()

    # --- time ---------------------------------------------------------------------------------------------------------

    async def rest(self) -> None:
        await self.life.within(lambda: trio.sleep(self.rng.choice([0.01, 0.3, 1.0, 3.0, 12.0, 40.0])))

    async def jump(self) -> None:
        """The wall clock is set."""
        self.world.set_clock(self.rng.uniform(-1e5, 1e5))
        self.world.note("-- the clock jumps")

    # --- providers ----------------------------------------------------------------------------------------------------

    def calm(self, name: str) -> None:
        site = self.world.sites[name]
        site.vault.away = site.vault.read_only = False
        site.vault.capacity = 1 << 40
        site.plan(latency=self.latency * self.rng.uniform(0.2, 2.0))

    async def weather(self) -> None:
        """Something becomes of one provider."""
        world, name = self.world, self.rng.choice(self.world.names)
        site = world.sites[name]
        kind = self.rng.choice(["calm", "calm", "calm", "down", "down", "hang", "errors", "full", "read-only", "slow"])
        if name in world.liars and kind != "calm":
            return
        world.liars.discard(name)
        self.calm(name)
        if kind in ("down", "hang", "errors") and not world.may_silence(name):
            return
        if kind == "down":
            site.vault.away = True
        elif kind == "hang":
            site.plan(hang=self.rng.choice([0.1, 1.0]))
        elif kind == "errors":
            site.plan(error=self.rng.choice([0.1, 0.5]))
        elif kind == "full":
            site.vault.capacity = sum(map(len, site.objects.values())) + self.rng.choice([0, 1000, 30_000])
        elif kind == "read-only":
            site.vault.read_only = True
        elif kind == "slow":
            site.plan(latency=self.rng.choice([1.0, 4.0]), bandwidth=self.rng.choice([0.0, 50_000.0]))
        world.note(f"-- {name}: {kind}")

    async def harm(self) -> None:
        """A provider loses everything, or a bit of something, or lies for a while."""
        world, name = self.world, self.rng.choice(self.world.names)
        if not world.may_harm(name):
            return
        site = world.sites[name]
        kind = self.rng.choice(["loss", "rot", "lies", "lost puts", "stale"])
        world.harmed.add(name)
        world.note(f"-- {name}: {kind}")
        if kind == "loss":
            site.lose()
        elif kind == "rot":
            shares = sorted(n for n in site.objects if n.startswith("shares/"))
            for one in self.rng.sample(shares, min(len(shares), 5)):
                raw = bytearray(site.objects[one])
                raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)
                site.objects[one] = bytes(raw)
        else:
            world.liars.add(name)
            if kind == "lies":
                site.plan(flip=0.5, truncate=0.2)
            elif kind == "lost puts":
                site.plan(lose=0.5)
            else:
                site.plan(stale=0.5)

    # --- machines -----------------------------------------------------------------------------------------------------

    async def crash(self) -> None:
        """Now, or at some await that is to come."""
        if self.rng.random() < 0.3:
            self.life.crash()
            raise DiedError
        self.life.steps_left = self._steps()
        self.world.note(f"-- {self.life.name} will crash in {self.life.steps_left} steps")

    async def reopen(self) -> None:
        await self.life.close()
        if self.rng.random() < 0.3:
            self.world.suspend(3600 * self.rng.choice([1.0, 30.0, 500.0]))
        await self.wake()

    async def lose_machine(self) -> None:
        """The machine is gone; another one recovers the volume."""
        if not self.life.dead:
            self.life.crash()
        await self._recover()

    async def takeover(self) -> None:
        """Another machine recovers the volume while this one goes on, until it finds out."""
        old = self.life
        old.steps_left = None
        await self._recover()
        try:
            for _ in range(self.rng.randint(1, 3)):
                await self._change(old)
            await self._sync(old, 30.0)
            if old.volume is not None and old.volume.store.fenced is not None:
                self.world.note(f"  {old.name} is fenced")
        except DiedError:
            self.world.note("  the old machine died")
        if not old.dead:
            old.crash()

    async def _recover(self) -> None:
        """The volume on a new machine: at least what `sync` vouched for, and no durable head is passed over."""
        world = self.world
        self.machine = Machine(world)
        durable = world.durable()[-1].head.number
        while True:
            life = Life(self.machine)
            if self.rng.random() < 0.3 * self.crashes:
                life.steps_left = self._steps()
            offered = self.rng.choice([world.recovery, world.recovery])
            try:
                found = await life.recover(offered)
                break
            except DiedError:
                if (self.machine.folder / "meta").exists():
                    self.machine.secrets = offered
                    self.machine.trees = world.trees_of(durable) + [
                        tree for one in world.heads.values() if one.head.number > durable for tree in one.trees
                    ]
                    await self.wake()
                    return
            except IcnfsError as error:
                world.note(f"  not recovered: {error}")
                life.dead = True
                self.machine.wipe()
                if not world.troubled() - world.harmed and not any(
                    s.vault.read_only or s.vault.capacity != 1 << 40 or s.faults.plan.latency > 1
                    for s in world.sites.values()
                ):
                    raise BrokenError(f"the volume cannot be recovered: {error}") from error
                world.clear_weather()
        number = found.epoch, found.sequence
        if number < durable:
            raise BrokenError(f"head {number} was recovered, and {durable} was durable")
        line = frozenset[tuple[Number, bytes]]().union(
            *(one.line for one in world.heads.values() if one.head.number == number)
        )
        if lost := self.vouched - line:
            raise BrokenError(f"head {number} was recovered, which does not go back to {sorted(n for n, _ in lost)}")
        await self.wake()

    async def change_policy(self) -> None:
        """The TOML is edited: another cap, or a provider to be drained, or none any more."""
        world, machine = self.world, self.machine
        facts = dict(machine.config.providers)
        if self.rng.random() < 0.5 or world.spare == 0:
            policy = replace(machine.config.policy, max_per_country=self.rng.choice([None, 2, 1]))
        else:
            policy = machine.config.policy
            name = self.rng.choice(world.names)
            drain = not facts[name].drain and sum(f.drain for f in facts.values()) < world.spare
            facts[name] = replace(facts[name], drain=drain)
        changed = replace(machine.config, policy=policy, providers=facts)
        try:
            await self.life.within(lambda: self.volume.adopt(changed))
        except IcnfsError as error:
            world.note(f"  not adopted: {error}")
            return
        machine.config = world.current = changed
        self.life.policies.append(policy)
        world.note(f"-- policy: {policy.max_per_country} per country, draining {[n for n in facts if facts[n].drain]}")

    async def leave(self) -> None:
        """What is being drained is left."""
        draining = [name for name, facts in self.machine.config.providers.items() if facts.drain]
        if not draining:
            return
        name = self.rng.choice(draining)
        life, volume = self.life, self.volume
        life.leaving = name
        try:
            result = await life.within(lambda: volume.leave(name, deadline=60.0))
            self.world.note(f"-- {name} is left: {result}")
        except IcnfsError as error:
            self.world.note(f"  {name} is not left: {error}")
        finally:
            life.leaving = ""

    # --- snapshots ----------------------------------------------------------------------------------------------------

    async def snapshot(self) -> None:
        try:
            await self.snapshots.make(self.life, self.rng.choice([10.0, 60.0]))
        except IcnfsError as error:
            self.world.note(f"  no snapshot: {error}")

    async def delete_snapshot(self) -> None:
        if names := self.snapshots.there(self.life):
            try:
                await self.snapshots.delete(self.life, self.rng.choice(names))
            except IcnfsError as error:
                self.world.note(f"  not deleted: {error}")

    async def open_snapshot(self) -> None:
        if names := self.snapshots.there(self.life):
            await self.snapshots.check(self.life, self.rng.choice(names), must=False)

    # --- care ---------------------------------------------------------------------------------------------------------

    async def collect(self) -> None:
        """A round of collection."""
        before = self.world.keeping.deleted
        await self.life.within(self.volume.collector.round)
        self.world.note(f"  collected {self.world.keeping.deleted - before} objects")

    async def long_rest(self) -> None:
        """Hours or days in which the machines stand still, and a while in which they go on."""
        self.world.suspend(3600 * self.rng.choice([0.5, 2.0, 10.0, 30.0, 100.0]))
        await self.life.within(lambda: trio.sleep(self.rng.choice([0.0, 1.0, 10.0])))

    # --- the end ------------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """In clear weather everything comes right; then the machine is lost, and as many owners as may be."""
        world = self.world
        world.clear_weather()
        if not self.life.dead:
            self.life.steps_left = None
        for done in self.background:
            await done.wait()
        if self.life.dead:
            self.crashes = 0.0
            await self.wake()
        self.crashes = 0.0
        await self._survive_a_fork()
        if world.harmed or self.rng.random() < 0.5:
            await self.reopen()
        synced = await self._sync(self.life, PATIENCE) or (
            await self._survive_a_fork() and await self._sync(self.life, PATIENCE)
        )
        if not synced and not self._may_stay_degraded():
            raise BrokenError("sync did not come to an end in clear weather")
        await self._read(self.life, must=True)
        if self.rng.random() < 0.5:
            await self._age()
            synced = await self._sync(self.life, PATIENCE)
        tree = self.life.history.tree if self.life.history is not None else {}
        self.life.crash()
        harmed = world.harmed
        if synced:
            left = world.spared - len(harmed)
            for name in self.rng.sample([n for n in world.names if n not in harmed], max(left, 0)):
                world.note(f"-- {name} is lost for good")
                world.harmed.add(name)
                world.sites[name].lose()
                world.sites[name].vault.away = True
        await self._recover()
        if synced and not any(tree == one for one in [self.life.history.tree if self.life.history else None]):
            raise BrokenError("what sync vouched for is not what is recovered")
        await self._read(self.life, must=synced)
        for name in self.snapshots.there(self.life):
            await self.snapshots.check(self.life, name, must=synced)

    async def _survive_a_fork(self) -> bool:
        """Whether there was one that has ended this machine, which it may find out only now, and another recovery."""
        if self.volume.store.fenced is None:
            return False
        if not self._is_forked():
            raise BrokenError(f"{self.life.name} is fenced, and nobody took over")
        self.world.note("  a fork ends both")
        self.life.crash()
        await self._recover()
        return True

    async def _age(self) -> None:
        """All that is not needed is condemned, and goes."""
        for _ in range(2):
            await self.collect()
            await self.publish()
            await self.collect()
            self.world.suspend(self.machine.config.grace + 3600.0)
            await self.collect()

    def _is_forked(self) -> bool:
        """Whether somebody put a head beside those of this machine's line."""
        line = self.machine.line
        return any(one.key not in line and not line <= one.line for one in self.world.heads.values())

    def _may_stay_degraded(self) -> bool:
        """Whether the policy, or what was lost in silence, keeps the volume from being safe."""
        config = self.machine.config
        return (
            bool(self.world.harmed)
            or any(facts.drain for facts in config.providers.values())
            or config.policy.max_per_country is not None
        )


async def _now(request: Callable[[], object]) -> None:
    request()
    await trio.lowlevel.checkpoint()


ACTIONS: Final[list[tuple[Callable[[Schedule], Awaitable[None]], Callable[[Schedule], float]]]] = [
    (Schedule.write, lambda s: 6.0),
    (Schedule.fsync, lambda s: 2.0),
    (Schedule.read, lambda s: 0.7),
    (Schedule.publish, lambda s: 1.5),
    (Schedule.sync, lambda s: 1.5),
    (Schedule.sync_aside, lambda s: 1.0),
    (Schedule.rest, lambda s: 2.0),
    (Schedule.jump, lambda s: 0.3),
    (Schedule.weather, lambda s: 2.0 * s.storm),
    (Schedule.harm, lambda s: 0.7 * s.storm),
    (Schedule.crash, lambda s: 1.5 * s.crashes),
    (Schedule.reopen, lambda s: 0.5),
    (Schedule.lose_machine, lambda s: 0.5),
    (Schedule.takeover, lambda s: 0.4),
    (Schedule.change_policy, lambda s: 0.5),
    (Schedule.leave, lambda s: 0.3),
    (Schedule.snapshot, lambda s: 1.5 * s.snapping),
    (Schedule.delete_snapshot, lambda s: 0.6 * s.snapping),
    (Schedule.open_snapshot, lambda s: 0.5 * s.snapping),
    (Schedule.collect, lambda s: 2.0 * s.collecting),
    (Schedule.long_rest, lambda s: 1.0 * s.collecting),
]
"""Every kind of action, and how often it is chosen."""
