"""Shares on their way: of one segment until it is answered, and those of slow providers after that.

A segment is answered once enough of its shares are stored and the rest has had its patience.  What is then still under
way is *late*: it goes on by itself, and whoever listens hears of its end.  Late shares keep memory, so they are
bounded, by provider and in all; what does not fit is given up.  A provider that has late shares is not waited for, and
one that has as many as it may is given another only where there would not be enough without it, or when it has room
again as the segment is answered: so one slow provider costs the others nothing, and takes what it can.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from icnfs.errors import ProviderAwayError, ProviderError
from icnfs.limits import MIB
from icnfs.transfer.messages import ShareEvent

LATE_MAX: Final = 108 * MIB
LATE_PER_PROVIDER: Final = 72 * MIB
"""Bytes that late shares may keep in memory, in all and for one provider: a data share keeps its segment's payload.

Six segments and four, of 16 MiB and what their data shares are filled up with.  Four come while a line of 25 MB/s gets
back what one full queue dropped; with room for one, three shares were given up in five publishes of 1 GiB over six such
lines, and stored again with another head; with room for four none.
"""

PATIENCE_SECONDS: Final = 0.25
PATIENCE_PART: Final = 0.5
"""Once enough shares are stored the rest has so many seconds more, or this part of the time that those took."""


class Late:
    """The late shares of one engine; `nursery` carries them, `notify` hears of their end."""

    def __init__(self, nursery: trio.Nursery, notify: Callable[[ShareEvent], None]) -> None:
        self.nursery = nursery
        self.notify = notify
        self._held: defaultdict[str, int] = defaultdict(int)

    def held(self, provider: str | None = None) -> int:
        """Bytes that late shares keep in memory: those of one provider, or all."""
        return sum(self._held.values()) if provider is None else self._held.get(provider, 0)

    def fits(self, provider: str, size: int) -> bool:
        return self.held(provider) + size <= LATE_PER_PROVIDER and self.held() + size <= LATE_MAX

    def is_full(self, provider: str, size: int) -> bool:
        """Whether the provider has late shares already, and may not have this one too."""
        return self.held(provider) > 0 and not self.fits(provider, size)

    def keep(self, provider: str, size: int) -> None:
        self._held[provider] += size

    def drop(self, provider: str, size: int) -> None:
        self._held[provider] -= size
        if not self._held[provider]:
            del self._held[provider]


class Storing:
    """The shares of one segment on their way.

    `puts` stores each, by index; `events` says what is told of each if it is late, with `what` and `detail` to be
    filled in; `sizes` are the bytes that each keeps in memory.
    """

    def __init__(
        self,
        late: Late,
        puts: Mapping[int, Callable[[], Awaitable[None]]],
        events: Callable[[int, str, str], ShareEvent],
        providers: Mapping[int, str],
        sizes: Mapping[int, int],
        until: float,
    ) -> None:
        self.stored: set[int] = set()
        self.errors: dict[int, ProviderError] = {}
        self.late: set[int] = set()
        self._late = late
        self._puts = dict(puts)
        self._events = events
        self._providers = providers
        self._sizes = sizes
        self._open = set(puts)
        self._scopes = {index: trio.CancelScope(deadline=until) for index in puts}
        self._behind = {index for index in puts if late.is_full(providers[index], sizes[index])}
        self._needed = trio.Event()
        self._changed = trio.Event()

    async def answer(self, enough: int) -> None:
        """Start all, and return when there is an answer: see the module.  Cancelling this cancels them all."""
        begun = trio.current_time()
        for index in self._puts:
            self._late.nursery.start_soon(self._one, index)
        try:
            await self._until(lambda: not self._open or len(self.stored) >= enough)
            took = trio.current_time() - begun
            with trio.move_on_after(max(PATIENCE_SECONDS, PATIENCE_PART * took)):
                await self._until(lambda: not any(map(self._is_hopeful, self._open)))
        except BaseException:
            for scope in self._scopes.values():
                scope.cancel()
            raise
        for index in sorted(self._open):
            self._leave(index)

    def _is_hopeful(self, index: int) -> bool:
        return index not in self._behind and not self._late.held(self._providers[index])

    def _leave(self, index: int) -> None:
        """A share that is not waited for any longer is late from now on, or given up."""
        provider, size = self._providers[index], self._sizes[index]
        if self._late.fits(provider, size):
            self._late.keep(provider, size)
            if index in self._behind:
                self._needed.set()
            self.late.add(index)
            return
        self._scopes[index].cancel()
        self._open.discard(index)
        mib = self._late.held(provider) / MIB
        self.errors[index] = ProviderAwayError(
            provider, f"it is slower than the others, and has {mib:.0f} MiB of shares waiting; this one was given up"
        )

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            if self._open <= self._behind:
                self._needed.set()
            self._changed = trio.Event()
            await self._changed.wait()

    async def _one(self, index: int) -> None:
        error: ProviderError | None = None
        put = self._puts.pop(index)
        with self._scopes[index] as scope:
            try:
                if index in self._behind:
                    await self._needed.wait()
                    self._behind.discard(index)
                await put()
            except ProviderError as raised:
                error = raised
        if scope.cancelled_caught:
            error = ProviderAwayError(self._providers[index], "it did not take a share in time")
        if index in self._open:
            self._end(index, error)

    def _end(self, index: int, error: ProviderError | None) -> None:
        self._open.discard(index)
        if index in self.late:
            self._late.drop(self._providers[index], self._sizes[index])
            what, detail = ("stored", "") if error is None else ("failed", error.detail)
            self._late.notify(self._events(index, what, detail))
        elif error is None:
            self.stored.add(index)
        else:
            self.errors[index] = error
        self._changed.set()
