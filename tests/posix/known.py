"""Where icnfs answers otherwise than ext4, and why that is right or cannot be helped: the one list of differences."""

from __future__ import annotations

from typing import Final, NamedTuple


class Difference(NamedTuple):
    """What the mount answers instead, and the reason."""

    answer: object
    reason: str


KNOWN: Final[dict[str, Difference]] = {}
