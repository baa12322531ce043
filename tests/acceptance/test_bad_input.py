"""What is given wrongly is refused by one clear line with its own exit code, and nothing is written.

Each case drives the real command over one volume of six directories, which every test gets whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from icnfs.errors import Exit
from icnfs.format import marker
from tests.acceptance.harness import Volume, in_mount_table

VERSION_AT: Final = len(marker.MAGIC) + 1
"""The last byte of a marker's format version."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    """A volume with one head more than `init` publishes."""
    with Volume(tmp_path_factory.mktemp("made")) as volume:
        volume.init()
        yield volume


@pytest.fixture
def volume(made: Volume, tmp_path: Path) -> Iterator[Volume]:
    """A copy of `made` with places of its own: tests may damage it."""
    places = {name: tmp_path / "providers" / name for name in made.providers}
    for name, place in made.providers.items():
        shutil.copytree(place, places[name])
    with Volume(tmp_path, providers=places) as copy:
        shutil.copy2(made.keyfile, copy.keyfile)
        shutil.copytree(made.state_dir / made.name, copy.state_dir / copy.name)
        yield copy


def contents(root: Path) -> dict[Path, bytes]:
    """Every file below `root` but logs, and nothing of a state's folders that are merely there."""
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in ("log", "lock.mdb")}


def refused(volume: Volume, code: Exit, says: str, *argv: str | Path) -> None:
    """The verb ends with `code`, its last line and no other has `says`, and no file has changed."""
    before = contents(volume.root)
    lines = volume.icnfs(*argv, code=code).stderr.splitlines()
    assert [says in line for line in lines if line.startswith("icnfs: ")] == [True], lines
    assert "Traceback" not in "".join(lines)
    assert contents(volume.root) == before
    assert not in_mount_table(volume.mountpoint)


def mount_refused(volume: Volume, code: Exit, says: str, *argv: str | Path) -> None:
    refused(volume, code, says, "mount", *argv, volume.name, volume.mountpoint)


def recover_refused(volume: Volume, code: Exit, says: str, *argv: str) -> None:
    """As `refused`, on a machine without local state."""
    volume.drop_state()
    refused(volume, code, says, "recover", volume.name, *argv)
    assert list(volume.state_dir.iterdir()) == []


def damage(volume: Volume, pattern: str, change: Callable[[bytearray], None]) -> None:
    """Change every object that fits `pattern`, at every provider."""
    for place in volume.providers.values():
        for path in place.glob(pattern):
            raw = bytearray(path.read_bytes())
            change(raw)
            path.write_bytes(raw)


def flip_middle(raw: bytearray) -> None:
    raw[len(raw) // 2] ^= 1


def age_format(raw: bytearray) -> None:
    raw[VERSION_AT] = 9


# --- secrets and configuration ----------------------------------------------------------------------------------------


def test_a_wrong_passphrase(volume: Volume) -> None:
    wrong = volume.root / "wrong"
    wrong.write_text("not this one\n")
    wrong.chmod(0o600)
    volume.icnfs("key", "add", volume.name, "--new-passphrase-file", _secret(volume, "right"))
    mount_refused(volume, Exit.SECRET, "this passphrase does not open the volume", "--passphrase-file", wrong)


def test_a_mistyped_recovery_key_is_told_from_a_wrong_one(volume: Volume, made: Volume) -> None:
    right = made.recovery_key
    mistyped = _secret(volume, right[:-1] + ("0" if right[-1] != "0" else "1"))
    recover_refused(volume, Exit.SECRET, "mistyped", "--recovery-key-file", str(mistyped))


def test_a_typo_in_the_toml(volume: Volume) -> None:
    volume.settings["volume"]["saef"] = 6
    volume.write_toml()
    mount_refused(volume, Exit.CONFIG, "vol.toml: volume.saef: unknown key; did you mean safe?")


def _secret(volume: Volume, text: str) -> Path:
    path = volume.root / f"secret-{len(list(volume.root.iterdir()))}"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


# --- init -------------------------------------------------------------------------------------------------------------


def test_a_place_of_another_volume_at_init_names_all_of_them(volume: Volume) -> None:
    volume.drop_state()
    refused(volume, Exit.FOREIGN_PROVIDER, "provider amsterdam, helsinki, lyon", "init", volume.name)


def test_something_else_where_the_local_state_is_to_be_refuses_init_before_any_provider_is_written(
    volume: Volume,
) -> None:
    volume.drop_state()
    for place in volume.providers.values():
        shutil.rmtree(place)
    stray = volume.state_dir / volume.name / "notes"
    stray.parent.mkdir()
    stray.write_text("mine")
    refused(volume, Exit.LOCAL_DISK, "move it away", "init", volume.name)


def test_init_makes_no_parent_of_a_place_and_writes_nowhere_without_it(volume: Volume) -> None:
    volume.drop_state()
    for place in volume.providers.values():
        shutil.rmtree(place)
    volume.providers["lyon"] = volume.root / "disk" / "lyon"
    volume.write_toml()
    refused(volume, Exit.TOO_FEW_PROVIDERS, "correct provider.lyon.url", "init", volume.name)
    assert not any(place.exists() for place in volume.providers.values())


# --- recovery ---------------------------------------------------------------------------------------------------------


def test_fewer_than_k_providers_at_recovery(volume: Volume) -> None:
    for name in ("lyon", "munich", "paris"):
        shutil.rmtree(volume.providers[name])
    recover_refused(volume, Exit.TOO_FEW_PROVIDERS, "4 providers are needed and 3 can be used")


@pytest.mark.parametrize("objects", ["heads/*", "slots/*"])
def test_heads_or_key_slots_damaged_everywhere_are_not_taken_for_none(volume: Volume, objects: str) -> None:
    damage(volume, objects, flip_middle)
    recover_refused(volume, Exit.DAMAGED, "that providers show are damaged (amsterdam, helsinki, lyon")


def test_a_volume_of_a_newer_format_asks_for_an_upgrade(volume: Volume) -> None:
    damage(volume, marker.NAME, age_format)
    recover_refused(volume, Exit.NEWER_FORMAT, "upgrade icnfs")


def test_a_newest_head_damaged_everywhere_is_not_silently_undone(volume: Volume) -> None:
    second = volume.elsewhere(volume.root / "second")
    second.recover()
    damage(volume, "heads/0000000000000002-*", flip_middle)
    recover_refused(volume, Exit.DAMAGED, "go back to the head 1-1 with --at-least 1-1")
    volume.recover("--at-least", "1-1")


def test_a_place_of_another_volume_is_named_and_worked_around(volume: Volume) -> None:
    (volume.providers["paris"] / marker.NAME).write_bytes(marker.pack_marker(os.urandom(marker.TOKEN_SIZE)))
    volume.drop_state()
    assert "left out: provider paris: its place belongs to another volume" in volume.recover().stderr


# --- mounting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda at: at.rmdir(), "does not exist; create it with `mkdir`"),
        (lambda at: (at / "file").touch(), "not empty"),
        (lambda at: (at.rmdir(), at.touch()), "not a directory"),
    ],
)
def test_a_mount_point_that_cannot_be_one(volume: Volume, make: Callable[[Path], object], says: str) -> None:
    make(volume.mountpoint)
    mount_refused(volume, Exit.MOUNT_POINT, says)


