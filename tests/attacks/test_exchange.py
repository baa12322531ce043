"""Whatever two providers do to what they hold, recovery finds the newest state and every file reads back right."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from icnfs.errors import IcnfsError
from icnfs.format import head as head_format
from icnfs.limits import MIB
from icnfs.providers.base import Data
from icnfs.volume.volume import Volume
from tests.volume.world import World, flip, get_file, list_files, put_file

CONTENTS = {b"large": os.urandom(900_000), b"small": b"hello", b"chunk": os.urandom(1 << 17)}
LIARS = ("bee", "eel")

Objects = dict[str, bytes]
Damage = Callable[[World, World, Objects, str, str], bytes]
"""(world, another volume's, what this provider holds, provider, object) -> what it shows instead."""


def _elsewhere(world: World, other: World, held: Objects, provider: str, name: str) -> bytes:
    """Another object of the same kind at another provider of the volume: the place is exchanged."""
    kind = name.split("/", maxsplit=1)[0]
    place = "ada" if provider != "ada" else "fox"
    return next(data for n, data in sorted(world.providers[place].objects.items()) if n.startswith(kind))


def _neighbour(world: World, other: World, held: Objects, provider: str, name: str) -> bytes:
    """The next object of the same kind and place: another file's, or another age's."""
    kind = name.split("/", maxsplit=1)[0]
    names = sorted(n for n in held if n.startswith(kind))
    return held[names[(names.index(name) + 1) % len(names)]]


def _other_volume(world: World, other: World, held: Objects, provider: str, name: str) -> bytes:
    kind = name.split("/", maxsplit=1)[0]
    return next(data for n, data in sorted(other.providers[provider].objects.items()) if n.startswith(kind))


DAMAGES: dict[str, Damage] = {
    "flipped": lambda w, o, held, p, name: flip(held[name], random.Random(name).randrange(len(held[name]))),
    "cut": lambda w, o, held, p, name: held[name][: len(held[name]) // 2],
    "extended": lambda w, o, held, p, name: held[name] + b"more",
    "emptied": lambda w, o, held, p, name: b"",
    "zeroed": lambda w, o, held, p, name: bytes(len(held[name])),
    "huge": lambda w, o, held, p, name: held[name] + bytes(MIB),
    "of another place": _elsewhere,
    "of another file or age": _neighbour,
    "of another volume": _other_volume,
}


def filled(root: Path) -> tuple[World, str, tuple[int, int]]:
    root.mkdir()
    world = World(root)
    here = world.machine()
    key = here.init().recovery_key

    async def write(volume: Volume) -> tuple[int, int]:
        for name, data in CONTENTS.items():
            await put_file(volume, name, data)
            await volume.sync()
        return volume.fence.number

    return world, key, here.run(write)


async def read_all(volume: Volume) -> dict[bytes, bytes]:
    return {name: await get_file(volume, name) for name in list_files(volume)}


@pytest.mark.parametrize("kind", ["shares/", "heads/", "slots/", "volume"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_two_providers_may_show_anything_instead(tmp_path: Path, kind: str, damage: str) -> None:
    world, key, number = filled(tmp_path / "ours")
    other, _, _ = filled(tmp_path / "other")
    shown: dict[str, Objects] = {}
    for provider in LIARS:
        held = world.providers[provider].objects
        shown[provider] = {n: DAMAGES[damage](world, other, held, provider, n) for n in held if n.startswith(kind)}
        assert shown[provider]
    for provider, objects in shown.items():
        world.providers[provider].objects.update(objects)
    there = world.machine("there")
    found = there.recover(key)
    assert (found.epoch, found.sequence) == number

    async def compare(volume: Volume) -> set[str]:
        assert await read_all(volume) == CONTENTS
        return {p.name for p in volume.status().providers if p.bad_shares or p.error}

    blamed = there.run(compare)
    assert blamed <= set(LIARS)
    harmless = damage in ("extended", "huge")  # ranges that are read are what they were
    assert kind != "shares/" or harmless or blamed, "a provider whose share was read and wrong is named"


def test_an_older_head_under_the_newest_name_is_not_believed(tmp_path: Path) -> None:
    """At every provider but one: the seal binds the number."""
    world, key, number = filled(tmp_path / "ours")
    for provider in list(world.providers)[:-1]:
        objects = world.providers[provider].objects
        heads = sorted(n for n in objects if head_format.parse_name(n) is not None)
        objects[heads[-1]] = objects[heads[0]]
    found = world.machine("there").recover(key)
    assert (found.epoch, found.sequence) == number


def test_all_shares_of_three_providers_exchanged_is_an_error_of_the_files_alone(tmp_path: Path) -> None:
    world, key, _ = filled(tmp_path / "ours")
    there = world.machine("there")
    there.recover(key)
    for provider in ("ada", "bee", "cat"):
        held = dict(world.providers[provider].objects)
        for name in held:
            if name.startswith("shares/"):
                world.providers[provider].objects[name] = _neighbour(world, world, held, provider, name)

    async def look(volume: Volume) -> None:
        assert list_files(volume) == sorted(CONTENTS)
        for name, data in CONTENTS.items():
            try:
                assert await get_file(volume, name) == data
            except IcnfsError:
                continue
        await put_file(volume, b"new", b"works on")
        assert await get_file(volume, b"new") == b"works on"

    there.run(look)


def test_a_provider_that_denies_the_head_it_took_stops_nobody(tmp_path: Path) -> None:
    """ "There is another", it says, shows rubbish when it is compared, and then the very head that was put."""
    world, key, number = filled(tmp_path / "ours")
    liar = world.providers["fox"]
    put_new, get = liar.put_new, liar.get
    asked: dict[str, int] = {}

    async def deny(name: str, data: Data) -> bool:
        taken = await put_new(name, data)
        if name.startswith(head_format.PREFIX):
            asked[name] = 0
            return False
        return taken

    async def show(name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name in asked:
            asked[name] += 1
            if asked[name] == 1:
                return b"another's"
        return await get(name, offset, length)

    liar.put_new, liar.get = deny, show  # type: ignore[method-assign]

    async def publish(volume: Volume) -> None:
        for name in (b"one", b"two", b"three"):  # what a head met is looked at before the next
            await put_file(volume, name, b"x")
            await volume.publisher.publish()
        assert max(asked.values()) > 1, "it was not compared, or not looked at"
        assert volume.store.fenced is None
        assert volume.fence.number > number

    there = world.machine("there")
    there.recover(key)
    there.run(publish)
