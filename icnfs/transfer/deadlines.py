"""How long a call to transfer may take where nobody says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from icnfs.limits import HEDGE_SECONDS


@dataclass(frozen=True)
class Deadlines:
    """Seconds that a call gets when it names no deadline of its own, and after which a read is hedged."""

    read: float = 20.0
    write: float = 300.0
    object: float = 30.0
    hedge: float = HEDGE_SECONDS


DEFAULT_DEADLINES: Final = Deadlines()
