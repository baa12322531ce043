"""How long nothing has moved while there is no room: writers wait while something does, and no longer.

One standstill is shared by all who wait, so that whoever comes late does not wait as long again.
"""

from __future__ import annotations

from typing import Final

FULL_WAIT: Final = 10.0
"""Seconds without any movement after which there is no room."""

LEAST_WAIT: Final = 0.5
"""Seconds that a writer waits in any case: what was deleted just before is room by then."""


class Standstill:
    """Of one store; times are trio's, in seconds."""

    def __init__(self) -> None:
        self._how: object = None
        self._since = 0.0
        self._lasts = False

    def until(self, how: object, now: float) -> float:
        """When there is no room, if things stay as they are: `how` they are compares."""
        if not self._lasts or how != self._how:
            self._how, self._since, self._lasts = how, now, True
        return self._since + FULL_WAIT

    def ends(self) -> None:
        """There is room again."""
        self._lasts = False
