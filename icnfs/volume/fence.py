"""Fencing: one machine writes a volume, and whoever finds out that another took over stops.

Every mount claims an epoch above all it knows of, with a writer of 128 random bits.  Invariants:

1. A claim, and the number of each head, is committed locally before a provider can see it.
2. The `base` is the head that the local state is built on.  A real head numbered `base` or above that none of our own
   claims wrote, or that is numbered beyond what our claims ever used, was written by somebody else (or by a later state
   of this machine, of which this is an old copy): the volume is fenced.
3. Heads are listed before each head that is put, and all but n - k owners must have answered with every provider of
   theirs: a durable head of a rival lies with n - k + 1, so it is seen.

Being fenced is final and kept in the local state: a fork is detected, never merged.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from icnfs.errors import FencedError, FormatError, RolledBackError, TooFewProvidersError
from icnfs.format import head as head_format
from icnfs.format.head import Head, HeadName, RunInfo
from icnfs.format.records import Table
from icnfs.state.apply import Writer
from icnfs.state.store import Store
from icnfs.volume.heads import Heads, Survey
from icnfs.volume.network import Network

log = logging.getLogger(__name__)

CLAIM: Final = "claim"
FENCED: Final = "fenced"
HEAD: Final = "head"
ACKNOWLEDGED: Final = "acknowledged"
"""Names of the settings that hold the claim, the reason for being fenced, the base, and who stored which head."""

OWN_MAX: Final = 256
"""Claims remembered since the last publish; a machine that mounts more often without one forgets the oldest."""


class Own(msgspec.Struct, frozen=True, array_like=True):
    """One claim of this machine: its heads are numbered (epoch, up to `sequence`)."""

    epoch: int
    writer: bytes
    sequence: int


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """The claims since the last publish, the last one current, and the segments of the attempt that is under way."""

    own: tuple[Own, ...]
    intents: tuple[bytes, ...] = ()

    @property
    def current(self) -> Own:
        return self.own[-1]


async def keep(store: Store, name: str, document: bytes) -> None:
    """Keep a setting, durably; in a commit of its own, so that it waits for nobody's data and is no news to publish."""
    await store.task(lambda writer, _: writer.put(Table.SETTINGS, name.encode(), document, 0))


