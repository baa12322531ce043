"""`icnfs snapshot restore`: a file or tree of a snapshot back into the volume, without copying what it holds."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import click

from icnfs.cli.output import json_option, print_json, watching
from icnfs.cli.taking import PATH
from icnfs.cli.verb_clone import in_use, place_for
from icnfs.config import load, runtime_dir
from icnfs.config.paths import check_volume_name
from icnfs.control.client import Mount
from icnfs.control.facts import CloneFacts, MountStatus, printable_path
from icnfs.control.mounts import Mounted, mount_of, mounted
from icnfs.control.protocol import RestoreRequest, StatusRequest, take_facts
from icnfs.errors import InterruptedByUserError, NotMountedError, SnapshotError, UsageError
from icnfs.format.snapshot import NAME_RULE, is_name


@click.command("restore")
@click.argument("name", metavar="NAME")
@click.argument("snapshot", metavar="SNAP")
@click.argument("path", metavar="PATH", type=PATH)
@click.option("--to", type=PATH, metavar="DEST", help="Where to make it; the default is where it was.")
@json_option
def restore(name: str, snapshot: str, path: Path, to: Path | None, as_json: bool) -> None:
    """Bring back the file or tree PATH as it was in snapshot SNAP of the mounted volume NAME.

    PATH is beneath where the volume is mounted, or, not beginning with a slash, beneath its root. Nothing that exists
    is replaced; where DEST is a directory it is made in that.
    """
    checked(snapshot)
    mount = mount_keeping(name)
    found = _place_of(mount)
    inner = inner_path(path, found.point)
    if to is None and os.path.lexists(found.point / inner):
        raise UsageError(f"{printable_path(found.point / inner)}: exists already; choose another place with --to")
    parent, last = place_for(PurePath("/") / inner, to if to is not None else found.point / inner)
    with in_use(parent):
        other, directory = mount_of(parent)
        if other.device != found.device:
            raise UsageError(f"{printable_path(parent)}: does not lie in volume {name}; choose a place within it")
        wanted = RestoreRequest(snapshot, os.fsencode(inner) if inner.name else b"", directory, os.fsencode(last))
        with watching(f"Restoring {printable_path(inner)}") as show:
            try:
                answer = mount.ask(wanted, show)
            except KeyboardInterrupt:
                raise InterruptedByUserError("interrupted; nothing was made") from None
    facts = take_facts(answer, CloneFacts)
    if as_json:
        print_json({"path": printable_path(parent / last), "files": facts.files})


def inner_path(path: PurePath, point: PurePath) -> PurePath:
    """Where in its volume, mounted at `point`, `path` lies; UsageError where that is outside."""
    plain = PurePath(os.path.normpath(point / path))
    if not plain.is_relative_to(point):
        raise UsageError(f"{printable_path(path)}: not beneath {printable_path(point)}, where the volume is mounted")
    return plain.relative_to(point)


def mount_keeping(name: str) -> Mount:
    """The mount of volume `name`; NotMountedError without one, or ConfigError where there is no such volume."""
    mount = Mount(runtime_dir(), check_volume_name(name))
    if not mount.alive():
        load(name)  # a volume that is not even configured is another error
        raise NotMountedError(
            f"volume {name} is not mounted, and its mount keeps the snapshots; `icnfs mount {name} DIR` first"
        )
    return mount


def checked(snapshot: str) -> str:
    """The name of a snapshot; SnapshotError for what can be none."""
    if not is_name(snapshot):
        raise SnapshotError(f"{snapshot[:80]!r} cannot name a snapshot: that takes {NAME_RULE}")
    return snapshot


def _place_of(mount: Mount) -> Mounted:
    """Where a volume is mounted."""
    point = take_facts(mount.ask(StatusRequest()), MountStatus).mount_point
    for found in reversed(mounted()):
        if found.volume == mount.volume and printable_path(found.point) == point:
            return found
    raise NotMountedError(f"volume {mount.volume} is no longer mounted; mount it again")
