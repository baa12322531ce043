"""A circuit breaker: behind a provider that has stopped answering nobody waits, and it is asked one thing at a time.

    state     an answer     no answer                  what a call does
    unknown   up            down                       goes to the provider
    up        up            down, and probed at once   goes to the provider
    down      up            down, next probe later     fails at once, or is the reason for a probe that is due
    probing   up            down, next probe later     waits for the probe

`ProviderAwayError` means no answer.  Every other error is one, and leaves a provider up that is up; but where a probe
is refused as well (keys that are not known, a certificate that has expired, a page of HTML), all is refused, and the
provider counts as down.  One that is up and refuses to store is seldom sent what it would refuse (`refusals`).  So is
one that gives no answer to a store, is found up by the probe, and gives none to the next store either.

Probes of one that is down come ever more seldom, from GAP_SECONDS to GAP_MAX_SECONDS, at random moments, so that one
that comes back is not met by everybody at once.  Calls in flight when a probe finds the provider gone are given up, so
none waits much longer than it takes to find out.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from icnfs.errors import (
    IcnfsError,
    ObjectMissingError,
    ProviderAwayError,
    ProviderError,
    ProviderFullError,
)
from icnfs.providers.base import Capacity, Provider
from icnfs.providers.refusals import Refusals
from icnfs.providers.wrappers import Act, Wrapper

PROBE_SECONDS: Final = 5.0
"""A provider that has not answered a probe by then is down."""

STUCK_SECONDS: Final = 3.0
"""When a call has been out for so long, and nothing else was answered meanwhile, the provider is probed."""

WATCH_SECONDS: Final = 15.0
"""One that nobody asks anything is probed so often: below `http.IDLE_SECONDS`, which keeps a connection to it open."""

DOUBT_SECONDS: Final = 5.0
"""After a refusal the provider is probed, this long after the last probe at the earliest."""

GAP_SECONDS: Final = 1.0
GAP_MAX_SECONDS: Final = 30.0
"""Between two probes of a provider that is down: at first, twice that after the second that failed, and at most."""

READ_GAP_SECONDS: Final = 3.0
"""Who has no other way than this provider waits for a probe no longer than this after the last one."""

TICK_SECONDS: Final = 1.0

_TEXT_MAX: Final = 500

T = TypeVar("T")


class Switch:
    """One provider's state, its `refusals` of writes, and the last error that was not followed by a success.

    Pure: it is told what happens.  While it is up, why it refuses to store shows for as long as it does.
    """

    def __init__(self) -> None:
        self.state = "unknown"
        self._error = ""
        self.refusals = Refusals()

    @property
    def error(self) -> str:
        return (self.is_down and self._error) or self.refusals.reason[:_TEXT_MAX] or self._error

    @property
    def is_down(self) -> bool:
        return self.state in ("down", "probing")

    def answered(self) -> None:
        """It did what it was asked."""
        self.state, self._error = "up", ""

    def failed(self, error: IcnfsError) -> None:
        """It did not.  A missing object is no fault of the provider's as a whole."""
        text = str(getattr(error, "detail", error))[:_TEXT_MAX]
        if isinstance(error, ProviderAwayError):
            self.state, self._error = "down", text
        elif isinstance(error, ObjectMissingError):
            self.state = "up"
        else:
            if not self.is_down or isinstance(error, ProviderFullError):
                self.state = "up"
            self._error = text

    def told(self, capacity: Capacity) -> None:
        """A probe was answered."""
        self.answered()

    def lost(self, error: IcnfsError) -> None:
        """A probe was not, or was refused."""
        self.state, self._error = "down", str(getattr(error, "detail", error))[:_TEXT_MAX]


