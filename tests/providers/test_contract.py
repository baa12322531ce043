"""What base.py promises, asked of every kind of provider, bare and within every wrapper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from icnfs.errors import ObjectMissingError, ProviderLiesError, ProviderRefusedError
from icnfs.limits import LIST_PAGE, OBJECT_MAX
from icnfs.providers import base
from icnfs.providers.base import OBJECT_NAME_MAX, Provider, check_name, check_prefix, is_name, list_all
from icnfs.providers.breaker import Breaker, Switch
from icnfs.providers.directory import DirectoryProvider
from icnfs.providers.faults import FaultPlan, Faults
from icnfs.providers.guard import guard
from icnfs.providers.line import Line
from icnfs.providers.memory import MemoryProvider
from icnfs.providers.open import ProviderSpec, open_provider
from icnfs.providers.s3 import S3Provider
from icnfs.providers.wrappers import Deadline, Limit, Pace, Retry, Wrapper
from tests.seaweed import Seaweed

KINDS = ("memory", "directory", "s3", "s3-tls")

WRAPPERS: dict[str, Callable[[Provider], Provider]] = {
    "bare": lambda provider: provider,
    "wrapper": Wrapper,
    "deadline": lambda provider: Deadline(provider, 60),
    "retry": Retry,
    "limit": lambda provider: Limit(provider, 2, 2),
    "faults": lambda provider: Faults(provider, FaultPlan()),
    "pace": lambda provider: Pace(provider, [Line(1 << 40)], [Line(1 << 40)]),
    "breaker": lambda provider: Breaker(provider, Switch()),
    "guard": lambda provider: guard(provider, Switch()).again,
}

WRAPPERS_OF: dict[str, list[str]] = {
    "memory": list(WRAPPERS),
    "directory": list(WRAPPERS),
    "s3": ["bare", "guard"],
    "s3-tls": ["bare"],
}

NAMES = ["a", "a-b", "a.b/c", "a/b", "ab/c/d", "ab/c0", "heads/1", "heads/10", "heads/2", "shares/aa/x", "volume"]
"""In order, with the characters before and after the slash in between."""

MISSORTED = {"a-b", "a.b/c"}
DIRECTORIES = {"a", "heads"}
"""SeaweedFS lists what is below `a/` before MISSORTED, where S3 lists it behind, and takes "after a" for "after all of
a/"; icnfs makes no such neighbours, and asks for no such thing."""

_prefixes = count()


@contextmanager
def opened(kind: str, request: pytest.FixtureRequest) -> Iterator[Provider]:
    if kind == "memory":
        yield MemoryProvider("alpha")
    elif kind == "directory":
        yield DirectoryProvider("alpha", request.getfixturevalue("tmp_path"))
    else:
        server: Seaweed = request.getfixturevalue("seaweed")
        url = server.url("alpha", f"contract/{next(_prefixes)}", tls=kind == "s3-tls")
        provider = open_provider(ProviderSpec("alpha", url, credentials=str(server.keys)))
        yield provider
        trio.run(provider.close)


@pytest.fixture(params=KINDS)
def bare(request: pytest.FixtureRequest) -> Iterator[Provider]:
    with opened(request.param, request) as provider:
        yield provider


@pytest.fixture(params=[(kind, wrapper) for kind in KINDS for wrapper in WRAPPERS_OF[kind]], ids="-".join)
def provider(request: pytest.FixtureRequest) -> Iterator[Provider]:
    kind, wrapper = request.param
    with opened(kind, request) as bare:
        yield WRAPPERS[wrapper](bare)


def is_s3(provider: Provider) -> bool:
    while isinstance(provider, Wrapper | Faults):
        provider = provider.inner
    return isinstance(provider, S3Provider)


def test_name_is_kept(provider: Provider) -> None:
    assert provider.name == "alpha"


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1024])
def test_what_was_put_is_got(provider: Provider, data: bytes) -> None:
    async def main() -> None:
        await provider.put("shares/ab/cd", data)
        assert await provider.get("shares/ab/cd") == data
        assert await provider.size("shares/ab/cd") == len(data)

    trio.run(main)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_put_keeps_no_reference_to_the_buffer(provider: Provider, kind: type) -> None:
    async def main() -> None:
        store = bytearray(b"first")
        await provider.put("a", store if kind is bytearray else memoryview(store))
        store[:] = b"other"
        store.append(0)  # a BufferError where somebody still held it
        assert await provider.get("a") == b"first"

    trio.run(main)


def test_put_again_replaces_whole(provider: Provider) -> None:
    async def main() -> None:
        await provider.put("a/b", b"long old contents")
        await provider.put("a/b", b"new")
        await provider.put("a/b", b"new")
        assert await provider.get("a/b") == b"new"
        assert await provider.list("") == ["a/b"]

    trio.run(main)


