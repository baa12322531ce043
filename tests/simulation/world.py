"""The simulated world: providers, what machines did there, and what is checked while they do (see `lives`)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from icnfs import config as configs
from icnfs.format import marker
from icnfs.format.head import PREFIX, Head
from icnfs.placement import Policy
from icnfs.volume import keyring
from icnfs.volume.keyring import Secrets
from tests.simulation.history import Tree
from tests.simulation.keeping import Clock, Keeping
from tests.simulation.sites import Site
from tests.simulation.tamed import OWNER, Mood, Wall
from tests.simulation.truth import Number, Published, Truth
from tests.volume.world import PASSPHRASE, table

if TYPE_CHECKING:
    from tests.simulation.lives import Life

COUNTRIES = ("AT", "DE", "DE", "FR", "NL", "FI", "CH", "SE")
PEOPLE = ("ada", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")

HEADING = """
[volume]
code = "{k}-of-{n}"
safe = {safe}
publish_seconds = {seconds}
publish_mib = 1
grace_hours = {grace}
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
        grace = self.rng.choice([1, 1, 24])
        text = HEADING.format(k=self.k, n=self.n, safe=self.safe, seconds=seconds, grace=grace)
        text += "".join(map(table, self.names, COUNTRIES))
        self.config = configs.parse("demo", root / "demo.toml", text.encode())
        if self.rng.random() < 0.3:
            self.config = replace(self.config, cache_clean=0)
        self.current = self.config
        """The TOML as it was last edited."""
        self.sites = {name: Site(name, self, seed * 100 + at) for at, name in enumerate(self.names)}
        self.truth = Truth(self.config, {name: (lambda site=site: site.objects) for name, site in self.sites.items()})
        self.clock = Clock(trio.current_time)
        self.keeping = Keeping(self.clock, self.config.grace)
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
        self.machines = 1

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
            self.is_last(published)

    def is_last(self, published: Published) -> None:
        """What it names is kept from now on, while it is the last head and for the grace after that."""
        segments = self.truth.segments(published.head) or []
        self.keeping.head_is_durable(published, segments, self.truth.network)

    def deleting(self) -> None:
        """Somebody sends such a request."""
        self.keeping.deleting()

    def deleted(self, site: str, name: str) -> None:
        """An object is gone because somebody said so."""
        self.note(f"  gone from {site}: {name}")
        life = OWNER.get()
        assert life is None or hasattr(life, "volume")
        with self.watched():
            self._deleted(life, site, name)  # type: ignore[arg-type]

    def _deleted(self, life: Life | None, site: str, name: str) -> None:
        volume = life.volume if life is not None else None
        if life is None or volume is None:
            return
        claim = volume.fence.claim
        writer = claim.current.writer if claim is not None else None
        leaving = life.leaving == site
        why = self.keeping.objection(site, name, writer, volume._segment, leaving=leaving)
        if why:
            raise BrokenError(f"{life.name} deleted {name} at {site}: {why}")

    # --- time ---------------------------------------------------------------------------------------------------------

    def set_clock(self, seconds: float) -> None:
        """The wall clock is set, so far forward."""
        self.wall.jumped_ns += int(seconds * 1e9)
        self.clock.set(seconds)

    def suspend(self, seconds: float) -> None:
        """All machines stand still for so long: only the wall clock goes on, as it does over a laptop's sleep."""
        self.wall.jumped_ns += int(seconds * 1e9)
        self.clock.suspend(seconds)
        self.note(f"-- {seconds / 3600:.1f} hours pass")

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
            place = self.sites[name].objects
            has_place = marker.NAME in place and any(each.startswith(keyring.PREFIX) for each in place)
            if not lacks and has_place and self.truth.holds_head(name, newest):
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
