"""That no two providers share a place: not under two names either, such as a link, a bind mount or a host's second one.

What their urls say is compared when the TOML is read.  Here the places themselves are: directories before anything is
written there, and every place by the mark that it was just given.  Each error names both providers.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final

import trio

from icnfs.config import VolumeConfig
from icnfs.errors import ConfigError, ForeignProviderError, FormatError
from icnfs.format import marker
from icnfs.providers.open import parse_url
from icnfs.volume.network import Network
from icnfs.volume.places import VISIT_SECONDS, holder_of
from icnfs.volume.together import together

_OWN: Final = "give each provider a place of its own"

Way = list[tuple[int, int, str]]
"""A directory, and what it lies in up to the root, by device and inode; of one that is not made yet also the name."""


async def check_directories(config: VolumeConfig) -> None:
    """ConfigError where the directories of two providers are one, or lie one within the other.

    One that cannot be looked at is passed over: whoever stores there will hear why.
    """
    ways: dict[str, Way] = {}
    for name, facts in config.providers.items():
        place = parse_url(facts.url)
        if place.scheme != "file":
            continue
        way: Way = []
        with trio.move_on_after(VISIT_SECONDS):
            way = await trio.to_thread.run_sync(_way, place.path, abandon_on_cancel=True)
        for other, around in ways.items() if way else ():
            if way[0] == around[0]:
                raise ConfigError(f"{config.path}: provider.{name}.url: the same place as provider.{other}.url; {_OWN}")
            if way[0] in around or around[0] in way:
                what = f"lies within, or around, provider.{other}.url"
                raise ConfigError(f"{config.path}: provider.{name}.url: {what}; {_OWN}")
        if way:
            ways[name] = way


def _way(path: Path) -> Way:
    """Blocks.  Empty where it cannot be looked at."""
    way: Way = []
    try:
        real = Path(os.path.realpath(path, strict=path.exists()))
        if not real.exists():
            real, above = real.parent, real.parent.stat()
            way.append((above.st_dev, above.st_ino, path.name))
        for directory in (real, *real.parents):
            status = directory.stat()
            way.append((status.st_dev, status.st_ino, ""))
    except OSError:
        return []
    return way


async def check_marks(config: VolumeConfig, network: Network) -> None:
    """ConfigError where of places that were empty, and were all just marked, two are one or lie one within the other.

    Raises also what providers answer.
    """
    await together(partial(_check_mark, config, network, provider) for provider in config.providers)


async def _check_mark(config: VolumeConfig, network: Network, provider: str) -> None:
    """In one place: its own mark must be there still, and no other provider's anywhere below."""
    where = f"{config.path}: provider.{provider}.url"
    mine = await _marked(network, provider, marker.NAME)
    if not mine:
        raise ForeignProviderError(provider, "its place was marked by somebody else meanwhile; use an empty place")
    if mine != provider:
        raise ConfigError(f"{where}: the same place as provider.{mine}.url, by another name; {_OWN}")
    for name in await network.transfer.list_objects(provider, "", page=True, deadline=VISIT_SECONDS):
        if name.endswith(f"/{marker.NAME}") and (other := await _marked(network, provider, name)):
            raise ConfigError(f"{where}: lies around provider.{other}.url, by another name; {_OWN}")


async def _marked(network: Network, provider: str, name: str) -> str:
    """Whose mark an object is, "" for none of ours."""
    raw = await network.transfer.get_object(provider, name, deadline=VISIT_SECONDS)
    try:
        return holder_of(network, marker.unpack_marker(raw))
    except FormatError:
        return ""
