"""Heads at the providers: listing, believing, choosing and storing them.

A name proves nothing: any provider can make one up.  A head counts only once a copy of it was fetched and opened, and
then it is the volume's own, for only the holder of the keys can seal one.  What a provider shows that does not open is
noted against it and otherwise ignored, and less of what it lists is looked into from then on: what is left out counts
as not answered.  A head is *durable* at n - k + 1 distinct owners: then whatever k providers answer later, one of them
has it.

This module knows nothing of local state; `fence` decides what a head means for this mount.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from icnfs.errors import DamagedError, FormatError, IcnfsError, NameTakenError, NewerFormatError, ProviderError
from icnfs.format import head as head_format
from icnfs.format.head import HEAD_MAX, PREFIX, Head, HeadName
from icnfs.volume.network import Network

log = logging.getLogger(__name__)

CANDIDATES_MAX: Final = 16
"""Of the names one provider lists, only so many of the newest are looked into: made-up names cost no more than this."""

READ_SECONDS: Final = 60.0
"""For all heads that one provider lists, in one look."""

DOUBTED_CANDIDATES: Final = 1
DOUBTED_SECONDS: Final = 2.0
"""The same for one that showed a false head, or listed one and did not hand it out: else it could make each publish
last as long as the first, for ever.  An honest head comes in a few round trips."""

DISBELIEVED_MAX: Final = 4096
"""Names found to be false are remembered, up to so many, and not fetched again."""


@dataclass(frozen=True)
class Survey:
    """What a round of listings found: names by provider (ascending), and the error of each that did not answer.

    `time` is when it began, of trio's clock.
    """

    listed: Mapping[str, tuple[HeadName, ...]]
    away: Mapping[str, IcnfsError]
    time: float = 0.0
    unread: set[str] = field(default_factory=set)
    """Providers that list a head and did not hand it out when it was looked for: they have as good as not answered."""

    def newest(self) -> Iterable[tuple[tuple[int, int], list[tuple[str, HeadName]]]]:
        """((epoch, sequence), its copies), newest first."""
        groups: dict[tuple[int, int], list[tuple[str, HeadName]]] = {}
        for provider, names in self.listed.items():
            for name in names[-CANDIDATES_MAX:]:
                groups.setdefault((name.epoch, name.sequence), []).append((provider, name))
        return sorted(groups.items(), reverse=True)


@dataclass
class Stored:
    """What became of one head's copies."""

    providers: set[str] = field(default_factory=set)
    errors: dict[str, IcnfsError] = field(default_factory=dict)


@dataclass
class _Budget:
    """What one provider's heads may still cost, in one look."""

    seconds: float
    candidates: int

    @property
    def spent(self) -> bool:
        return self.seconds <= 0 or self.candidates <= 0

    @contextmanager
    def spending(self) -> Iterator[None]:
        """One candidate is looked into."""
        begun = trio.current_time()
        self.candidates -= 1
        try:
            yield
        finally:
            self.seconds -= trio.current_time() - begun


