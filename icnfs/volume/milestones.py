"""Since when the last head has held which generation: what a grace is counted from.

A head that names something is the last one until a head without it is durable, however long before that the thing was
condemned.  So a moment is kept now and then with the generation that the last head held by then; what was condemned in
that generation or before, no head that was the last one since has named.  Kept locally; a machine that lacks it waits.
Times are Unix nanoseconds of this machine's clock.
"""

from __future__ import annotations

from typing import Final

import msgspec

PARTS: Final = 16
"""A moment is kept for each such part of a grace, so that what is condemned waits for little more than the grace."""


class Milestone(msgspec.Struct, frozen=True, array_like=True):
    """At `time_ns` the last head held `generation`, or a later one."""

    time_ns: int
    generation: int


Milestones = tuple[Milestone, ...]
"""The oldest first."""


def passed(kept: Milestones, now: int, grace: int) -> int:
    """Whatever was condemned up to this generation has waited for the grace; -1 for none."""
    return max((each.generation for each in kept if each.time_ns <= now - grace), default=-1)


def extended(kept: Milestones, now: int, grace: int, generation: int) -> Milestones:
    """What to keep from now on, when the last head holds `generation`; the same where there is no need for more."""
    past = [each for each in kept if each.time_ns <= now - grace]
    rest = (*past[-1:], *kept[len(past) :])
    if not rest or rest[-1].time_ns <= now - grace // PARTS or rest[-1].time_ns > now:
        return (*rest, Milestone(now, generation))
    return kept


def encode(kept: Milestones) -> bytes:
    return msgspec.msgpack.encode(kept)


def decode(data: bytes | None) -> Milestones:
    """Of anything else, none: then all that is condemned waits anew."""
    try:
        return msgspec.msgpack.decode(data or b"", type=Milestones)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
