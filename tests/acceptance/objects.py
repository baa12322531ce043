"""Which object at which provider is what, and which of its bytes mean what: told by the volume's own keys and records.

For trials that damage a stored volume on purpose: they have to know what they hit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import trio

from icnfs.config import load
from icnfs.crypto.keys import Secret
from icnfs.crypto.slots import SlotKind, decode_slot
from icnfs.erasure import hashtree
from icnfs.format import head, share
from icnfs.format.records import Table
from icnfs.format.segment import SegmentInfo
from icnfs.state.store import Store
from icnfs.volume.fence import load_base
from icnfs.volume.keyring import PREFIX as SLOTS
from icnfs.volume.keyring import Secrets
from icnfs.volume.network import Network
from icnfs.volume.volume import unlock_local
from tests.acceptance.harness import Volume

Region = tuple[int, int]
"""Where it begins and where it ends."""

SEALED: Final = {"salt": 32, "nonce": 12}
HEAD_START: Final = {"magic": 8, "version": 2, "features": 4} | SEALED
TAG: Final = 16


@dataclass(frozen=True)
class Object:
    """One stored object; `told` are texts of which a message that names it has one, beside its provider's name."""

    kind: str
    provider: str
    name: str
    group: str
    """Of objects of one group only so many may be bad."""
    told: tuple[str, ...]
    regions: dict[str, Region]


def stored_objects(volume: Volume) -> dict[str, list[Object]]:
    """By kind, what the providers of an unmounted, published volume hold for its newest head."""
    return trio.run(_objects, volume)


async def _objects(volume: Volume) -> dict[str, list[Object]]:
    config = load(volume.name, volume.config_dir / f"{volume.name}.toml")
    state = volume.state_dir / volume.name
    _, master = await unlock_local(state, Secrets(keyfile=Secret(volume.keyfile.read_bytes())))
    network = Network.of(config, master, cast(Any, None))
    store = Store.open(state, master)
    try:
        base = load_base(store)
        assert base is not None
        packs = [store.segment(key) for key, _ in store.reader.rows(Table.SEGMENTS)]
    finally:
        await store.close()
    kinds: dict[str, Sequence[SegmentInfo]] = {
        "share": [pack for pack in packs if pack is not None],
        "run": [part for run in base.runs if not run.is_checkpoint for part in run.segments()],
        "checkpoint": [part for run in base.runs if run.is_checkpoint for part in run.segments()],
    }
    found = {
        kind: [one for segment in segments for one in _shares(kind, volume, network, segment)]
        for kind, segments in kinds.items()
    }
    found["head"] = [_head(name, place) for name, place in volume.providers.items()]
    found["slot"] = [_slot(name, place) for name, place in volume.providers.items()]
    marks = _regions({"magic": 8, "version": 2, "features": 4, "token": 16}, 30)
    found["marker"] = [
        Object("marker", name, "volume", "markers", ("marker", "place", "format"), marks) for name in volume.providers
    ]
    return found


def _shares(kind: str, volume: Volume, network: Network, segment: SegmentInfo) -> Iterator[Object]:
    for index, (one, name) in enumerate(zip(segment.shares, network.names_of(segment), strict=True)):
        data = (volume.providers[one.provider] / name).read_bytes()
        fields = {"magic": 8, "version": 2, "features": 2, "leaf size": 4, "length": 8, "zeros": 8}
        hashes = hashtree.HASH_SIZE * hashtree.leaf_count(segment.share_len)
        regions = _regions(fields | {"leaf hashes": hashes}, len(data), "payload")
        start, end = regions["payload"]
        used = start + len(data[start:].rstrip(b"\0"))
        if index < segment.k and used + 1 < end:
            regions |= {"payload": (start, used), "padding": (used, end)}
        assert start == share.header_size(segment.share_len)
        told = (name, f"segment {segment.id.hex()}, share {index}")
        yield Object(kind, one.provider, name, segment.id.hex(), told, regions)


def _head(provider: str, place: Path) -> Object:
    name = max(path.name for path in (place / "heads").iterdir())
    data = (place / "heads" / name).read_bytes()
    assert head.parse_name(f"heads/{name}")
    regions = _regions(HEAD_START, len(data), "sealed body")
    start, end = regions["sealed body"]
    regions |= {"sealed body": (start, end - TAG), "tag": (end - TAG, end)}
    return Object("head", provider, f"heads/{name}", "heads", (f"heads/{name}",), regions)


def _slot(provider: str, place: Path) -> Object:
    """The slot of the key file."""
    for path in sorted((place / SLOTS).iterdir()):
        data = path.read_bytes()
        if decode_slot(data).kind is SlotKind.KEYFILE:
            regions = _regions({"magic": 12, "version": 2, "length": 4}, len(data), "document")
            start, end = regions["document"]
            regions |= {"document": (start, end - 16), "checksum": (end - 16, end)}
            return Object("slot", provider, f"{SLOTS}{path.name}", "slots", ("key slot",), regions)
    raise AssertionError(f"{provider} holds no slot for a key file")


def _regions(sizes: dict[str, int], whole: int, rest: str = "") -> dict[str, Region]:
    """All of it, its fields of these sizes one after the other, and what is left of `whole` bytes as `rest`."""
    found: dict[str, Region] = {"whole": (0, whole)}
    at = 0
    for name, size in sizes.items():
        found[name] = (at, at + size)
        at += size
    if rest:
        found[rest] = (at, whole)
    return found
