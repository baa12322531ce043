"""Who asks: what the kernel tells of the process behind a request, and what can be found out about it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, NamedTuple, Protocol


class Caller(Protocol):
    """As pyfuse3.RequestContext has it."""

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...

    @property
    def pid(self) -> int:
        """Of the thread that asks; 0 where the mount cannot see it."""

    @property
    def umask(self) -> int: ...


class Known(NamedTuple):
    """A caller by its numbers."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0


ROOT: Final = Known(0, 0)


def is_member(who: Caller, group: int, proc: Path = Path("/proc")) -> bool:
    """Whether `who` is of that group, by its own or by one of the supplementary ones, which only /proc tells.

    The caller waits in its call meanwhile.  Where nothing is told, it is not.
    """
    if who.gid == group:
        return True
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / str(who.pid) / "status").read_text("ascii", "replace").splitlines():
            if line.startswith("Groups:"):
                return group in map(int, line.split()[1:])
    return False
