"""From what an event loop raises to the one failure that a person can act on."""

from __future__ import annotations

from icnfs.errors import IcnfsError


def single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """An interrupt, if `group` holds one; its first IcnfsError, or what tells of a reader that went away, if it holds
    nothing else; else `group` itself."""
    for kind in (KeyboardInterrupt, IcnfsError, BrokenPipeError):
        found, rest = group.split(kind)
        if found is not None and (rest is None or kind is KeyboardInterrupt):
            first: BaseException = found
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            return first
    return group