class Heads:
    """The heads of one volume at all its providers."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._disbelieved: dict[tuple[str, HeadName], None] = {}
        self.liars: dict[str, str] = {}
        """What was wrong with a head that a provider showed, by provider."""
        self.doubted: dict[str, str] = {}
        """Why a provider is doubted, until it shows a real head in time: it lied, or did not hand out what it lists."""
        self.highest: Head | None = None
        """Of those that were looked for and are real, the one with the highest number."""
        self._seen = Survey({}, {})
        self.rival: Head | None = None
        """A head that bore the name of one of ours before it was put: a copy of this machine, with its claim, is at
        work."""

    async def survey(self, after: tuple[int, int] | None = None, deadline: float = 30.0) -> Survey:
        """Ask every provider for its heads numbered `after` or later, or for all; takes at most `deadline` seconds.

        A publish asks after its base, and for LIST_PAGE names at most, so what it costs does not grow with their
        number: any that are there and not its own stop it.
        """
        begun = trio.current_time()
        least = after or (0, 0)
        last = head_format.name_before(*least)
        listed: dict[str, tuple[HeadName, ...]] = {}
        away: dict[str, IcnfsError] = {}

        async def ask(provider: str) -> None:
            try:
                names = await self._network.transfer.list_objects(
                    provider, PREFIX, last, page=after is not None, deadline=deadline
                )
            except IcnfsError as error:
                away[provider] = error
                return
            parsed = (head_format.parse_name(name) for name in names)
            listed[provider] = tuple(sorted(n for n in parsed if n is not None and (n.epoch, n.sequence) >= least))

        async with trio.open_nursery() as nursery:
            for provider in self._network.providers:
                if provider not in self._network.foreign:
                    nursery.start_soon(ask, provider)
        self._seen = Survey(listed, away, begun)
        return self._seen

    def showing(self, head: Head) -> int:
        """Owners that listed `head` when they were last asked."""
        tag, number = self._network.names.writer_tag, (head.epoch, head.sequence)
        return self._network.owners(
            provider
            for provider, names in self._seen.listed.items()
            if HeadName(*number, tag(provider, head.writer)) in names
        )

    async def newest(
        self,
        survey: Survey,
        seconds: float = READ_SECONDS,
        *,
        skip: Callable[[str, HeadName], bool] = lambda _provider, _name: False,
        accept: Callable[[Head], bool] = lambda _head: True,
    ) -> Head | None:
        """The newest head of `survey` that is real and accepted; None when there is none.

        `skip` saves fetching what need not be looked at; who does not hand out what it lists, in so many `seconds` for
        all of it, is noted in the survey.  Raises `NewerFormatError` where a head met on the way was written by a later
        release.
        """
        little = self._little(survey)
        budgets = {
            provider: _Budget(min(seconds, DOUBTED_SECONDS), DOUBTED_CANDIDATES)
            if provider in little
            else _Budget(seconds, CANDIDATES_MAX)
            for provider in survey.listed
        }
        for _, copies in survey.newest():
            for provider, name in copies:
                if skip(provider, name) or (provider, name) in self._disbelieved:
                    continue
                budget = budgets[provider]
                if budget.spent:
                    survey.unread.add(provider)
                    continue
                with budget.spending():
                    head = await self._look_into(survey, provider, name, budget.seconds)
                if head is not None:
                    self.doubted.pop(provider, None)
                if head is not None and accept(head):
                    self.highest = max(self.highest or head, head, key=lambda one: one.number)
                    return head
        return None

    def _little(self, survey: Survey) -> set[str]:
        """Providers that are given little time and few candidates: the doubted ones.

        Not where without them too few owners answer: then what they list decides, and a slow line is not taken for a
        lie.
        """
        network, doubted = self._network, survey.listed.keys() & self.doubted.keys()
        others = (survey.listed.keys() & network.taken) - doubted
        return set() if network.silent(others) > network.silent_most else doubted

    async def _look_into(self, survey: Survey, provider: str, name: HeadName, seconds: float) -> Head | None:
        try:
            return await self._believe(provider, name, seconds)
        except ProviderError as error:
            level = logging.DEBUG if provider in self.doubted else logging.WARNING
            log.log(level, "head %s cannot be read: %s", name, error)
            survey.unread.add(provider)
            self.doubted[provider] = f"it lists head {name} and does not hand it out: {error.detail}"
            return None

    async def _believe(self, provider: str, name: HeadName, deadline: float) -> Head | None:
        """The head behind a name, or None where it is not one.  Raises `ProviderError` where it cannot be had."""
        if (provider, name) in self._disbelieved:
            return None
        try:
            raw = await self._network.transfer.get_object(provider, str(name), most=HEAD_MAX, deadline=deadline)
            head = head_format.unseal(raw, name, self._network.token(provider), self._network.open_head)
            if self._network.names.writer_tag(provider, head.writer) != name.tag:
                raise FormatError("a head under another writer's name")
        except NewerFormatError:
            raise
        except (FormatError, DamagedError) as error:
            self._disbelieve(provider, name, str(error))
            return None
        return head

    def _disbelieve(self, provider: str, name: HeadName, why: str) -> None:
        if len(self._disbelieved) >= DISBELIEVED_MAX:
            self._disbelieved.clear()
        self._disbelieved[provider, name] = None
        level = logging.DEBUG if provider in self.liars else logging.WARNING
        self.liars[provider] = self.doubted[provider] = f"head {name}: {why}"
        log.log(level, "provider %s shows a false head %s: %s", provider, name, why)

    async def store(self, head: Head, spare: trio.Nursery, deadline: float = 60.0) -> Stored:
        """Put `head` at every provider that is to keep it; return once it is durable, or all have answered.

        None is ever replaced, where the provider can tell: a head that bears its name already is the `rival`.  What is
        still under way then goes on in `spare`.  The caller asks `Network.owners` whether it is durable.
        """
        stored = Stored()
        enough = trio.Event()
        providers = self._network.homes
        waiting = len(providers)

        async def put(provider: str) -> None:
            nonlocal waiting
            tag = self._network.names.writer_tag(provider, head.writer)
            name = HeadName(head.epoch, head.sequence, tag)
            raw = head_format.seal(head, self._network.token(provider), self._network.seal_head)
            try:
                await self._network.transfer.put_object(provider, str(name), raw, new=True, deadline=deadline)
                stored.providers.add(provider)
                self._network.acknowledge(provider, str(name))
            except NameTakenError as error:
                stored.errors[provider] = error
                with suppress(ProviderError):
                    found = await self._believe(provider, name, deadline)
                    if found not in (None, head):  # whoever shows just what was put knows of nobody else
                        self.rival = found
            except IcnfsError as error:
                stored.errors[provider] = error
            finally:
                waiting -= 1
                if not waiting or self._network.owners(stored.providers) >= self._network.durable:
                    enough.set()

        for provider in providers:
            spare.start_soon(put, provider)
        if providers:
            await enough.wait()
        return stored
