"""`icnfs clone`: a file or tree once more in the same volume, without copying what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import click

from icnfs.cli.mounts import mount_process
from icnfs.cli.output import json_option, print_json, watching
from icnfs.cli.taking import PATH
from icnfs.control.client import Mount
from icnfs.control.facts import CloneFacts, printable_path
from icnfs.control.mounts import mount_of, resolve
from icnfs.control.protocol import CloneRequest, take_facts
from icnfs.errors import InterruptedByUserError, UsageError
from icnfs.limits import NAME_MAX


@click.command("clone")
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("target", metavar="DST", type=PATH)
@json_option
def verb(source: Path, target: Path, as_json: bool) -> None:
    """Make DST what SRC is, a file or a tree, as `cp -a` would, in time that does not depend on what it holds.

    Both lie in one mounted volume. Where DST is a directory the clone is made in it under the name of SRC; any other
    DST must not exist. What is written to SRC meanwhile is not in the clone, which appears whole or not at all.
    """
    parent, name = place_for(resolve(source), target)
    if parent.is_relative_to(resolve(source)) and not os.path.islink(source):
        raise UsageError(f"{printable_path(source)}: cannot be cloned into itself; choose a place outside of it")
    with in_use(source), in_use(parent):
        mount, ino, directory = same_volume(source, parent)
        with watching(f"Cloning {printable_path(source.name)}") as show:
            try:
                answer = mount.ask(CloneRequest(ino, directory, os.fsencode(name)), show)
            except KeyboardInterrupt:
                raise InterruptedByUserError("interrupted; nothing was made") from None
    facts = take_facts(answer, CloneFacts)
    if as_json:
        print_json({"path": printable_path(parent / name), "files": facts.files})


def place_for(source: PurePath, target: Path) -> tuple[Path, str]:
    """The directory that the likeness of `source` goes into, and its name; UsageError where there can be none such."""
    if os.path.isdir(target):
        parent, name = target, source.name
    else:
        parent, name = target.parent, target.name
    if not name or name == "..":
        raise UsageError(f"{printable_path(target)}: cannot be made; give it a name")
    if len(os.fsencode(name)) > NAME_MAX:
        raise UsageError(f"{printable_path(name[:40])}...: too long for a name; {NAME_MAX} bytes are the most")
    if not os.path.isdir(parent):
        raise UsageError(f"{printable_path(parent)}: is not a directory; make it first")
    if os.path.lexists(parent / name):
        raise UsageError(f"{printable_path(parent / name)}: exists already; remove it first, or choose another name")
    return Path(os.path.realpath(parent)), name


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Keep what `path` names from going away: then its inode number stays its own."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{printable_path(path)}: {error.strerror}") from None
    try:
        yield
    finally:
        os.close(fd)


def same_volume(source: Path, parent: Path) -> tuple[Mount, int, int]:
    """The mount process of both, and their inode numbers; UsageError where they lie in different mounts."""
    one, ino = mount_of(source)
    other, directory = mount_of(parent)
    if one.device != other.device:
        raise UsageError(
            f"{printable_path(source)} and {printable_path(parent)} lie in different volumes, which have no contents "
            "in common; use `cp -a`"
        )
    return mount_process(one), ino, directory