def test_a_damaged_keyring_names_its_file_and_the_remedy(volume: Volume) -> None:
    slots = volume.state_dir / volume.name / "slots"
    slots.write_bytes(slots.read_bytes()[:-1])
    mount_refused(volume, Exit.DAMAGED, f"{slots}: ")


@pytest.mark.mount
def test_a_volume_that_is_mounted_already(volume: Volume) -> None:
    volume.mount()
    says = "mounted here already"
    assert says in volume.icnfs("mount", volume.name, volume.mountpoint, code=Exit.MOUNTED).stderr
    volume.umount()


@pytest.mark.mount
def test_places_of_a_newer_format_are_named_when_it_is_mounted_and_local_state_is_used(volume: Volume) -> None:
    damage(volume, "volume", age_format)
    warned = volume.icnfs("mount", volume.name, volume.mountpoint).stderr.splitlines()
    assert len(warned) == len(volume.providers)
    for name, line in zip(sorted(volume.providers), sorted(warned), strict=True):
        assert line.startswith(f"icnfs: provider {name}: nothing is stored there: ")
        assert line.count("provider ") == 1
        assert "upgrade icnfs" in line
    (volume.mountpoint / "mine").write_bytes(b"kept")
    volume.umount()


@pytest.mark.mount
def test_there_is_room_from_the_first_moment_though_a_provider_is_away(volume: Volume) -> None:
    shutil.rmtree(volume.providers["paris"])
    volume.mount()
    assert os.statvfs(volume.mountpoint).f_bavail > 0
    volume.umount()


@pytest.mark.mount
def test_draining_without_providers_leaves_the_mount_and_says_how_to_go_on(volume: Volume) -> None:
    volume.mount()
    (volume.mountpoint / "mine").write_bytes(b"kept")
    away = volume.root / "away"
    volume.root.joinpath("providers").rename(away)
    drained = volume.icnfs("umount", "--drain", "--deadline", "2", volume.mountpoint, code=Exit.DEGRADED)
    assert "stays mounted" in drained.stderr
    assert in_mount_table(volume.mountpoint)
    away.rename(volume.root / "providers")
    volume.umount("--drain")


@pytest.mark.mount
def test_after_a_recovery_elsewhere_it_is_read_only_keeps_its_data_and_says_so(volume: Volume) -> None:
    volume.mount()
    volume.elsewhere(volume.root / "second").recover()
    (volume.mountpoint / "mine").write_bytes(b"kept")
    says = "another machine went on with this volume"
    assert says in volume.sync(code=Exit.FENCED).stderr
    with pytest.raises(OSError, match="Read-only"):
        (volume.mountpoint / "more").touch()
    volume.umount()
    assert says in volume.icnfs("mount", volume.name, volume.mountpoint).stderr
    assert (volume.mountpoint / "mine").read_bytes() == b"kept"
    added = volume.icnfs("key", "add", volume.name, "--new-recovery-key").stderr
    assert "No provider gets its slot" in added
    volume.umount()
