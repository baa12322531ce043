"""Whether a provider takes what it is given: one that answers, and refuses to store, is given nothing for a while.

    writes    becomes    when
    ok        refused    it refused to store an object: it is full, read-only, or the keys may not write; or it failed
                         to, twice in a row, and answered what else it was asked
    refused   due        its gap has passed: GAP_SECONDS, and twice as long after each refusal more, GAP_MAX_SECONDS at
                         most; or, where it was full, a probe shows room again.  Where it failed the first gap is
                         FAILED_GAP_SECONDS: an overload soon passes
    due       refused    the one object that was tried was refused again
    due       ok         it was stored

What was refused is remembered by size: smaller objects are given to it as before, for a disk without room for a share
may have room for a head, and their success proves nothing of larger ones where it was full.  So however much is to be
stored, one that refuses is sent one object of each gap, and as few more as are smaller than all before.

Pure: it is told the time.
"""

from __future__ import annotations

from typing import Final

from icnfs.errors import ProviderAwayError, ProviderError, ProviderFullError

GAP_SECONDS: Final = 5.0
FAILED_GAP_SECONDS: Final = 1.0
GAP_MAX_SECONDS: Final = 300.0


class Refusals:
    """One provider's; sizes are in bytes."""

    def __init__(self) -> None:
        self._refusal: ProviderError | None = None
        self._least = self._most = 0
        """The smallest and the largest object that it does not take, as far as is known."""
        self._due = float("-inf")
        self._gap = GAP_SECONDS
        self._room: int | None = None
        """The least room that a probe showed since it was full."""
        self._trying = False

    @property
    def reason(self) -> str:
        """The last refusal in words, "" where it takes what it is given, as far as is known."""
        return "" if self._refusal is None else self._refusal.detail

    def state(self, now: float) -> str:
        """As in the table."""
        if self._refusal is None:
            return "ok"
        return "due" if now >= self._due else "refused"

    def begin(self, size: int, now: float) -> bool:
        """An object is to be stored: whether it is the one that is tried.  `done` must follow where it is.

        Raises the refusal anew, as an error of its kind, where the object would be refused as far as is known.
        """
        if self._refusal is None or size < self._least:
            return False
        if self._trying or now < self._due:
            raise type(self._refusal)(self._refusal.provider, self._refusal.detail)
        self._trying = True
        return True

    def done(self) -> None:
        """What became of the object that was tried was told, or nothing became of it."""
        self._trying = False

    def stored(self, size: int) -> None:
        """It took an object."""
        if size < self._least:
            return
        if size >= self._most or not isinstance(self._refusal, ProviderFullError):
            self._refusal, self._least, self._most, self._room = None, 0, 0, None
        else:
            self._least = size + 1

    def refused(self, error: ProviderError, size: int, now: float) -> None:
        """It did not."""
        if self._refusal is None:
            self._least = self._most = size
            self._gap = FAILED_GAP_SECONDS if isinstance(error, ProviderAwayError) else GAP_SECONDS
        elif now >= self._due:
            self._gap = min(2 * self._gap, GAP_MAX_SECONDS)
        else:  # of what was sent before it was known
            self._least, self._most = min(self._least, size), max(self._most, size)
            return
        self._refusal = error
        self._least, self._most = min(self._least, size), max(self._most, size)
        self._due, self._room = now + self._gap, None

    def told(self, free_bytes: int | None, now: float) -> None:
        """A probe shows so much room."""
        if free_bytes is None or not isinstance(self._refusal, ProviderFullError):
            return
        if self._room is not None and free_bytes >= self._room + self._most:
            self._due = min(self._due, now)
        self._room = free_bytes if self._room is None else min(self._room, free_bytes)
