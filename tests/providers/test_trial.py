"""A trial finds what a provider cannot do, and leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from icnfs.providers.base import Data
from icnfs.providers.directory import DirectoryProvider
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.trial import Report, try_out


def tried(provider: MemoryProvider | DirectoryProvider) -> Report:
    return trio.run(try_out, provider)


def test_good_provider_passes_and_keeps_nothing(tmp_path: Path) -> None:
    report = tried(DirectoryProvider("alpha", tmp_path))
    assert report.error == "" and report.conditional_writes is True and report.latency_s is not None
    assert list(dict.fromkeys(report.steps)) == ["probe", "put", "get", "range", "size", "list", "put_new", "delete"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Flipping(MemoryProvider):
    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(name, offset, length)
        return data[:-1] + bytes([data[-1] ^ 1])


class Keeping(MemoryProvider):
    async def delete(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False


class Versioned(MemoryProvider):
    async def delete(self, name: str) -> bool:
        await super().delete(name)
        return True


class Hiding(MemoryProvider):
    async def list(self, prefix: str, after: str = "") -> list[str]:
        return []


class Losing(MemoryProvider):
    async def put(self, name: str, data: Data) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Flipping, "get: it answered something else than was stored; correct its url"),
        (Keeping, "delete: the object is still there; correct its url"),
        (Hiding, "list: it answered something else than was stored; correct its url"),
        (Losing, "no object"),
    ],
)
def test_what_a_provider_cannot_do_is_said(kind: type[MemoryProvider], what: str) -> None:
    assert what in tried(kind("alpha")).error


def test_one_that_keeps_what_is_deleted_is_told_of() -> None:
    report = tried(Versioned("alpha"))
    assert report.keeps_deleted and not report.error
    assert tried(MemoryProvider("alpha")).keeps_deleted is False


def test_provider_that_is_away_or_full_or_read_only_is_said() -> None:
    provider = MemoryProvider("alpha", capacity=1000)
    assert "no room" in tried(provider).error
    provider.read_only = True
    assert "read-only" in tried(provider).error
    provider.away = True
    assert "does not answer" in tried(provider).error


@pytest.mark.parametrize(("silent", "seconds"), [("probe", 15), ("put", 15 + 32 + 15)])
def test_one_that_says_nothing_is_told_of_soon(silent: str, seconds: int) -> None:
    """What it may have stored is deleted, within the time of one step more."""
    provider = MemoryProvider("alpha")

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    async def main() -> tuple[Report, float]:
        begun = trio.current_time()
        return await try_out(provider), trio.current_time() - begun

    setattr(provider, silent, never)
    if silent != "probe":
        provider.delete = never  # type: ignore[assignment]
    report, took = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert re.fullmatch(rf"{silent}: no answer within (15|47) s; check its url, .*", report.error)
    assert took == pytest.approx(seconds)


def test_server_without_conditional_writes_is_found_out() -> None:
    class Overwriting(MemoryProvider):
        async def put_new(self, name: str, data: Data) -> bool:
            await self.put(name, data)
            return True

    report = tried(Overwriting("alpha"))
    assert report.error == "" and report.conditional_writes is False
