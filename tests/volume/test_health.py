"""The table of health against a naive reading of its words, over every combination of small codes."""

from __future__ import annotations

import itertools
import os

import msgspec
import pytest

from icnfs.format.segment import SegmentInfo
from icnfs.volume.health import RANK, HealthCounts, ShareState, Verdict, judge
from icnfs.volume.volume import Volume
from tests.volume.world import World, describe, put_file

P, A, W, M, X = ShareState.PRESENT, ShareState.ASTRAY, ShareState.AWAY, ShareState.MISSING, ShareState.ALTERED


def naive(shares: tuple[tuple[str, ShareState], ...], k: int, safe: int) -> str:
    """By trying every loss."""
    future = [owner for owner, state in shares if state in (P, A, W)]
    if len(future) < k:
        return "lost"
    if len({owner for owner, state in shares if state == P}) >= safe:
        return "safe"
    now = [owner for owner, state in shares if state in (P, A)]
    for gone in {owner for owner, _ in shares} | {"nobody"}:
        if sum(owner != gone for owner in now) < k:
            return "at risk"
    return "degraded"


OWNERS = {4: ("abcd", "aabc"), 5: ("abcde", "aabbc"), 3: ("abc", "aab"), 2: ("ab",)}


@pytest.mark.parametrize(("k", "n"), [(1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (2, 5), (3, 5)])
def test_every_combination_is_judged_as_the_words_say(k: int, n: int) -> None:
    seen = set()
    for owners in OWNERS[n]:
        for states in itertools.product(ShareState, repeat=n):
            shares = tuple(zip(owners, states, strict=True))
            for safe in range(k + 1, n + 1):
                verdict = judge(shares, k, safe)
                assert verdict == naive(shares, k, safe), (shares, k, safe)
                seen.add(verdict)
    assert seen == set(Verdict)


@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 4), (3, 5)])
def test_safe_survives_any_safe_less_k_owners_and_a_better_share_is_never_worse(k: int, n: int) -> None:
    better = {M: (W,), X: (W,), W: (A, P), A: (P,), P: ()}
    for owners in OWNERS[n]:
        for states in itertools.product(ShareState, repeat=n):
            shares = tuple(zip(owners, states, strict=True))
            for safe in range(k + 1, n + 1):
                verdict = judge(shares, k, safe)
                if verdict is Verdict.SAFE:
                    for gone in itertools.combinations(set(owners), min(safe - k, len(set(owners)))):
                        assert sum(state in (P, A) and owner not in gone for owner, state in shares) >= k
                for at, state in enumerate(states):
                    for other in better[state]:
                        changed = (*shares[:at], (owners[at], other), *shares[at + 1 :])
                        assert RANK[judge(changed, k, safe)] >= RANK[verdict]


def test_missing_shares_may_be_left_out() -> None:
    assert judge([("a", P), ("b", P), ("c", M)], 2, 3) is judge([("a", P), ("b", P)], 2, 3) is Verdict.AT_RISK


# --- of a volume ------------------------------------------------------------------------------------------------------


async def write(volume: Volume) -> None:
    for number in range(3):
        await put_file(volume, b"f%d" % number, os.urandom(900_000))
        await volume.sync()
    await volume.loaded.wait()


def without(segment: SegmentInfo, *indexes: int) -> SegmentInfo:
    shares = tuple(
        msgspec.structs.replace(share, stored=share.stored and index not in indexes)
        for index, share in enumerate(segment.shares)
    )
    return msgspec.structs.replace(segment, shares=shares)


def test_a_volume_counts_its_segments_and_lists_the_worst_first_in_pages(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        total = sum(group.segments for group in volume.repair.groups())
        assert total >= 3
        assert volume.health().counts() == HealthCounts(safe=total)
        assert (await volume.health().page("", 100)).segments == ()
        infos = [info for id, _ in volume.repair.held() if (info := volume._segment(id)) is not None]
        lost, risk, degraded = infos[:3]
        await describe(volume, without(lost, 0, 1, 2), without(risk, 3, 4), without(degraded, 5))
        assert volume.health().counts() == HealthCounts(safe=total - 3, degraded=1, at_risk=1, lost=1)
        pages = []
        after = ""
        while True:
            page = await volume.health().page(after, 1)
            pages += page.segments
            after = page.after
            if not after:
                break
        assert [(segment.id, segment.verdict) for segment in pages] == [
            (lost.id.hex(), "lost"),
            (risk.id.hex(), "at risk"),
            (degraded.id.hex(), "degraded"),
        ]
        assert [share.index for share in pages[1].shares if share.state == "missing"] == [3, 4]
        assert volume.status().health == volume.health().counts()

    here.run(main)


def test_providers_that_are_down_or_suspended_hold_nothing_for_now(world: World) -> None:
    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        total = volume.health().counts().safe
        world.away("ada")
        await volume.first_look()
        assert volume.health().counts() == HealthCounts(degraded=total)
        world.away("ada", "bee")
        await volume.first_look()
        assert volume.health().counts() == HealthCounts(at_risk=total)
        world.away("ada", "bee", "cat")
        await volume.first_look()
        assert volume.health().counts() == HealthCounts(at_risk=total), "they may come back"
        [first, *_] = (await volume.health().page("", 1)).segments
        assert sorted(share.provider for share in first.shares if share.state == "away") == ["ada", "bee", "cat"]

    here.run(main)


def test_a_share_that_is_known_to_be_bad_counts_as_such_though_it_is_stored(world: World) -> None:
    from icnfs.volume.health import Health

    here = world.machine()
    here.init()

    async def main(volume: Volume) -> None:
        await write(volume)
        total = volume.health().counts().safe
        id = volume.repair.held()[0][0]
        bad = {id: {0: X, 1: M}}
        health = Health(volume.network, volume.repair, volume._segment, bad)
        assert health.counts() == HealthCounts(safe=total - 1, at_risk=1)
        [segment] = (await health.page("", 10)).segments
        assert [share.state for share in segment.shares] == [X, M, P, P, P, P]
        suspended = Health(volume.network, volume.repair, volume._segment, {}, {"fox"})
        assert suspended.counts() == HealthCounts(degraded=total)

    here.run(main)
