"""The registry of sealing salts: which 256-bit salt a number stands for, and which one seals now.

Every mount draws a new salt before it seals anything, and another one when `spent`.  Subkeys derive from the salt, so
two mounts that share a history (a restored copy of the local state, a cloned machine) never share a key.  Promises: a
number never stands for two salts.  It does not know where salts are kept: the caller makes a new one durable before
it becomes `current`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Final

from icnfs.errors import DamagedError
from icnfs.limits import SEALS_PER_KEY

SALT_SIZE: Final = 32
SALT_ID_MAX: Final = 2**32 - 1

APART: Final = 2**31
"""Numbers from here on are for states beside the volume's own, which go on learning the volume's salts; no volume is
mounted so often that it comes to them."""


class Salts:
    """Salts by number (1 to 2**32 - 1).  Safe to share between threads."""

    def __init__(self) -> None:
        self._salts: dict[int, bytes] = {}
        self._current = 0
        self.seals = 0
        """Seals under the current salt so far, over all who seal with it; a bound, not an exact count."""

    def add(self, salt_id: int, salt: bytes) -> None:
        """Make a salt known.  Raises DamagedError where the number or the size is wrong or the number is taken."""
        if not 1 <= salt_id <= SALT_ID_MAX or len(salt) != SALT_SIZE:
            raise DamagedError(f"sealing salt {salt_id} has an impossible number or size; recover from the providers")
        if self._salts.setdefault(salt_id, bytes(salt)) != salt:
            raise DamagedError(f"sealing salt {salt_id} is held with two values; recover from the providers")

    def get(self, salt_id: int) -> bytes:
        """The 32 bytes; DamagedError where the number is unknown."""
        salt = self._salts.get(salt_id)
        if salt is None:
            raise DamagedError(f"sealed bytes name sealing salt {salt_id}, which the volume does not have")
        return salt

    def draw(self, *, apart: bool = False) -> tuple[int, bytes]:
        """The next free number and fresh random bytes for it; the caller persists both, then adds them.

        Once one was drawn `apart`, for a state that publishes nothing, its numbers are none that the volume gives out.
        """
        return max(self.newest + 1, APART if apart else 1), secrets.token_bytes(SALT_SIZE)

    @property
    def newest(self) -> int:
        """The number that was drawn last; 0 where there is none."""
        return max(self._salts, default=0)

    @property
    def current(self) -> int:
        """The number that seals now; 0 before one was chosen, and then nothing can be sealed."""
        return self._current

    @current.setter
    def current(self, salt_id: int) -> None:
        self.get(salt_id)
        if salt_id != self._current:
            self._current = salt_id
            self.seals = 0

    @property
    def spent(self) -> bool:
        """Whether the current salt has sealed so often that the next commit should begin with a new one."""
        return self.seals >= SEALS_PER_KEY

    def __len__(self) -> int:
        return len(self._salts)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return iter(sorted(self._salts.items()))
