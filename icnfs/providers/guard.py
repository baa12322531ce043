"""All wrappers around one provider, in the one right order: what the product asks a provider through.

retry       a pause before the next try keeps no place in the queue; behind an open breaker there is no next try
limit       who waits for a turn is in no call's way, and hears at its turn whether the provider is down
breaker     a call that waits for its bytes' turn is given up with those under way
pace        the wait for the rate is not the provider's fault, and counts against no deadline
deadline    of one attempt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from icnfs.limits import KIB, READS_PER_PROVIDER, WRITES_PER_PROVIDER
from icnfs.providers.base import Provider
from icnfs.providers.breaker import Breaker, Switch
from icnfs.providers.line import Line
from icnfs.providers.wrappers import Deadline, Limit, Pace, Retry

ATTEMPT_SECONDS: Final = 30.0
SLOWEST_BYTES_PER_SECOND: Final = 128 * KIB
"""One request may take ATTEMPT_SECONDS plus its bytes at this rate; past it the provider counts as hanging."""

TRIES: Final = 3


@dataclass(frozen=True)
class Rates:
    """The lines that a provider's bytes take: its own, and those that it shares."""

    up: Sequence[Line] = ()
    down: Sequence[Line] = ()


@dataclass(frozen=True)
class Guarded:
    """A provider within its wrappers."""

    bare: Provider
    breaker: Breaker
    once: Provider
    """All but the retries: for reads of shares, where another share is the better second try."""
    again: Provider
    """All of them."""


def guard(provider: Provider, switch: Switch, rates: Rates | None = None) -> Guarded:
    """`provider` within all wrappers; `switch` shows its state."""
    rates = rates or Rates()
    timed = Deadline(provider, ATTEMPT_SECONDS, SLOWEST_BYTES_PER_SECOND)
    breaker = Breaker(Pace(timed, rates.up, rates.down), switch)
    once = Limit(breaker, READS_PER_PROVIDER, WRITES_PER_PROVIDER)
    return Guarded(provider, breaker, once, Retry(once, TRIES, hopeless=lambda: breaker.is_open))
