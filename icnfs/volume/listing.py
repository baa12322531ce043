"""Listing what lies at one provider, page by page, however much it makes up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from icnfs.errors import ProviderLiesError
from icnfs.limits import LIST_PAGE
from icnfs.providers.base import LISTED_MAX
from icnfs.volume.network import Network

LIST_SECONDS: Final = 60.0
"""Bound of each page."""


async def pages(network: Network, provider: str, prefix: str) -> AsyncIterator[list[str]]:
    """All names that begin with `prefix`, in order.  Raises `ProviderError`."""
    after, full, count = "", True, 0
    while full:
        page = await network.transfer.list_objects(provider, prefix, after, page=True, deadline=LIST_SECONDS)
        yield page
        full, count = len(page) >= LIST_PAGE, count + len(page)
        if count > LISTED_MAX:
            raise ProviderLiesError(provider, f"its listing does not end within {LISTED_MAX} names")
        after = page[-1] if page else after
