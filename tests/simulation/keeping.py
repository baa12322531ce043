"""What may be deleted at the providers, judged at the instant at which an object goes.

Checked of every share and every copy of a head (the promises of `icnfs.volume.collect`):

1. The last durable head does not name it, nor does one that was the last within the grace.
2. Whoever deletes has listed the heads just before, when nobody had taken over.
3. What it has open does not name it.

Time is real time: it goes on while machines are suspended.  A clock that was set forward makes a grace shorter.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from icnfs.format.head import PREFIX, Head, HeadName
from icnfs.format.segment import SegmentInfo
from icnfs.volume.network import SHARES_PREFIX, Network
from tests.simulation.truth import Number, Published

SURVEYED: contextvars.ContextVar[float] = contextvars.ContextVar("surveyed", default=float("-inf"))
"""When, in real time, the last survey began that was made in this context."""

SENT: contextvars.ContextVar[float] = contextvars.ContextVar("sent", default=float("-inf"))
"""When the last request to delete was sent in this context: machines may sleep before it arrives."""

FRESH: Final = 300.0
"""Seconds for which deletions may lean on one survey: a few of them, 15 s each at most."""


class Clock:
    """Real time in seconds, and how far the wall clock was ever set forward."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._suspended = self.forward = 0.0

    @property
    def real(self) -> float:
        return self._now() + self._suspended

    def suspend(self, seconds: float) -> None:
        self._suspended += seconds

    def set(self, seconds: float) -> None:
        self.forward += max(seconds, 0.0)


@dataclass
class Last:
    """A head that was once the last durable one."""

    number: Number
    writer: bytes
    objects: frozenset[tuple[str, str]]
    """(provider, name) of what it named, its own copies included."""
    since: float
    until: tuple[float, float] | None = None
    """Real time at which another was, and how far clocks had been set forward by then."""


@dataclass
class Keeping:
    """Of one world."""

    clock: Clock
    grace: float
    lasts: list[Last] = field(default_factory=list)
    shares: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict)
    """(segment, index) of every share that was ever sent, by provider and name."""
    deleted: int = 0

    def sent(self, id: bytes, places: Iterable[tuple[int, str, str]]) -> None:
        """Shares of a segment are about to be stored: (index, provider, name) of each."""
        for index, provider, name in places:
            self.shares[provider, name] = id, index

    def head_is_durable(self, published: Published, segments: list[SegmentInfo], network: Network) -> None:
        """From now on this head is the last one, unless a later one is."""
        head = published.head
        if any(last.number > head.number for last in self.lasts):
            return
        for last in self.lasts:
            last.until = last.until or (self.clock.real, self.clock.forward)
        self.lasts.append(Last(head.number, head.writer, objects_of(network, head, segments), self.clock.real))

    def objection(
        self,
        provider: str,
        name: str,
        writer: bytes | None,
        find: Callable[[bytes], SegmentInfo | None],
        *,
        leaving: bool,
    ) -> str:
        """Why this object may not go, "" where it may.

        `writer` is that of the mount which deletes it, and `find` gives a segment as that mount describes it.
        """
        if not name.startswith((PREFIX, SHARES_PREFIX)):
            return ""
        self.deleted += 1
        if leaving:
            return self._named_while_leaving(provider, name) or self._named_here(provider, name, find)
        return self._named(provider, name) or self._named_here(provider, name, find) or self._unseen(writer)

    def deleting(self) -> None:
        """A request to delete is sent now, in this context."""
        SENT.set(self.clock.real)

    def _named(self, provider: str, name: str) -> str:
        for last in reversed(self.lasts):
            if (provider, name) not in last.objects:
                continue
            if last.until is None:
                return f"head {last.number}, the last one, names it"
            passed = self.clock.real - last.until[0] + self.clock.forward - last.until[1]
            if passed < self.grace:
                return f"head {last.number} names it, which was the last one {passed:.0f} s ago"
        return ""

    def _named_while_leaving(self, provider: str, name: str) -> str:
        """A provider that is left keeps nothing that the last head leans on; older ones may."""
        last = self.lasts[-1]
        if name.startswith(SHARES_PREFIX) and (provider, name) in last.objects:
            return f"head {last.number}, the last one, names it"
        return ""

    def _named_here(self, provider: str, name: str, find: Callable[[bytes], SegmentInfo | None]) -> str:
        if (provider, name) not in self.shares:
            return ""
        id, index = self.shares[provider, name]
        segment = find(id)
        if segment is None or segment.shares[index].provider != provider or not segment.shares[index].stored:
            return ""
        return "local state names it"

    def _unseen(self, writer: bytes | None) -> str:
        surveyed, sent = SURVEYED.get(), SENT.get()
        if sent - surveyed > FRESH:
            return f"heads were not listed for {sent - surveyed:.0f} s when it was sent"
        own = max((last.number for last in self.lasts if last.writer == writer), default=(0, 0))
        for last in self.lasts:
            if last.writer != writer and last.number > own and last.since < surveyed and own > (0, 0):
                return f"head {last.number} of somebody else was there when heads were listed"
        return ""


def objects_of(network: Network, head: Head, segments: list[SegmentInfo]) -> frozenset[tuple[str, str]]:
    """(provider, name) of every copy of a head, and every share of what it names: one that comes late, too."""
    tag_of: Callable[[str, bytes], bytes] = network.names.writer_tag
    found = {(p, str(HeadName(head.epoch, head.sequence, tag_of(p, head.writer)))) for p in network.providers}
    for segment in segments:
        names = network.names_of(segment)
        found |= {(s.provider, name) for s, name in zip(segment.shares, names, strict=True)}
    return frozenset(found)
