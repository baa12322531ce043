"""The audit on a real mount: what was lost and altered while nobody read it is found, counted and put right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from tests.acceptance.contents import fill
from tests.acceptance.harness import Volume, mounted_volume, share_files, wait_for

SETTINGS: Final = {"audit": {"days": 0.0001, "most": 100}, "volume": {"publish_seconds": 3600}}
"""Every share within nine seconds."""


def outcomes(volume: Volume) -> dict[str, Counter[str]]:
    """By provider, how many checks came to what."""
    health: dict[str, Any] = json.loads(volume.icnfs("health", "--json", volume.name, code=None).stdout)
    return {one["name"]: Counter(one["outcomes"]) for one in health["providers"]}


def largest_share(volume: Volume, provider: str) -> Path:
    """One of contents, that is: what was a run may be one no more."""
    return max(share_files(volume.providers[provider]), key=lambda path: path.stat().st_size)


@pytest.mark.mount
@pytest.mark.timeout(180)
def test_a_lost_and_an_altered_share_are_counted_and_restored_by_the_mount_itself(tmp_path: Path) -> None:
    with mounted_volume(tmp_path, settings=SETTINGS) as volume:
        for seed in range(2):
            fill(volume.mountpoint, seed, files=2)
            volume.sync()
        wait_for(lambda: all(one["present"] for one in outcomes(volume).values()), 60, "every provider was asked")
        assert not any(one["missing"] or one["altered"] for one in outcomes(volume).values())
        lost, altered = largest_share(volume, "lyon"), largest_share(volume, "munich")
        before = lost.read_bytes(), altered.read_bytes()
        lost.unlink()
        altered.write_bytes(before[1][:40] + bytes([before[1][40] ^ 1]) + before[1][41:])
        wait_for(
            lambda: lost.exists() and (lost.read_bytes(), altered.read_bytes()) == before,
            90,
            f"both shares are what they were\n{volume.log_tail()}",
        )
        found = outcomes(volume)
        assert {name: one["missing"] for name, one in found.items() if one["missing"]} == {"lyon": 1}
        assert {name: one["altered"] for name, one in found.items() if one["altered"]} == {"munich": 1}
        wait_for(lambda: volume.icnfs("health", volume.name, code=None).returncode == 0, 30, "all is safe")