def test_put_new_keeps_what_is_there(provider: Provider) -> None:
    async def main() -> None:
        assert await provider.put_new("heads/1", b"first")
        assert not await provider.put_new("heads/1", b"second")
        assert not await provider.put_new("heads/1", b"first")
        assert await provider.get("heads/1") == b"first"
        assert await provider.list("") == ["heads/1"]
        await provider.put("heads/1", b"third")
        await provider.delete("heads/1")
        assert await provider.put_new("heads/1", memoryview(b"fourth"))
        assert await provider.get("heads/1") == b"fourth"

    trio.run(main)


def test_one_of_many_at_once_makes_an_object_and_the_others_are_told(provider: Provider) -> None:
    async def main() -> None:
        won = []

        async def make(i: int) -> None:
            if await provider.put_new("volume", bytes([i]) * 1000):
                won.append(i)

        async with trio.open_nursery() as nursery:
            for i in range(8):
                nursery.start_soon(make, i)
        assert len(won) == 1
        assert await provider.get("volume") == bytes(won) * 1000
        assert await provider.list("") == ["volume"]

    trio.run(main)


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a")])
def test_new_object_above_or_below_another_is_refused(provider: Provider, first: str, second: str) -> None:
    async def main() -> None:
        await provider.put(first, b"kept")
        with nullcontext() if is_s3(provider) else pytest.raises(ProviderRefusedError):
            await provider.put_new(second, b"x")
        assert await provider.get(first) == b"kept"

    trio.run(main)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 10), (3, 4), (9, 1), (10, 0), (4, None), (10, None)])
def test_range_is_exact(provider: Provider, offset: int, length: int | None) -> None:
    async def main() -> None:
        await provider.put("a", b"0123456789")
        end = 10 if length is None else offset + length
        assert await provider.get("a", offset, length) == b"0123456789"[offset:end]

    trio.run(main)


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (9, 2), (11, 0), (11, None)])
def test_range_past_the_end_is_a_lie(provider: Provider, offset: int, length: int | None) -> None:
    async def main() -> None:
        await provider.put("a", b"0123456789")
        with pytest.raises(ProviderLiesError, match=r"alpha.*cut short"):
            await provider.get("a", offset, length)

    trio.run(main)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (0, OBJECT_MAX + 1)])
def test_impossible_range_is_the_callers_bug(provider: Provider, offset: int, length: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="range"):
            await provider.get("a", offset, length)

    trio.run(main)


def test_object_past_the_largest_is_the_callers_bug(provider: Provider) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="more than an object may have"):
            await provider.put("a", memoryview(bytes(OBJECT_MAX + 1)))

    trio.run(main)


@pytest.mark.parametrize("name", ["a", "no/such/place", "there/below"])
def test_missing_object_is_said_to_be_missing(provider: Provider, name: str) -> None:
    async def main() -> None:
        await provider.put("there", b"")
        with pytest.raises(ObjectMissingError, match="provider alpha"):
            await provider.get(name)
        with pytest.raises(ObjectMissingError):
            await provider.size(name)
        await provider.delete(name)
        assert await provider.list("") == ["there"]

    trio.run(main)


def test_directory_of_objects_is_no_object(provider: Provider) -> None:
    async def main() -> None:
        await provider.put("heads/1", b"x")
        with pytest.raises(ObjectMissingError):
            await provider.get("heads")
        await provider.delete("heads")
        assert await provider.get("heads/1") == b"x"

    trio.run(main)


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c"), ("a/b/c", "a/b")])
def test_object_above_or_below_another_is_refused(provider: Provider, first: str, second: str) -> None:
    async def main() -> None:
        await provider.put(first, b"kept")
        with nullcontext() if is_s3(provider) else pytest.raises(ProviderRefusedError):
            await provider.put(second, b"x")
        assert await provider.get(first) == b"kept"
        assert await provider.list("") == (sorted((first, second)) if is_s3(provider) else [first])

    trio.run(main)


def test_deleted_object_is_gone(provider: Provider) -> None:
    async def main() -> None:
        await provider.put("a/b", b"x")
        await provider.delete("a/b")
        await provider.delete("a/b")
        with pytest.raises(ObjectMissingError):
            await provider.get("a/b")
        assert await provider.list("") == []

    trio.run(main)


async def _fill(provider: Provider) -> list[str]:
    names = [name for name in NAMES if name != "a" and not (is_s3(provider) and name in MISSORTED)]
    for name in names:
        await provider.put(name, name.encode())
    return sorted(names)


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a.", "ab/c", "ab/c/", "heads/", "heads/1", "z", "volume", "vol"])
def test_listing_is_sorted_and_begins_with_the_prefix(provider: Provider, prefix: str) -> None:
    async def main() -> None:
        names = await _fill(provider)
        assert await provider.list(prefix) == [name for name in names if name.startswith(prefix)]

    trio.run(main)