class _Probe:
    """One on its way, for all who want to know."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.capacity: Capacity | None = None
        self.error: ProviderError | None = None


class Breaker(Wrapper):
    """See the module; `switch` is the state that it keeps."""

    def __init__(self, inner: Provider, switch: Switch, rng: random.Random | None = None) -> None:
        super().__init__(inner)
        self.switch = switch
        self._rng = rng if rng is not None else random.Random()
        self._flight: dict[trio.CancelScope, float] = {}
        """Calls under way, and since when."""
        self._probe: _Probe | None = None
        self._probed = float("-inf")
        """When the last probe ended."""
        self._due = float("-inf")
        self._failures = 0
        self._heard = float("-inf")
        """When anything was answered last."""
        self._doubted = False
        self._unstored = 0
        """The bytes of a store that got no answer; 0 once as much was stored, or a probe got no answer either."""

    @property
    def is_open(self) -> bool:
        """Whether a call would fail at once."""
        return self.switch.is_down and self._probe is None and trio.current_time() < self._due

    async def patiently(self) -> None:
        """Wait until a call would not fail at once: READ_GAP_SECONDS at most."""
        while self.is_open:
            soon = self._probed + READ_GAP_SECONDS
            if trio.current_time() >= soon:
                self._due = soon
                return
            await trio.sleep_until(min(self._due, soon))

    async def probe(self) -> Capacity:
        """Ask the provider how it is, now, or join whoever does; it is up or down afterwards."""
        while self._probe is not None:
            joined = self._probe
            await joined.over.wait()
            if joined.error is not None:
                raise joined.error
            if joined.capacity is not None:
                return joined.capacity
        mine = self._probe = _Probe()
        try:
            mine.capacity = await self._ask(mine)
            return mine.capacity
        finally:
            self._probe = None
            if self.switch.state == "probing":  # it was cancelled
                self.switch.state = "down"
            mine.over.set()

    async def watch(self) -> None:
        """Probe when that is due, for ever."""
        while True:
            if self._is_due(trio.current_time()):
                try:
                    await self.probe()
                except IcnfsError:
                    pass  # the switch shows it
            await trio.sleep(TICK_SECONDS)

    def _is_due(self, now: float) -> bool:
        if self.switch.is_down:
            return now >= self._due
        quiet = now - max(self._heard, self._probed)
        stuck = bool(self._flight) and now - min(self._flight.values()) >= STUCK_SECONDS <= quiet
        doubted = self._doubted and now - self._probed >= DOUBT_SECONDS
        return stuck or doubted or now - self._probed >= WATCH_SECONDS

    async def _around(self, act: Act, call: Callable[[], Awaitable[T]]) -> T:
        if self.is_open:
            raise ProviderAwayError(self.name, self.switch.error)
        if self.switch.is_down:
            await self.probe()
        tried = bool(act.up) and self.switch.refusals.begin(act.up, trio.current_time())
        again = tried or self._unstored > 0
        with trio.CancelScope() as scope:
            self._flight[scope] = trio.current_time()
            try:
                answer = await call()
            except ProviderError as error:
                self._failed(error, act, again=again)
                raise
            finally:
                del self._flight[scope]
                if tried:
                    self.switch.refusals.done()
            self._heard = trio.current_time()
            self.switch.answered()
            if act.up and answer is not False:  # where there was such an object nothing was stored
                self._unstored = self._unstored if act.up < self._unstored else 0
                self.switch.refusals.stored(act.up)
            return answer
        raise ProviderAwayError(self.name, f"{act.doing}: given up: {self.switch.error}")

    def _failed(self, error: ProviderError, act: Act, *, again: bool) -> None:
        """`again`: it began after a store had failed and a probe had been answered."""
        was_down = self.switch.is_down
        if isinstance(error, ProviderAwayError) and act.up:
            if again:
                self.switch.refusals.refused(error, act.up, trio.current_time())
                self._doubted = True
                return
            self._unstored = act.up
        self.switch.failed(error)
        if isinstance(error, ProviderAwayError):
            if not was_down:
                self._due, self._failures = trio.current_time(), 0
        else:
            self._heard = trio.current_time()
            if act.up:
                self.switch.refusals.refused(error, act.up, self._heard)
            self._doubted = self._doubted or not isinstance(error, ObjectMissingError | ProviderFullError)

    async def _ask(self, probe: _Probe) -> Capacity:
        begun = trio.current_time()
        self.inner.moved()  # what did until now says nothing
        if self.switch.is_down:
            self.switch.state = "probing"
        try:
            with trio.move_on_after(PROBE_SECONDS):
                capacity = await self.inner.probe()
                self._failures, self._doubted, self._heard = 0, False, trio.current_time()
                self.switch.told(capacity)
                self.switch.refusals.told(capacity.free_bytes, self._heard)
                return capacity
            probe.error = ProviderAwayError(
                self.name, f"it did not answer within {PROBE_SECONDS:.0f} s; check the endpoint and the network"
            )
            if self._heard < begun and not self.inner.moved():  # else it is slow, or the line to it full, and no more
                self._lose(probe.error)
        except ProviderError as error:
            probe.error = error
            self._lose(error)
        finally:
            self._probed = trio.current_time()
        raise probe.error

    def _lose(self, error: ProviderError) -> None:
        """The provider is gone: nobody waits for what was asked of it."""
        self.switch.lost(error)
        gap = min(GAP_MAX_SECONDS, GAP_SECONDS * 2.0**self._failures) * self._rng.uniform(0.5, 1.0)
        self._failures = min(self._failures + 1, 10)
        self._doubted, self._unstored = False, 0
        self._due = trio.current_time() + gap
        for scope in self._flight:
            scope.cancel()
