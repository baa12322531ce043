"""Storing a segment: its n shares at n providers, and elsewhere where one of them does not take its share.

Promises: what it returns says of every share whether it is stored, and at least k are.  It deletes nothing: what it may
have stored, it tells before, and that is its caller's to name or to withdraw.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Final

import msgspec

from icnfs.errors import DamagedError, IcnfsError, TooFewProvidersError
from icnfs.format.segment import SegmentInfo, ShareInfo
from icnfs.transfer.upload import PutResult
from icnfs.volume.network import Network
from icnfs.volume.repair import Repair

UPLOAD_SECONDS: Final = 300.0
"""Bound of one segment's upload: 24 MiB at 0.7 Mbit/s for each of six providers; more where the TOML sets a rate."""


class Rotation:
    """The turns by which shares go round the providers.

    Each kind has its own: of every second turn of one, some providers would get more than others.
    """

    def __init__(self) -> None:
        self.chunks, self.records, self.spares = (count(secrets.randbelow(1 << 16)) for _ in range(3))


class Stow:
    """Stores segments."""

    def __init__(
        self,
        network: Network,
        repair: Repair,
        rotation: Rotation,
        tried: Callable[[bytes, str, str], None] = lambda segment, provider, name: None,
    ) -> None:
        """`tried` is told of every share before it is sent: its segment, provider and object."""
        self._network = network
        self._repair = repair
        self._rotation = rotation
        self._tried = tried

    def choose(self, id: bytes, size: int, share_len: int, turns: Iterator[int]) -> SegmentInfo:
        """A segment of which nothing is stored yet, and who is meant to hold it by the next of `turns`.

        Raises `TooFewProvidersError` or `ConfigError` where the policy leaves no choice.
        """
        network = self._network
        shares = tuple(ShareInfo(name, b"", False) for name in network.place(next(turns)))
        return SegmentInfo(id, network.k, network.n, share_len, size, shares)

    async def put(self, meant: SegmentInfo, fd: int, *, all_shares: bool = False) -> SegmentInfo:
        """Store a segment whose payload is in the memfd `fd`; `TooFewProvidersError` where fewer than k shares were.

        What one provider does not take goes to another, while there is one that the policy allows.  Slow ones are
        waited for only until k + 1 shares are stored, unless `all_shares`.
        """
        return await self._put(meant, fd, meant.n if all_shares else meant.k + 1)

    async def put_foretold(self, foretold: SegmentInfo, fd: int) -> SegmentInfo:
        """`put`, all shares waited for, where it is known already what the segment will be.

        `DamagedError` where transfer codes it differently.
        """
        info = await self._put(foretold, fd, foretold.n)
        if [share.root for share in foretold.shares] != [share.root for share in info.shares]:
            raise DamagedError("transfer coded a segment differently than the front; restart the mount")
        return info

    async def _put(self, meant: SegmentInfo, fd: int, enough: int) -> SegmentInfo:
        network, emptied = self._network, self._repair.emptied.times.copy()
        away = network.away()
        wanted = [index for index, share in enumerate(meant.shares) if share.provider not in away]
        info = msgspec.structs.replace(meant, shares=tuple(ShareInfo(s.provider, b"", False) for s in meant.shares))
        failed: set[str] = set()
        errors: dict[str, IcnfsError] = {}
        late: set[int] = set()
        while wanted:
            result = await self._send(info, wanted, fd, enough - info.stored())
            info = _described(info, result, wanted)
            late |= result.late
            failed.update(info.shares[index].provider for index in result.errors)
            errors.update((info.shares[index].provider, error) for index, error in result.errors.items())
            missing = [index for index in info.missing() if index not in late]
            wanted = []
            if missing:
                places, _ = network.spare(info, missing, next(self._rotation.spares), failed)
                info = _moved(info, places)
                wanted = sorted(places)
        self._repair.expect(info.id, late, emptied)
        if info.stored() < network.k:
            why = "; ".join(sorted({str(error) for error in errors.values()})) or "they are down"
            raise TooFewProvidersError(f"fewer than {network.k} of {network.n} shares could be stored: {why}")
        return info

    async def _send(self, info: SegmentInfo, wanted: Sequence[int], fd: int, enough: int) -> PutResult:
        """Have `wanted` shares of a segment stored where it says; `enough` of them are worth waiting for."""
        chosen = tuple(share.provider for share in info.shares)
        names = self._network.share_names(info.id, chosen)
        for index in wanted:
            self._tried(info.id, chosen[index], names[index])
        return await self._network.transfer.put_segment(
            info.id,
            info.k,
            info.n,
            info.share_len,
            info.size,
            names,
            chosen,
            fd,
            None if len(wanted) == info.n else wanted,
            enough=max(1, min(enough, len(wanted))),
            deadline=UPLOAD_SECONDS + self._network.held_back(info.share_len, [chosen[index] for index in wanted]),
        )


def _described(info: SegmentInfo, result: PutResult, tried: Sequence[int]) -> SegmentInfo:
    """The segment as it is after `tried` shares were put."""
    gone = result.errors.keys() | result.late
    shares = tuple(
        ShareInfo(share.provider, root, share.stored or (index in tried and index not in gone))
        for index, (share, root) in enumerate(zip(info.shares, result.roots, strict=True))
    )
    return msgspec.structs.replace(info, shares=shares)


def _moved(info: SegmentInfo, places: Mapping[int, str]) -> SegmentInfo:
    """The segment, with these of its shares meant for others."""
    shares = tuple(
        msgspec.structs.replace(share, provider=places.get(index, share.provider))
        for index, share in enumerate(info.shares)
    )
    return msgspec.structs.replace(info, shares=shares)