@pytest.mark.parametrize("after", [*NAMES, "a/", "a0", "heads", "heads/", "heads/1x", "zz"])
def test_listing_goes_on_after_a_name(provider: Provider, after: str) -> None:
    async def main() -> None:
        names = await _fill(provider)
        if is_s3(provider) and after in MISSORTED | DIRECTORIES:
            return
        assert await provider.list("", after) == [name for name in names if name > after]

    trio.run(main)


def test_listing_comes_in_pages(bare: Provider) -> None:
    async def main() -> None:
        names = [f"shares/{i % 3}/{i:05}" for i in range(LIST_PAGE + 5)]
        async with trio.open_nursery() as nursery:
            for name in names:
                if isinstance(bare, DirectoryProvider):  # 1005 durable puts would take the test's time
                    (bare.root / name).parent.mkdir(parents=True, exist_ok=True)
                    (bare.root / name).touch()
                else:
                    nursery.start_soon(bare.put, name, b"")
        page = await bare.list("shares/")
        assert page == sorted(names)[:LIST_PAGE]
        assert await bare.list("shares/", page[-1]) == sorted(names)[LIST_PAGE:]
        assert await list_all(bare, "shares/") == sorted(names)

    trio.run(main)


BAD_NAMES = ["", "/", "/a", "a/", "a//b", "..", "a/..", "a..b", ".a", "a/.b", "A", "a b", "a\n", "a\0", "ä", "-a", "_a"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "a" * (OBJECT_NAME_MAX + 1)])
def test_name_that_icnfs_never_makes_is_refused_before_anything_is_done(provider: Provider, name: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="object name"):
            await provider.put(name, b"")
        with pytest.raises(ValueError, match="object name"):
            await provider.put_new(name, b"")
        with pytest.raises(ValueError, match="object name"):
            await provider.get(name)
        with pytest.raises(ValueError, match="object name"):
            await provider.size(name)
        with pytest.raises(ValueError, match="object name"):
            await provider.delete(name)
        assert await provider.list("") == []

    trio.run(main)


@pytest.mark.parametrize("prefix", ["/", "..", "a//", ".", "A", "a/../b"])
def test_prefix_of_no_name_is_refused(provider: Provider, prefix: str) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="beginning"):
            await provider.list(prefix)

    trio.run(main)


def test_longest_name_can_be_stored(provider: Provider) -> None:
    async def main() -> None:
        name = "a" * OBJECT_NAME_MAX
        await provider.put(name, b"x")
        assert await provider.list("aa") == [name]

    trio.run(main)


def test_many_tasks_at_once(provider: Provider) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for i in range(12):
                nursery.start_soon(provider.put, f"shares/{i % 2}/{i}", bytes([i]) * 1000)
                nursery.start_soon(provider.put, "contended", bytes([i]) * 1000)
        assert len(await provider.list("shares/")) == 12
        assert len(set(await provider.get("contended"))) == 1

    trio.run(main)


def test_probe_names_the_pool(provider: Provider) -> None:
    async def main() -> None:
        capacity = await provider.probe()
        assert capacity.pool
        assert capacity == await provider.probe() or capacity.free_bytes is not None

    trio.run(main)


def test_close_can_be_called(provider: Provider) -> None:
    trio.run(provider.close)


@given(st.text(max_size=30))
def test_name_check_is_total(text: str) -> None:
    if is_name(text):
        assert check_name(text) == text
        assert all(check_prefix(text[:end]) == text[:end] for end in range(len(text) + 1))
        assert not text.startswith((".", "/")) and ".." not in text and "/." not in text
    else:
        with pytest.raises(ValueError, match="object name"):
            check_name(text)


class _Listing(MemoryProvider):
    """Answers listings with prepared pages."""

    def __init__(self, *pages: list[str]) -> None:
        super().__init__("liar")
        self.pages = list(pages)

    async def list(self, prefix: str, after: str = "") -> list[str]:
        await trio.lowlevel.checkpoint()
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]


@pytest.mark.parametrize(
    "pages",
    [
        (["b", "a"],),
        (["a"], ["a"]),
        (["b"], ["a"]),
        (["a", "a"],),
        (["../etc"],),
        (["a\n"],),
        (["x/1"], ["y/1"], ["x/2"]),
    ],
)
def test_malformed_listing_is_a_lie(pages: tuple[list[str], ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LIST_PAGE", 1)
    with pytest.raises(ProviderLiesError, match="out of order"):
        trio.run(list_all, _Listing(*pages), "x" if "x/1" in pages[0] else "")


def test_endless_listing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "LIST_PAGE", 1)

    class Endless(MemoryProvider):
        async def list(self, prefix: str, after: str = "") -> list[str]:
            await trio.lowlevel.checkpoint()
            return [f"{int(after or 0) + 1:08}"]

    async def main() -> None:
        with pytest.raises(ProviderLiesError, match="does not end"):
            await list_all(Endless("liar"), "", most=50)

    trio.run(main)
