"""What looking at shares has found: confirmed, noted so that repair restores it, and told.

A share found missing or altered is looked at once more after a moment, for a wrong answer may have gone wrong on its
way.  What is found wrong twice is noted as not stored; repair then puts the right bytes under its name, or elsewhere.
One exception: where fewer than k others are stored it stays noted, since a share that is altered in part may give the
very range that is wanted, and nothing could rebuild it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import trio

from icnfs.errors import IcnfsError
from icnfs.format.segment import SegmentInfo
from icnfs.transfer.checks import ALTERED, MISSING, UNKNOWN, Looked
from icnfs.volume.health import ShareState
from icnfs.volume.network import Network

log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 60.0
"""One check; a whole share of 64 MiB over a slow line."""

CONFIRM_SECONDS: Final = 2.0
"""Until a share that was found wrong is looked at again."""

REMEMBERED: Final = 10_000
"""Segments of which it is remembered what was found, until it is restored; of others the records alone tell."""

Change = Callable[[SegmentInfo], SegmentInfo | None]

Gate = Callable[[str, int], AbstractAsyncContextManager[None]]
"""Of a provider and a share's length: entered for the time of one check."""


def no_gate(_provider: str, _length: int) -> AbstractAsyncContextManager[None]:
    """Lets every check through at once."""
    return nullcontext()


@dataclass(frozen=True)
class Finding:
    """A share that is bad: `provider` had it; `noted` as not stored, or not, for it may be needed."""

    state: ShareState
    provider: str
    noted: bool


class Findings:
    """Shares that were found bad, by segment and index, until they are restored."""

    def __init__(
        self,
        network: Network,
        amend: Callable[[bytes, Change], Awaitable[None]],
        told: Callable[[str, str], None],
    ) -> None:
        """`amend` notes what is made of a segment's present description; `told` hears (provider, outcome) of every
        check."""
        self._network = network
        self._amend = amend
        self.told = told
        self._suspects: dict[tuple[bytes, int], None] = {}
        self._came = trio.Event()
        self._looking: set[tuple[bytes, int]] = set()
        self._found: dict[bytes, dict[int, Finding]] = {}

    def bad(self) -> dict[bytes, dict[int, ShareState]]:
        """What is known to be bad."""
        return {id: {index: one.state for index, one in found.items()} for id, found in self._found.items()}

    def suspect(self, segment: bytes, index: int) -> None:
        """Somebody has found that share missing or wrong: `watch` is to look at it, unless it is looked at anyhow."""
        if (segment, index) not in self._looking and len(self._suspects) < REMEMBERED:
            self._suspects[segment, index] = None
            self._came.set()

    async def watch(self, find: Callable[[bytes], SegmentInfo | None]) -> None:
        """Look at suspects, one after the other, until cancelled."""
        while True:
            await self._came.wait()
            while self._suspects:
                id, index = next(iter(self._suspects))
                del self._suspects[id, index]
                segment = find(id)
                if segment is not None and segment.shares[index].stored:
                    await self.examine(segment, index, ())
            self._came = trio.Event()

    def restored(self, segments: Iterable[SegmentInfo]) -> None:
        """Forget what was found of shares that lie elsewhere by now, or were stored anew."""
        for segment in segments:
            found = self._found.get(segment.id, {})
            for index, one in list(found.items()):
                share = segment.shares[index]
                if share.provider != one.provider or (share.stored and one.noted):
                    self._forget(segment.id, index)

    async def examine(
        self, segment: SegmentInfo, index: int, leaves: Sequence[int] | None, gate: Gate = no_gate
    ) -> Looked:
        """Look at a share that is stored: at some leaves, the list of leaf hashes alone (None), or the whole (()).

        Each check waits for the `gate`, which is left while the share is not looked at.
        """
        key = segment.id, index
        known = key in self._looking
        self._looking.add(key)
        try:
            return await self._examine(segment, index, leaves, gate)
        finally:
            if not known:
                self._looking.discard(key)

    async def _examine(self, segment: SegmentInfo, index: int, leaves: Sequence[int] | None, gate: Gate) -> Looked:
        provider = segment.shares[index].provider
        emptied = self._network.emptied.get(provider, 0)
        looked = await self._check(segment, index, leaves, gate)
        if looked.outcome in (MISSING, ALTERED):
            await trio.sleep(CONFIRM_SECONDS)
            if looked.outcome == MISSING and await self._was_emptied(provider, emptied):
                return replace(looked, outcome=UNKNOWN)  # told of the place as a whole, and once
            again = await self._check(segment, index, leaves, gate)
            looked = _together(looked, again)
            if looked.outcome in (MISSING, ALTERED):
                await self._note(segment, index, looked)
            else:
                log.warning("provider %s: segment %s, share %d: %s", provider, segment.id.hex(), index, looked.detail)
        elif looked.outcome == "present" and leaves is not None and not leaves:
            self._forget(segment.id, index)
        self.told(provider, looked.outcome)
        return looked

    async def _was_emptied(self, provider: str, before: int) -> bool:
        """Have the place looked at again; whether it was found empty more often than `before`."""
        with trio.move_on_after(CHECK_SECONDS):
            await self._network.doubt(provider).wait()
        return self._network.emptied.get(provider, 0) > before

    async def _check(self, segment: SegmentInfo, index: int, leaves: Sequence[int] | None, gate: Gate) -> Looked:
        names = self._network.names_of(segment)
        async with gate(segment.shares[index].provider, segment.share_len):
            try:
                return await self._network.transfer.check(segment, names, index, leaves, deadline=CHECK_SECONDS)
            except IcnfsError as error:
                return Looked(UNKNOWN, 0, str(error))

    async def _note(self, segment: SegmentInfo, index: int, looked: Looked) -> None:
        share = segment.shares[index]

        def change(now: SegmentInfo) -> SegmentInfo | None:
            """Without the share, unless it was moved, restored or given up meanwhile, or is needed."""
            if now.shares[index] != share:
                return None
            needed = now.stored() <= now.k
            log.error(
                "provider %s: segment %s, share %d is %s: %s; %s",
                share.provider,
                segment.id.hex(),
                index,
                looked.outcome,
                looked.detail,
                "too few others are left to restore it" if needed else "it will be restored",
            )
            state = ShareState(looked.outcome)
            self._found.setdefault(segment.id, {})[index] = Finding(state, share.provider, not needed)
            return None if needed else _without(now, index)

        await self._amend(segment.id, change)
        while len(self._found) > REMEMBERED:
            del self._found[next(iter(self._found))]

    def _forget(self, id: bytes, index: int) -> None:
        found = self._found.get(id, {})
        found.pop(index, None)
        if not found:
            self._found.pop(id, None)


def _together(first: Looked, again: Looked) -> Looked:
    """What two checks mean: wrong where both say so, and unknown where the second finds nothing wrong."""
    total = first.bytes + again.bytes
    if again.outcome == "present":
        return Looked(UNKNOWN, total, f"it was {first.outcome} ({first.detail}), and is present a moment later")
    return replace(again, bytes=total)


def _without(segment: SegmentInfo, index: int) -> SegmentInfo:
    shares = list(segment.shares)
    shares[index] = msgspec.structs.replace(shares[index], stored=False)
    return msgspec.structs.replace(segment, shares=tuple(shares))
