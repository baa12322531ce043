"""One provider whose every share is damaged: what is read is right all the same, and a scrub names the provider.

Reading promises no more: it asks those providers that it expects to be the fastest, and a share that nobody asks for is
neither found bad nor named.  What it does find is restored; it must blame the right one.  A scrub looks at every share.

python -m tests.acceptance.corruption        (every provider, every kind of damage, on an empty machine each time)
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.acceptance.contents import differences, fill, manifest
from tests.acceptance.harness import PROVIDERS, Volume, share_files

PUBLISHES: Final = 7
"""So many segments at least, for the roles to have gone round: every provider holds data shares, not parity alone."""


def flip_bits(share: Path, others: list[Path]) -> None:
    """One bit in every 4 KiB."""
    data = bytearray(share.read_bytes())
    for at in range(0, len(data), 4096):
        data[(at * 7 + 41) % len(data)] ^= 0x10
    share.write_bytes(data)


def truncate(share: Path, others: list[Path]) -> None:
    share.write_bytes(share.read_bytes()[: share.stat().st_size // 2])


def exchange(share: Path, others: list[Path]) -> None:
    """The contents of the next share; the last gets the first's."""
    share.write_bytes(others[(others.index(share) + 1) % len(others)].with_suffix(".kept").read_bytes())


DAMAGES: Final[dict[str, Callable[[Path, list[Path]], None]]] = {
    "flip": flip_bits,
    "truncate": truncate,
    "exchange": exchange,
}


def damage(provider: Path, how: str) -> int:
    """Damages every share that `provider` holds; how many there were."""
    shares = share_files(provider)
    if how == "exchange":
        for share in shares:
            shutil.copy2(share, share.with_suffix(".kept"))
    for share in shares:
        DAMAGES[how](share, shares)
    for share in shares:
        share.with_suffix(".kept").unlink(missing_ok=True)
    return len(shares)


@dataclass
class Published:
    """A volume that is unmounted and published, and what its tree is."""

    volume: Volume
    expected: dict[str, dict[str, Any]]


def publish(root: Path) -> Published:
    """A volume of several segments."""
    volume = Volume(root)
    try:
        volume.init()
        volume.mount()
        for number in range(PUBLISHES):
            fill(volume.mountpoint, number, files=3)
            volume.sync()
        expected = manifest(volume.mountpoint)
        volume.umount("--drain")
    except BaseException:
        volume.close()
        raise
    return Published(volume, expected)


def check(published: Published, root: Path, provider: str, how: str) -> None:
    """A machine of its own over copies of the providers, one of them damaged, recovers and reads everything."""
    copies = {name: root / "providers" / name for name in published.volume.providers}
    for name, place in published.volume.providers.items():
        shutil.copytree(place, copies[name])
    assert damage(copies[provider], how) > 0
    with published.volume.elsewhere(root, copies) as machine:
        machine.recover()
        machine.mount()
        wrong = differences(manifest(machine.mountpoint), published.expected)
        assert not wrong, f"{provider}, {how}: {wrong[:5]}\n{machine.log_tail()}"
        named = bad_providers(machine.status())
        assert named <= {provider}, f"{provider}, {how}: status names {named}\n{machine.log_tail()}"
        machine.icnfs("scrub", "--full", "vol", code=None)
        found = altered(machine)
        assert found.keys() == {provider}, f"{provider}, {how}: altered are {found}\n{machine.log_tail()}"
        assert found[provider] >= PUBLISHES, f"{provider}, {how}: altered are {found}\n{machine.log_tail()}"
        assert f"provider {provider} is suspended for wrong answers" in machine.sync().stderr
        machine.icnfs("scrub", "--full", "vol")  # else it ends with another code
    shutil.rmtree(root)


def bad_providers(status: dict[str, Any]) -> set[str]:
    """The providers that `status --json` says gave bad shares."""
    return {entry["name"] for entry in status["providers"] if entry["bad_shares"]}


def altered(machine: Volume) -> dict[str, int]:
    """By provider, how many shares were found altered by whoever looked at them, which the mount then restores."""
    facts = json.loads(machine.icnfs("health", "--json", "vol", code=None).stdout)
    return {one["name"]: one["outcomes"]["altered"] for one in facts["providers"] if one["outcomes"].get("altered")}


def main() -> int:
    work = Path(tempfile.mkdtemp(prefix="icnfs-corruption-"))
    published = publish(work / "origin")
    with published.volume:
        for provider in PROVIDERS:
            for how in DAMAGES:
                check(published, work / f"{provider}-{how}", provider, how)
                print(f"{provider}, {how}: {len(published.expected)} names read back, provider named", flush=True)
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
