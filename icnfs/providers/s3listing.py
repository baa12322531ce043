"""One page of a listing of S3's, read out of its XML as it is gone through.

Promises: any bytes give a page or `ValueError`; no tree is built, so memory is that of the keys, and a page that is
larger than a page can be is given up where that shows.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Final

from icnfs.limits import KIB, LIST_PAGE

PARSED_AT_ONCE: Final = 64 * KIB
"""Characters that are parsed while no other thread runs."""

ELEMENTS_MAX: Final = 32 * LIST_PAGE
"""Of a page, whose objects have some twenty each at most."""

DEPTH_MAX: Final = 16
"""An object's owner's name is four deep."""

TEXT_MAX: Final = 1024
"""Characters of a key, by S3's own bound, which is in bytes."""

_ROOT: Final = "ListBucketResult"
_KEY: Final = ("Contents", "Key")
_MORE: Final = ("IsTruncated",)


def parse(body: bytes) -> tuple[list[str], bool]:
    """The keys, as they come, and whether there are more.  Raises ValueError for what is no listing."""
    text = body.decode("utf-8-sig")  # no other encoding, in which a DOCTYPE would look otherwise
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("a listing that declares what S3 does not")
    page = _Page()
    parser = ET.XMLParser(target=page)
    try:
        for at in range(0, len(text), PARSED_AT_ONCE):
            parser.feed(text[at : at + PARSED_AT_ONCE])
        parser.close()
    except (ET.ParseError, LookupError) as error:  # LookupError: an encoding that nobody knows
        raise ValueError("not XML") from error
    more = page.more.strip()
    if more not in ("true", "false") or not all(page.keys):
        raise ValueError("a listing without its keys, or without its end")
    return page.keys, more == "true"


class _Page:
    """What `ET.XMLParser` tells it of, as far as it matters."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.more = ""
        self._space = ""
        """What stands before every name."""
        self._path: list[str] = []
        """The names of the elements that are open, without the root's; "" for those of another space."""
        self._depth = self._elements = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > ELEMENTS_MAX or self._depth >= DEPTH_MAX:
            raise ValueError("a listing of more than a page can hold")
        self._depth += 1
        if self._depth == 1:
            if tag.rpartition("}")[2] != _ROOT:
                raise ValueError("not a listing")
            self._space = tag.removesuffix(_ROOT)
            return
        self._path.append(tag.removeprefix(self._space) if tag.startswith(self._space) else "")
        if self._path == ["Contents"]:
            self.keys.append("")

    def end(self, tag: str) -> None:
        self._depth -= 1
        if self._path:
            self._path.pop()

    def data(self, text: str) -> None:
        path = tuple(self._path)
        if path == _KEY:
            self.keys[-1] = _longer(self.keys[-1], text)
        elif path == _MORE:
            self.more = _longer(self.more, text)

    def close(self) -> None:
        """Nothing is kept but what is kept."""


def _longer(text: str, more: str) -> str:
    if len(text) + len(more) > TEXT_MAX:
        raise ValueError("a listing with a key that is longer than any")
    return text + more
