"""What would be left of a network: a transfer in which some providers are lost, and through which nothing is written.

Promises: whatever is asked of a lost provider is answered as if it did not answer; whatever would change an object at
any provider is refused before it reaches transfer.  Segments are read by what lies beneath: it is to be started without
the lost providers, and then cannot ask them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from icnfs.errors import IcnfsError, ProviderAwayError, ProviderRefusedError
from icnfs.format.segment import SegmentInfo
from icnfs.limits import OBJECT_MAX
from icnfs.providers.base import Capacity
from icnfs.transfer.checks import Looked
from icnfs.transfer.messages import ProviderState, ShareEvent
from icnfs.transfer.upload import PutResult
from icnfs.volume.network import Transfer

Memo = dict[tuple[str, ...], Any]
"""Answers about objects, errors among them, by what was asked."""


class Remains:
    """A `Transfer` without the providers `lost`."""

    def __init__(self, inner: Transfer, lost: Collection[str], memo: Memo | None = None) -> None:
        """With a `memo` each object and listing is asked for once, whoever shares it."""
        self._inner = inner
        self._lost = frozenset(lost)
        self._memo = memo
        self.heard: Callable[[ShareEvent], None] = lambda _: None

    async def fetch(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        share: int,
        offset: int,
        length: int,
        *,
        distrust: Collection[int] = (),
        verified: bool = False,
        deadline: float = 60.0,
    ) -> bytes:
        return await self._inner.fetch(
            segment, names, share, offset, length, distrust=distrust, verified=verified, deadline=deadline
        )

    async def fetch_stripe(
        self, segment: SegmentInfo, names: Sequence[str], offset: int, length: int, *, deadline: float = 60.0
    ) -> memoryview:
        return await self._inner.fetch_stripe(segment, names, offset, length, deadline=deadline)

    async def get_segment(self, segment: SegmentInfo, names: Sequence[str], *, deadline: float = 60.0) -> bytes:
        return await self._inner.get_segment(segment, names, deadline=deadline)

    async def check(
        self,
        segment: SegmentInfo,
        names: Sequence[str],
        index: int,
        leaves: Sequence[int] | None = (),
        *,
        deadline: float = 60.0,
    ) -> Looked:
        return await self._inner.check(segment, names, index, leaves, deadline=deadline)

    async def get_object(self, provider: str, name: str, *, most: int = OBJECT_MAX, deadline: float = 60.0) -> bytes:
        self._there(provider)
        get = self._inner.get_object
        data: bytes = await self._remembered(
            ("get", provider, name), lambda: get(provider, name, most=most, deadline=deadline)
        )
        return data

    async def list_objects(
        self, provider: str, prefix: str, after: str = "", *, page: bool = False, deadline: float = 60.0
    ) -> list[str]:
        self._there(provider)
        listing = self._inner.list_objects
        names: list[str] = await self._remembered(
            ("page" if page else "list", provider, prefix, after),
            lambda: listing(provider, prefix, after, page=page, deadline=deadline),
        )
        return names

    async def peek(self, provider: str, name: str, length: int, *, deadline: float = 60.0) -> tuple[int, bytes]:
        self._there(provider)
        return await self._inner.peek(provider, name, length, deadline=deadline)

    async def probe(self, provider: str, *, deadline: float = 60.0) -> Capacity:
        self._there(provider)
        return await self._inner.probe(provider, deadline=deadline)

    def states(self) -> Mapping[str, ProviderState]:
        return {name: state for name, state in self._inner.states().items() if name not in self._lost}

    # --- what writes --------------------------------------------------------------------------------------------------

    async def put_segment(self, *_: Any, **__: Any) -> PutResult:
        _refuse()

    async def complete_segment(self, *_: Any, **__: Any) -> PutResult:
        _refuse()

    async def put_object(self, provider: str, *_: Any, **__: Any) -> None:
        _refuse(provider)

    async def delete_object(self, provider: str, *_: Any, **__: Any) -> bool:
        _refuse(provider)

    async def set_providers(self, *_: Any, **__: Any) -> None:
        _refuse()

    # ------------------------------------------------------------------------------------------------------------------

    def _there(self, provider: str) -> None:
        if provider in self._lost:
            raise ProviderAwayError(provider, "taken to be lost, for this drill")

    async def _remembered(self, question: tuple[str, ...], ask: Callable[[], Awaitable[Any]]) -> Any:
        if self._memo is None:
            return await ask()
        if question not in self._memo:
            try:
                self._memo[question] = await ask()
            except IcnfsError as error:
                self._memo[question] = error
        answer = self._memo[question]
        if isinstance(answer, IcnfsError):
            raise answer
        return answer


def _refuse(provider: str = "") -> NoReturn:
    raise ProviderRefusedError(provider, "nothing is to be written: this only looks")