class Fence:
    """This machine's claim to write the volume."""

    def __init__(self, store: Store, network: Network, heads: Heads, base: Head | None) -> None:
        self._store = store
        self._network = network
        self._heads = heads
        self.base = base
        self.claim = load_claim(store)
        network.acknowledged = load_acknowledged(store)
        self._claimed = False

    @property
    def number(self) -> tuple[int, int]:
        """(epoch, sequence) of the base; (0, 0) before the first publish."""
        return self.base.number if self.base is not None else (0, 0)

    async def take(self) -> Own:
        """Claim an epoch for this mount, once; later calls return the claim."""
        if not self._claimed:
            own = self.claim.own if self.claim is not None else ()
            epoch = max([self.number[0], *(o.epoch for o in own)]) + 1
            mine = Own(epoch, secrets.token_bytes(16), self.number[1])
            await self._put(Claim((*own[-OWN_MAX + 1 :], mine), self.claim.intents if self.claim else ()))
            self._claimed = True
            log.info("epoch %d is claimed", epoch)
        assert self.claim is not None
        return self.claim.current

    async def begin(self, intents: tuple[bytes, ...]) -> Own:
        """The claim with the next sequence number, committed together with the segments about to be uploaded."""
        mine = await self.take()
        assert self.claim is not None
        mine = msgspec.structs.replace(mine, sequence=mine.sequence + 1)
        await self._put(Claim((*self.claim.own[:-1], mine), intents))
        return mine

    async def check(self, survey: Survey) -> None:
        """Raise `FencedError` where somebody else has gone on with the volume, having noted so for good."""
        rival = await self._heads.newest(survey, skip=self._is_known, accept=self._is_rival)
        if rival is not None:
            await self._fence(rival)
        await self.check_names()

    async def check_names(self) -> None:
        """Raise `FencedError` where a head of somebody else bore the name of one that this machine put."""
        if self._heads.rival is not None:
            await self._fence(self._heads.rival)

    async def pass_by(self, survey: Survey) -> None:
        """Raise unless `survey` shows that this machine may change what the providers hold."""
        await self.check(survey)
        self._require(survey)

    def is_ahead(self, survey: Survey) -> bool:
        """Whether a head of ours lies somewhere that is newer than the base: too few took it, and a recovery may."""
        return any(
            (name.epoch, name.sequence) > self.number and self._is_known(provider, name)
            for provider, names in survey.listed.items()
            for name in names
        )

    def without_base(self, survey: Survey) -> set[str]:
        """Providers that answer and do not show the base: they never got it, or lost it."""
        base = self.base
        if base is None:
            return set()
        tag_of = self._network.names.writer_tag
        return {
            provider
            for provider, names in survey.listed.items()
            if HeadName(base.epoch, base.sequence, tag_of(provider, base.writer)) not in names
        }

    def doubt_lacking(self, survey: Survey) -> None:
        """Have the places looked at of those that are given heads, answer, and do not show the base."""
        for provider in self.without_base(survey).intersection(self._network.homes):
            self._network.doubt(provider)

    def require_base(self, survey: Survey) -> None:
        """Raise `RolledBackError` where a survey that passed does not show the base, which was durable."""
        base = self.base
        if base is None:
            return
        if self.without_base(survey) < survey.listed.keys():
            return
        raise RolledBackError(
            f"no provider that answers shows the head {base.epoch}-{base.sequence}, which this machine published: they "
            "went back to an older state, or lost it; all records are published anew, and it is looked which contents "
            "are lost"
        )

    def _require(self, survey: Survey) -> None:
        """Raise `TooFewProvidersError` unless enough owners answered that no durable head was missed.

        Who lists a head and does not hand it out has not answered.
        """
        answering = (survey.listed.keys() & self._network.taken) - survey.unread
        if self._network.silent(answering) > self._network.silent_most:
            names = ", ".join(sorted(self._network.missing_of(answering)))
            raise TooFewProvidersError(f"too many providers do not answer to publish: {names}; it is tried again")

    def _is_known(self, provider: str, name: HeadName) -> bool:
        """Whether a name is one of ours: only the holder of the keys can tell, so it need not be fetched."""
        tag_of = self._network.names.writer_tag
        return any(
            o.epoch == name.epoch and name.sequence <= o.sequence and tag_of(provider, o.writer) == name.tag
            for o in self._ours()
        )

    def _is_rival(self, head: Head) -> bool:
        mine = ((o.writer, o.epoch) == (head.writer, head.epoch) and head.sequence <= o.sequence for o in self._ours())
        return head.number >= self.number and not any(mine)

    def _ours(self) -> tuple[Own, ...]:
        """What wrote the heads that this state knows of: its claims, and its base."""
        own = self.claim.own if self.claim is not None else ()
        base = self.base
        return own if base is None else (*own, Own(base.epoch, base.writer, base.sequence))

    async def _fence(self, head: Head) -> None:
        message = (
            f"another machine went on with this volume (epoch {head.epoch}, sequence {head.sequence}; here it stands "
            f"at {self.number[0]}, {self.number[1]}); it is read-only here and local data is kept: copy out what you "
            "need, move the local state away, and run `icnfs recover`"
        )
        await keep(self._store, FENCED, message.encode())
        raise FencedError(message)

    async def _put(self, claim: Claim) -> None:
        await keep(self._store, CLAIM, msgspec.msgpack.encode(claim))
        self.claim = claim

    async def keep_runs(self, runs: tuple[RunInfo, ...], beside: Callable[[Writer, int], None]) -> None:
        """The base, with what is known by now of where its runs lie, and what `beside` does in the same commit;
        durable on return."""
        assert self.base is not None
        base = msgspec.structs.replace(self.base, runs=runs)

        def work(writer: Writer, generation: int) -> None:
            writer.put(Table.SETTINGS, HEAD.encode(), encode_base(base), 0)
            beside(writer, generation)

        self.base = base
        await self._store.task(work)

    def published(self, head: Head) -> None:
        """`head` is durable and the local state is built on it now: older claims matter no more."""
        self.base = head
        if self.claim is not None:
            self.claim = Claim((self.claim.current,), self.claim.intents)


def load_claim(store: Store) -> Claim | None:
    """The claim that the local state holds."""
    raw = store.get_setting(CLAIM)
    if raw is None:
        return None
    try:
        claim = msgspec.msgpack.decode(raw, type=Claim)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"the local state's claim cannot be read: {error}") from None
    if not claim.own:
        raise FormatError("the local state's claim is empty")
    return claim


def load_base(store: Store) -> Head | None:
    """The head that the local state is built on."""
    raw = store.get_setting(HEAD)
    return None if raw is None else head_format.decode(raw)


def encode_base(head: Head) -> bytes:
    """What `load_base` reads."""
    return head_format.encode(head)


def load_fenced(store: Store) -> FencedError | None:
    """Why the volume is fenced, where it is."""
    raw = store.get_setting(FENCED)
    return None if raw is None else FencedError(raw.decode())


def encode_acknowledged(heads: dict[str, str]) -> bytes:
    """What `load_acknowledged` reads."""
    return msgspec.msgpack.encode(heads)


def load_acknowledged(store: Store) -> dict[str, str]:
    """The newest head that each provider said it stored; none where that cannot be read."""
    try:
        return msgspec.msgpack.decode(store.get_setting(ACKNOWLEDGED) or b"\x80", type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.warning("who stored which head cannot be read: %s", error)
        return {}
