"""`init`: a new volume, in the local state and at all of its providers.

Every place is looked at before anything is written to any.  Then the local state is built, the places are marked, seen
to be as many as their providers (`apart`) and given key slots, and the empty tree is published, so that the volume can
be recovered from its first moment.  A try that broke off is started over by the next: `places`, in the half-made local
state, tells which marks it left.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from icnfs.config import VolumeConfig
from icnfs.crypto.keys import MasterKey
from icnfs.crypto.names import TOKEN_SIZE
from icnfs.crypto.sealing import VOLUME_ID_SIZE
from icnfs.crypto.slots import Costs, SlotKind, format_recovery_key, new_recovery_key
from icnfs.errors import (
    ConfigError,
    ForeignProviderError,
    FormatError,
    IcnfsError,
    ObjectMissingError,
    TooFewProvidersError,
)
from icnfs.format import marker
from icnfs.format.head import PREFIX as HEADS
from icnfs.placement import place
from icnfs.state import loader
from icnfs.state.store import Store
from icnfs.transfer.messages import Limits
from icnfs.volume import apart, setting_up
from icnfs.volume import keyring as keyrings
from icnfs.volume.attempt import reasons
from icnfs.volume.fence import Fence
from icnfs.volume.heads import Heads
from icnfs.volume.keyring import Keyring, Secrets
from icnfs.volume.network import SHARES_PREFIX, Network, Starter, Transfer, start_transfer
from icnfs.volume.places import VISIT_SECONDS, Places
from icnfs.volume.publish import Publisher
from icnfs.volume.repair import Repair
from icnfs.volume.together import together

log = logging.getLogger(__name__)

PLACES: Final = "places"
"""In a half-made local state: the tokens of the marks it may have left, TOKEN_SIZE bytes each."""


@dataclass(frozen=True)
class Created:
    """A new volume: its id, and the recovery key, to be shown once and kept nowhere."""

    volume: bytes
    recovery_key: str

    def __repr__(self) -> str:
        return f"Created({self.volume.hex()})"


async def create(
    config: VolumeConfig,
    state_dir: Path,
    offered: Secrets,
    *,
    passphrase_at_providers: bool = False,
    costs: Costs | None = None,
    owner: tuple[int, int] = (0, 0),
    start: Starter = start_transfer,
) -> Created:
    """Make the volume of `config`, with a recovery key and a key slot for each secret of `offered`.

    `owner` is the (uid, gid) of the root directory.  Raises `VolumeExistsError`, `ForeignProviderError`,
    `TooFewProvidersError` where not all providers answer, `ConfigError`, `SecretError`, `LocalDiskError`; before the
    last of the checks nothing was written to any provider but its mark, which is taken back.
    """
    place(
        config.n,
        config.k,
        tuple(config.providers.values()),
        safe=config.safe,
        policy=config.policy,
        weights=config.weights,
    )
    await apart.check_directories(config)
    with setting_up.partial_state(state_dir, "init") as half:
        async with start(config.specs(create=True), Limits(config.upload, config.download)) as transfer:
            await _look_at_all(config, transfer, _left_by(half))
            setting_up.start_over(half)
            try:
                created = await _build(config, half, offered, passphrase_at_providers, costs, owner, transfer)
            except BaseException:
                if not (half / PLACES).exists():
                    shutil.rmtree(half)
                raise
        (half / PLACES).unlink()
        setting_up.complete(half, state_dir)
    return created


# --- looking ----------------------------------------------------------------------------------------------------------


def _left_by(half: Path) -> frozenset[bytes]:
    """Tokens of the marks that a broken-off try may have left."""
    try:
        raw = (half / PLACES).read_bytes()
    except OSError:
        return frozenset()
    return frozenset(raw[at : at + TOKEN_SIZE] for at in range(0, len(raw), TOKEN_SIZE))


async def _look_at_all(config: VolumeConfig, transfer: Transfer, left: frozenset[bytes]) -> None:
    """Raise unless every place answers and is free, or was marked by a broken-off try, which is then cleared."""
    away: dict[str, IcnfsError] = {}
    foreign: list[ForeignProviderError] = []
    marked: list[str] = []

    async def look(provider: str) -> None:
        try:
            if await _is_left(transfer, provider, left):
                marked.append(provider)
        except ForeignProviderError as error:
            foreign.append(error)
        except IcnfsError as error:
            away[provider] = error

    await together(partial(look, provider) for provider in config.providers)
    _refuse(foreign)
    if away:
        raise TooFewProvidersError(f"init needs every provider to answer: {reasons(away)}")
    for provider in marked:
        await _clear(transfer, provider)


def _refuse(foreign: list[ForeignProviderError]) -> None:
    """One error that names every place that is taken."""
    if foreign:
        names = ", ".join(sorted(error.provider for error in foreign))
        raise ForeignProviderError(names, foreign[0].detail) if len(foreign) > 1 else foreign[0]


async def _is_left(transfer: Transfer, provider: str, left: frozenset[bytes]) -> bool:
    """False for a free place, True for one marked by a broken-off try; else `ForeignProviderError`."""
    try:
        raw = await transfer.get_object(provider, marker.NAME, deadline=VISIT_SECONDS)
    except ObjectMissingError:
        stray = await transfer.list_objects(provider, "", page=True, deadline=VISIT_SECONDS)
        if not stray:
            return False
        raise ForeignProviderError(
            provider, f"its place holds {stray[0]}, which no volume's marker goes with; use an empty place"
        ) from None
    try:
        if marker.unpack_marker(raw) in left:
            return True
    except FormatError as error:
        raise ForeignProviderError(provider, f"its place is taken: {error}") from None
    raise ForeignProviderError(
        provider, "its place belongs to another volume; use an empty place, or `icnfs recover` if the volume is yours"
    )


async def _clear(transfer: Transfer, provider: str) -> None:
    """Remove what a broken-off try left; the marker goes last, for it is what tells that the rest is ours."""
    for prefix in (HEADS, keyrings.PREFIX, SHARES_PREFIX):
        last = ""
        while names := await transfer.list_objects(provider, prefix, last, page=True, deadline=VISIT_SECONDS):
            for name in names:
                await transfer.delete_object(provider, name, deadline=VISIT_SECONDS)
            last = names[-1]
    await transfer.delete_object(provider, marker.NAME, deadline=VISIT_SECONDS)


# --- building ---------------------------------------------------------------------------------------------------------


async def _build(
    config: VolumeConfig,
    half: Path,
    offered: Secrets,
    passphrase_at_providers: bool,
    costs: Costs | None,
    owner: tuple[int, int],
    transfer: Transfer,
) -> Created:
    master = MasterKey.random()
    volume = secrets.token_bytes(VOLUME_ID_SIZE)
    recovery = new_recovery_key()
    everywhere = tuple(config.providers)
    ring = Keyring()
    ring.add(SlotKind.RECOVERY, recovery, master, label="recovery key", providers=everywhere)
    if offered.keyfile is not None:
        ring.add(SlotKind.KEYFILE, offered.keyfile, master, label="key file", providers=everywhere)
    if offered.passphrase is not None:
        kept: Sequence[str] = everywhere if passphrase_at_providers else ()
        add = partial(ring.add, SlotKind.PASSPHRASE, offered.passphrase, master, label="passphrase")
        await trio.to_thread.run_sync(partial(add, providers=kept, costs=costs))
    loader.create(half, volume, master, uid=owner[0], gid=owner[1])
    ring.save(half)
    network = Network.of(config, master, transfer)
    (half / PLACES).write_bytes(b"".join(network.token(provider) for provider in config.providers))
    places = Places(network, ring, ring.save)
    await together(partial(places.take, provider) for provider in config.providers)
    await _check_apart(config, half, network)
    await together(partial(places.deliver, provider) for provider in config.providers)
    await _publish_first(half, network, places, ring)
    return Created(volume, format_recovery_key(recovery))


async def _check_apart(config: VolumeConfig, half: Path, network: Network) -> None:
    """`apart.check_marks`; where two places are one the marks are taken back, or remembered where that fails."""
    try:
        await apart.check_marks(config, network)
    except ConfigError:
        try:
            for provider in config.providers:
                if await _is_left(network.transfer, provider, _left_by(half)):
                    await _clear(network.transfer, provider)
            (half / PLACES).unlink()
        except IcnfsError as error:
            log.warning("a mark stays until the next init: %s", error)
        raise


async def _publish_first(half: Path, network: Network, places: Places, ring: Keyring) -> None:
    """The empty tree's head, at every provider."""
    store = Store.open(half, network.master)
    try:
        async with trio.open_nursery() as running:
            await running.start(store.run)
            heads = Heads(network)
            fence = Fence(store, network, heads, None)
            failure: IcnfsError | None = None
            async with trio.open_nursery() as spare:
                publisher = Publisher(
                    store, network, heads, fence, places, ring, Repair(network), spare, seconds=0, dirty_limit=0
                )
                try:
                    await publisher.publish()
                except IcnfsError as error:
                    failure = error
            running.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        await store.close()
