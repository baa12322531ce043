"""What transfer knows of each provider's health.

Its state is that of its circuit breaker (`providers.breaker`): reads go to the other shares while it is down.  How fast
one is that answers is estimated apart from the state (`estimate`).  A share is bad or not by itself, and says nothing
of the state.

Pure: it is told the time, and asks nobody anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from icnfs.limits import HEDGE_SECONDS
from icnfs.providers.base import Capacity
from icnfs.providers.breaker import Switch
from icnfs.transfer.estimate import Estimate, Pace
from icnfs.transfer.messages import ProviderState, ShareEvent

BAD_SHARES_MAX: Final = 100_000
"""Bad shares remembered by name for one provider; past it they are worked around all the same, but not counted."""

_TEXT_MAX: Final = 500


class Health(Switch):
    """One provider; `down` and `up` are what it is measured by, each by itself where none is given."""

    def __init__(self, name: str, down: Pace | None = None, up: Pace | None = None) -> None:
        super().__init__()
        self.name = name
        self._capacity = Capacity(None, None, "")
        self.reads = Estimate(down or Pace())
        self.writes = Estimate(up or Pace())
        self.read_price = 0.0
        """EUR per TB read."""
        self._bad: set[str] = set()
        self.bytes_up = 0
        self.bytes_down = 0

    def told(self, capacity: Capacity) -> None:
        super().told(capacity)
        self._capacity = capacity

    def preferred(self) -> bool:
        """Whether a read should go there at all while there are others."""
        return not self.is_down

    def is_bad(self, share_name: str) -> bool:
        return share_name in self._bad

    def note_share(self, share_name: str, bad: bool) -> bool:
        """Remember a share as bad, or as mended.  True when that is news."""
        if bad == (share_name in self._bad) or (bad and len(self._bad) >= BAD_SHARES_MAX):
            return False
        if bad:
            self._bad.add(share_name)
        else:
            self._bad.discard(share_name)
        return True

    def snapshot(self, now: float) -> ProviderState:
        """The state as the front sees it."""
        return ProviderState(
            name=self.name,
            state=self.state,
            error=self.error,
            bad_shares=len(self._bad),
            free_bytes=self._capacity.free_bytes,
            pool=self._capacity.pool[:_TEXT_MAX],
            latency_s=self.reads.latency,
            rate_up=self.writes.rate,
            rate_down=self.reads.rate,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            writes=self.refusals.state(now),
        )


class Board:
    """All providers, and what has changed since somebody last looked; `hedge` is the longest patience in seconds."""

    def __init__(
        self, names: Iterable[str], notify: Callable[[ShareEvent], None], hedge: float = HEDGE_SECONDS
    ) -> None:
        self._down, self._up = Pace(hedge), Pace(hedge)
        self._healths: dict[str, Health] = {}
        for name in names:
            self.add(name)
        self._shown = self.states(0.0)
        self._notify = notify

    def __getitem__(self, name: str) -> Health:
        return self._healths[name]

    def add(self, name: str) -> Health:
        """A provider of whom nothing is known yet, in the place of one that has the name."""
        self.remove(name)
        self._healths[name] = Health(name, self._down, self._up)
        return self._healths[name]

    def remove(self, name: str) -> None:
        """One who is asked nothing any more, and by whom nobody is measured."""
        if health := self._healths.pop(name, None):
            health.reads.forget()
            health.writes.forget()

    def note_share(self, event: ShareEvent) -> None:
        """A share was found bad or missing, of which whoever listens is told once, or was mended."""
        health, bad = self._healths.get(event.provider), event.what != "mended"
        if health is not None and (health.note_share(event.name, bad) or not bad):
            self._notify(event)

    def states(self, now: float) -> dict[str, ProviderState]:
        return {name: health.snapshot(now) for name, health in self._healths.items()}

    def news(self, now: float) -> tuple[ProviderState, ...]:
        """The states that have changed since the last call, or since the beginning."""
        states = self.states(now)
        changed = tuple(state for name, state in states.items() if self._shown.get(name) != state)
        self._shown = states
        return changed
