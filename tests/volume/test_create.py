"""`init` takes all places or none, and can be started over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio

from icnfs.crypto.keys import Secret
from icnfs.errors import (
    ConfigError,
    ForeignProviderError,
    LocalDiskError,
    SecretError,
    TooFewProvidersError,
    VolumeExistsError,
)
from icnfs.format.marker import pack_marker
from icnfs.providers.base import Data
from icnfs.providers.memory import MemoryProvider
from icnfs.volume import create as create_module
from icnfs.volume.keyring import Secrets
from icnfs.volume.volume import Volume
from tests.volume.world import PASSPHRASE, World, list_files

T = TypeVar("T")


async def names(volume: Volume) -> list[bytes]:
    return list_files(volume)


def snapshot(world: World) -> dict[str, dict[str, bytes]]:
    return {name: dict(provider.objects) for name, provider in world.providers.items()}


def test_an_empty_volume_is_at_every_provider_and_recovers_at_once(world: World) -> None:
    here = world.machine()
    created = here.init()
    assert here.run(names) == []
    for objects in snapshot(world).values():
        kinds = {name.split("/")[0] for name in objects}
        assert kinds == {"volume", "slots", "heads", "shares"}
        assert sum(name.startswith("slots/") for name in objects) == 1, "only the recovery key's slot"
    there = world.machine("there")
    there.recover(created.recovery_key)
    assert there.run(names) == []
    assert created.recovery_key not in repr(created)


def test_no_two_providers_hold_an_object_of_one_name_or_content_but_the_marker_name(world: World) -> None:
    world.machine().init()
    objects = [(n, d) for p in snapshot(world).values() for n, d in p.items()]
    named = [n for n, _ in objects if n != "volume"]
    assert len(set(named)) == len(named)
    assert len({d for _, d in objects}) == len(objects)
    tails = [n.rsplit("-", 1)[1] for n in named if n.startswith("heads/")]
    assert len(set(tails)) == len(tails)


@pytest.mark.parametrize(
    "found",
    [
        {"volume": pack_marker(b"x" * 16)},
        {"volume": b"holiday.jpg"},
        {"heads/" + "0" * 16: b"?"},
        {"notes/mine.txt": b"x"},
    ],
)
def test_a_place_of_somebody_else_is_refused_and_nothing_is_written(world: World, found: dict[str, bytes]) -> None:
    world.providers["eel"].objects.update(found)
    before = snapshot(world)
    here = world.machine()
    with pytest.raises(ForeignProviderError, match="provider eel"):
        here.init()
    assert snapshot(world) == before
    assert not here.state_dir.exists()
    assert list(here.state_dir.parent.iterdir()) == []


def test_another_init_over_the_same_places_is_refused(world: World) -> None:
    here = world.machine()
    here.init()
    before = snapshot(world)
    with pytest.raises(ForeignProviderError):
        world.machine("there").init()
    with pytest.raises(VolumeExistsError):
        here.init()
    assert snapshot(world) == before
    assert here.run(names) == []


def test_a_provider_that_is_away_is_named_and_nothing_is_written(world: World) -> None:
    world.away("bee")
    before = snapshot(world)
    with pytest.raises(TooFewProvidersError, match="provider bee"):
        world.machine().init()
    assert snapshot(world) == before


@pytest.mark.parametrize("puts", [0, 3, 8, 15, 18, 21, 23])
def test_an_init_that_broke_off_anywhere_is_started_over(
    world: World, puts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = puts

    def breaking(real: Callable[[MemoryProvider, str, Data], Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def put(self: MemoryProvider, name: str, data: Data) -> T:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return await real(self, name, data)

        return put

    here = world.machine()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryProvider, "put", breaking(MemoryProvider.put))
        patch.setattr(MemoryProvider, "put_new", breaking(MemoryProvider.put_new))
        with pytest.raises(BaseException):  # noqa: B017  # the interrupt may come in a group
            here.init()
    assert not here.state_dir.exists()
    key = here.init().recovery_key
    world.machine("there").recover(key)
    assert here.run(names) == [], "the recovery above fences it, and it can still be read"


def test_two_names_of_one_place_are_refused_with_both_providers_and_its_mark_is_taken_back(world: World) -> None:
    world.providers["eel"].objects = world.providers["bee"].objects
    here = world.machine()
    with pytest.raises(ConfigError, match=r"provider\.(bee|eel)\.url: the same place as provider\.(bee|eel)\.url"):
        here.init()
    assert not any(snapshot(world).values())
    assert list(here.state_dir.parent.iterdir()) == []
    world.providers["eel"].objects = {}
    here.init()
    assert here.run(names) == []


class Around(MemoryProvider):
    """Shows the objects of another, as well as its own."""

    inner: MemoryProvider

    async def list(self, prefix: str, after: str = "") -> list[str]:
        everything = sorted([*self.objects, *(f"q/{name}" for name in self.inner.objects)])
        return [name for name in everything if name.startswith(prefix) and name > after]

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if name.startswith("q/"):
            return await self.inner.get(name.removeprefix("q/"), offset, length)
        return await super().get(name, offset, length)


def test_a_place_that_lies_within_another_by_another_name_is_refused(world: World) -> None:
    around = world.providers["bee"] = Around("bee")
    around.inner = world.providers["eel"]
    with pytest.raises(ConfigError, match=r"provider\.bee\.url: lies around provider\.eel\.url"):
        world.machine().init()
    assert not any(snapshot(world).values())


def test_a_mark_that_is_somebody_elses_after_all_is_not_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, theirs = create_module.Places.take, pack_marker(b"x" * 16)

    async def overtaken(self: create_module.Places, provider: str) -> None:
        await take(self, provider)
        if provider == "eel":
            world.providers["eel"].objects["volume"] = theirs

    monkeypatch.setattr(create_module.Places, "take", overtaken)
    with pytest.raises(ForeignProviderError, match="provider eel: its place was marked by somebody else"):
        world.machine().init()
    assert world.providers["eel"].objects == {"volume": theirs}


def test_a_passphrase_goes_to_the_providers_only_by_choice(world: World) -> None:
    here = world.machine()

    async def main() -> None:
        await create_module.create(
            here.config(), here.state_dir, here.secrets, passphrase_at_providers=True, start=world.start
        )

    trio.run(main)
    assert all(len(names) == 2 for names in world.objects("slots/").values())
    there = world.machine("there")
    there.secrets = Secrets(passphrase=PASSPHRASE)
    there.recover()


def test_a_full_local_disk_is_one_clear_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    here = world.machine()
    here.state_dir.parent.parent.mkdir(exist_ok=True)
    here.state_dir.parent.write_bytes(b"a file where the folder should be")
    before = snapshot(world)
    with pytest.raises(LocalDiskError):
        here.init()
    assert snapshot(world) == before


def test_a_wrong_passphrase_does_not_open_it(world: World) -> None:
    here = world.machine()
    here.init()
    here.secrets = Secrets(passphrase=Secret(b"wrong"))
    with pytest.raises(SecretError):
        here.run(names)
