"""What a volume says of itself: facts for `status`, `info` and statfs, plain enough to become JSON.  Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from icnfs.format.segment import SegmentInfo
from icnfs.transfer.messages import ProviderState
from icnfs.volume.health import HealthCounts


@dataclass(frozen=True)
class ProviderStatus:
    """One provider; bytes since the mount began, rates in bytes per second as measured lately.

    It holds `shares`, should hold `missing` more, and with `draining` is to hold none.
    """

    name: str
    owner: str
    country: str
    state: str
    error: str
    free_bytes: int | None
    latency_s: float | None
    bytes_up: int
    bytes_down: int
    bad_shares: int
    missing: int
    rate_up: float | None = None
    rate_down: float | None = None
    shares: int = 0
    draining: bool = False


@dataclass(frozen=True)
class Status:
    """The state of an open volume.

    `published_batch` is -1 and `published_ns` 0 before the first publish; `pending` tells whether anything committed
    is not published yet.  `missing_shares` are not stored; `lost_shares` are stored at providers that cannot give them
    back now, or are not counted on: down, suspended, or their place found empty or foreign.  `unsafe_segments` counts
    segments of which fewer than `safe` owners hold a share that is neither; `degraded` is when there are such, or the
    last publish failed, or the keys are not safe: `keys` tells why, "" where they are.  `moving` segments have shares
    where the policy or a drain leaves them none; `health` counts all segments by verdict.
    `held_bytes` are those of all segments' data shares (the providers hold n/k times as much), and `live_bytes` of the
    sealed chunks in them that are needed, as of the last round of collection; None before it.
    `fenced` and `failure` are messages, "" where there is nothing to say.
    """

    name: str
    volume: str
    code: str
    safe: int
    epoch: int
    sequence: int
    read_only: bool
    fenced: str
    degraded: bool
    failure: str
    files: int
    bytes_used: int
    dirty_bytes: int
    pending: bool
    committed_batch: int
    published_batch: int
    published_ns: int
    published_age_s: float | None
    unsafe_segments: int
    missing_shares: int
    lost_shares: int
    transfer_restarts: int
    providers: tuple[ProviderStatus, ...]
    moving: int = 0
    health: HealthCounts = field(default_factory=HealthCounts)
    held_bytes: int | None = None
    live_bytes: int | None = None
    keys: str = ""


@dataclass(frozen=True)
class SharePlace:
    """Where one share lies."""

    index: int
    provider: str
    owner: str
    stored: bool


@dataclass(frozen=True)
class ChunkPlace:
    """One chunk of a file: its version (None: only patches yet), bytes as sealed, where it is, and what it survives.

    `local` tells whether the sealed chunk is on this machine; `share` and `shares` are of the segment that holds it at
    the providers, None and empty before it is published.  `survives` is how many owners may be lost, -1 for none at all
    (this machine alone holds it).
    """

    index: int
    version: int | None
    length: int
    local: bool
    segment: str
    share: int | None
    shares: tuple[SharePlace, ...]
    survives: int


@dataclass(frozen=True)
class Usage:
    """Room at the providers for contents, in bytes of contents (not of shares)."""

    free_bytes: int
    total_bytes: int


def usable_bytes(free: Sequence[int], k: int, n: int) -> int:
    """Bytes of contents that fit, when each provider has so many bytes free and n distinct ones hold each segment.

    With t bytes of shares per share index, n * t must fit where none takes more than t: the largest such t, times k.
    """
    if len(free) < n:
        return 0
    low, high = 0, sum(free) // n
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(room, middle) for room in free) >= n * middle:
            low = middle
        else:
            high = middle - 1
    return low * k


def share_pools(states: Iterable[ProviderState]) -> list[int]:
    """Free bytes of each provider that says, where those that share one disk share its room."""
    known = [s for s in states if s.free_bytes is not None]
    members: dict[str, int] = {}
    for state in known:
        members[state.pool or state.name] = members.get(state.pool or state.name, 0) + 1
    return [(s.free_bytes or 0) // members[s.pool or s.name] for s in known]


def survives(segment: SegmentInfo, owner_of: dict[str, str]) -> int:
    """How many owners may be lost, whichever they are, until fewer than k shares are left; -1 where it is too late."""
    held: dict[str, int] = {}
    for share in segment.shares:
        if share.stored and share.provider in owner_of:
            owner = owner_of[share.provider]
            held[owner] = held.get(owner, 0) + 1
    left = sum(held.values())
    lost = -1
    for count in [0, *sorted(held.values(), reverse=True)]:
        left -= count
        if left < segment.k:
            break
        lost += 1
    return lost
