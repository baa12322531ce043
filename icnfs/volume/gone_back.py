"""Providers that went back to an older state: a disk that was away and is there again, a backup that was put back.

Of every provider it is remembered, in local state too, which head is the newest that it said it stored.  Who lacks that
one when its place is looked at (see `places`) has lost it and, it may be, all that it was given since.  Until it is
known what, it counts as doubtful (`Network.unsure`), and no `sync` calls safe what rests on it.

What it lists then, it has: nothing stored ever changes.  What it was given and does not list is noted as not stored,
and repair stores it again.  So one that lost a head and nothing else costs a listing.  Whoever lists what is not there
can do that at any time, and audits find out; to have gone back counts as one wrong answer to them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec
import trio

from icnfs.errors import IcnfsError
from icnfs.format.segment import SegmentInfo
from icnfs.state.store import Store
from icnfs.transfer.checks import MISSING
from icnfs.volume import fence as fences
from icnfs.volume.findings import Findings
from icnfs.volume.listing import pages
from icnfs.volume.network import SHARES_PREFIX, Network
from icnfs.volume.orphans import Named
from icnfs.volume.places import Places
from icnfs.volume.publish import Change, Publisher
from icnfs.volume.repair import Repair

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
"""Between looks for providers that went back."""

AGAIN_SECONDS: Final = 10.0
"""Until one that could not be listed is listed again."""

KEEP_SECONDS: Final = 1.0
"""Who stored the last head is kept, when the mount ends, if that takes no longer."""

STEP: Final = 1024
"""Segments whose shares are noted as lost in one commit."""


class GoneBack:
    """Those of one volume."""

    def __init__(
        self,
        store: Store,
        network: Network,
        repair: Repair,
        publisher: Publisher,
        findings: Findings,
        places: Places,
    ) -> None:
        self._store = store
        self._network = network
        self._repair = repair
        self._publisher = publisher
        self._findings = findings
        self._places = places
        self._kept = fences.load_acknowledged(store)
        self._busy: set[str] = set()
        self._forgotten: set[str] = set()
        """Those of which what was under way to them no longer counts, until it is known what they hold."""

    async def run(self) -> None:
        """Keep who stored which head, and find out what those that went back still hold, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await self._keep()
                    self._forgotten &= self._network.gone_back
                    back = self._network.gone_back - self._network.lost() - self._busy
                    for provider in () if self._store.read_only else sorted(back):
                        self._busy.add(provider)
                        nursery.start_soon(self._look, provider)
                    await trio.sleep(LOOK_SECONDS)
        finally:
            with trio.move_on_after(KEEP_SECONDS, shield=True):
                await self._keep()

    async def _keep(self) -> None:
        """Where it cannot be kept, a later mount looks once too often, or not."""
        now = dict(self._network.acknowledged)
        if now != self._kept:
            try:
                await fences.keep(self._store, fences.ACKNOWLEDGED, fences.encode_acknowledged(now))
                self._kept = now
            except IcnfsError as error:
                log.warning("who stored the last head could not be kept: %s", error)

    async def _look(self, provider: str) -> None:
        try:
            await self._compare(provider)
        except IcnfsError as error:
            log.warning("it is not known yet what provider %s still holds: %s", provider, error)
            await trio.sleep(AGAIN_SECONDS)
        finally:
            self._busy.discard(provider)

    async def _compare(self, provider: str) -> None:
        """Note what is not there any more of what `provider` was given."""
        network, url = self._network, self._network.facts[provider].url
        async with self._publisher.standstill:  # what is being stored just now is not believed either, once
            if provider not in self._forgotten:
                self._forgotten.add(provider)
                self._repair.lose([provider])
                self._publisher.uploads.lose([provider])
            given = [id for id, (group, _) in self._repair.held() if provider in group.providers]
        there = Named([provider])
        if given:
            await self._list(provider, there)
        await self._places.verify_all()
        if provider not in network.gone_back or network.facts[provider].url != url:
            return  # it is another place by now
        lost = 0
        for at in range(0, len(given), STEP):
            lost += await self._note(provider, there, given[at : at + STEP])
        if lost:
            self._findings.told(provider, MISSING)
        log.error("provider %s: it went back to an older state; %d shares that it held are stored anew", provider, lost)
        network.acknowledged.pop(provider, None)
        network.gone_back.discard(provider)

    async def _list(self, provider: str, there: Named) -> None:
        """Take down all shares that it lists."""
        async for page in pages(self._network, provider, SHARES_PREFIX):
            there.add((provider, name) for name in page)
        await trio.to_thread.run_sync(there.sort)

    async def _note(self, provider: str, there: Named, ids: Sequence[bytes]) -> int:
        """Note what of these is not `there`; how many shares that are.

        Those without which there are too few stay noted, and are looked at one by one: see `findings`.
        """
        changes: dict[bytes, Change] = {}
        lost = 0
        for id in ids:
            await trio.lowlevel.checkpoint()
            segment = self._store.segment(id) or self._publisher.part(id)
            if segment is None:
                continue
            shares = enumerate(zip(segment.shares, self._network.names_of(segment), strict=True))
            gone = [
                index
                for index, (share, name) in shares
                if share.provider == provider and share.stored and not there.has(provider, name)
            ]
            lost += len(gone)
            if segment.stored() - len(gone) >= segment.k:
                changes[id] = partial(_without, segment, gone)
            else:
                for index in gone:
                    self._findings.suspect(id, index)
        await self._publisher.mend(changes)
        return lost


def _without(before: SegmentInfo, gone: Sequence[int], now: SegmentInfo) -> SegmentInfo | None:
    """`now`, where those shares that are as they were `before` are not stored; None where too few would be left."""
    lost = [index for index in gone if now.shares[index] == before.shares[index]]
    if now.stored() - len(lost) < now.k:
        return None
    shares = list(now.shares)
    for index in lost:
        shares[index] = msgspec.structs.replace(shares[index], stored=False)
    return msgspec.structs.replace(now, shares=tuple(shares))
