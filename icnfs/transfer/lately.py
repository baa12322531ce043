"""The late shares that the front was told of, and what became of them: each end is told once, and after the answer.

A process may tell the end of a late share before the answer that calls it late has reached whoever waits for it; that
end is then part of the answer.  A process that ends takes its late shares with it: they have failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from icnfs.errors import ProviderAwayError
from icnfs.transfer.messages import Fault, Order, ShareEvent, Stored

_GONE = "the transfer process ended before the share was stored"


class LateShares:
    """By provider and the share's name there."""

    def __init__(self) -> None:
        self._waited: dict[tuple[str, str], ShareEvent] = {}
        """Late shares, each with what is told if the process ends."""
        self._early: dict[tuple[str, str], ShareEvent | None] = {}
        """Shares that are being put: their ends, where those were told before anybody knew that they are late."""

    @contextmanager
    def following(self, order: Order) -> Iterator[None]:
        """While a segment is being put; `settle` belongs at the end."""
        shares = list(zip(order.providers, order.names, strict=True))
        self._early.update(dict.fromkeys(shares))
        try:
            yield
        finally:
            for share in shares:
                self._early.pop(share, None)

    def settle(self, order: Order, stored: Stored, *, alive: bool) -> Stored:
        """The answer with all that has been heard since; not `alive`: the process that gave it has ended."""
        late, errors = [], dict(stored.errors)
        for index in stored.late:
            if index >= order.n or index in errors:
                continue
            share = order.providers[index], order.names[index]
            event = self._early.get(share)
            if event is None and alive:
                late.append(index)
                self._waited[share] = _failed(order, index)
            elif event is None or event.what == "failed":
                detail = _GONE if event is None else event.detail
                errors[index] = Fault(ProviderAwayError.__name__, order.providers[index], detail)
        return msgspec.structs.replace(stored, errors=errors, late=tuple(late))

    def ended(self, event: ShareEvent) -> bool:
        """Whether the end of a share is news that somebody waits for."""
        share = event.provider, event.name
        if self._waited.pop(share, None) is not None:
            return True
        if share in self._early:
            self._early[share] = event
        return False

    def lost(self) -> list[ShareEvent]:
        """The process has ended: what is to be told of its late shares."""
        self._early = dict.fromkeys(self._early)
        failed, self._waited = list(self._waited.values()), {}
        return failed


def _failed(order: Order, index: int) -> ShareEvent:
    return ShareEvent(order.providers[index], order.names[index], order.id, index, "failed", _GONE)
