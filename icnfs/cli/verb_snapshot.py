"""`icnfs snapshot`: the trees of a volume that are kept."""

from __future__ import annotations

import time
from typing import Final

import click

from icnfs.cli.comparing import diff
from icnfs.cli.dates import seconds_of
from icnfs.cli.output import json_option, moment, print_facts, print_json, print_rows, say, size, watching
from icnfs.cli.restoring import checked, mount_keeping, restore
from icnfs.cli.taking import TEXT
from icnfs.cli.verb_sync import deadline_option
from icnfs.control.facts import SnapshotFacts
from icnfs.control.protocol import (
    DeleteSnapshotRequest,
    LockSnapshotRequest,
    MakeSnapshotRequest,
    SnapshotsRequest,
    take_facts,
)
from icnfs.errors import UsageError

HEAD: Final = ("snapshot", "taken", "by", "files", "bytes", "locked until")


@click.group("snapshot")
def verb() -> None:
    """Keep, lock, list, compare and delete snapshots of a volume's tree, and restore what they have."""


verb.add_command(restore)
verb.add_command(diff)


@verb.command("create")
@click.argument("name", metavar="NAME")
@click.option("--as", "snapshot", type=TEXT, metavar="SNAP", help="What to call it; the default is the time, in UTC.")
@click.option("--until", metavar="DATE", help="Nothing deletes it before DATE (UTC).")
@deadline_option
@json_option
def create(name: str, snapshot: str | None, until: str | None, deadline: float | None, as_json: bool) -> None:
    """Keep the tree of the mounted volume NAME as it is now; returns when that is safe.

    What is not yet published is published first; how long the rest takes does not depend on what the volume holds.
    """
    mount = mount_keeping(name)
    wanted = MakeSnapshotRequest(checked(snapshot or _now()), _date(until), deadline or 0.0)
    with watching(f"Snapshot of {name}") as show:
        facts = take_facts(mount.ask(wanted, show), SnapshotFacts)
    _report(facts, as_json)


@verb.command("lock")
@click.argument("name", metavar="NAME")
@click.argument("snapshot", metavar="SNAP")
@click.option("--until", metavar="DATE", required=True, help="Nothing deletes it before DATE (UTC).")
@json_option
def lock(name: str, snapshot: str, until: str, as_json: bool) -> None:
    """Lock the snapshot SNAP of the mounted volume NAME, or extend its lock; none is ever shortened."""
    request = LockSnapshotRequest(checked(snapshot), _date(until))
    _report(take_facts(mount_keeping(name).ask(request), SnapshotFacts), as_json)


def _report(snapshot: SnapshotFacts, as_json: bool) -> None:
    """What was made or locked, and how far its lock can be relied on."""
    if as_json:
        print_json(snapshot)
    else:
        print_facts(_facts(snapshot))
    if snapshot.until and not snapshot.enforced:
        say(
            "icnfs: the lock binds only this client: too few providers keep what these credentials ask to delete; see "
            "LOCKS in icnfs-snapshot(1)"
        )


@verb.command("list")
@click.argument("name", metavar="NAME")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show the snapshots of the mounted volume NAME, the oldest first."""
    facts = take_facts(mount_keeping(name).ask(SnapshotsRequest()), list[SnapshotFacts])
    if as_json:
        print_json(facts)
    else:
        print_rows(HEAD, [_row(each) for each in facts])


@verb.command("delete")
@click.argument("name", metavar="NAME")
@click.argument("snapshots", metavar="SNAP...", nargs=-1, required=True)
def delete(name: str, snapshots: tuple[str, ...]) -> None:
    """Keep the snapshots SNAP of the mounted volume NAME no longer.

    What only they kept is deleted at the providers, after the grace. One that is locked is refused, with its date.
    """
    mount = mount_keeping(name)
    for snapshot in map(checked, snapshots):
        mount.ask(DeleteSnapshotRequest(snapshot))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())


def _date(text: str | None) -> int:
    """The Unix second that --until means, 0 for none; UsageError for one that is past or not a date."""
    if text is None:
        return 0
    seconds = seconds_of(text, "--until")
    if seconds <= time.time():
        raise UsageError(f"--until {text}: that is past; give a date to come")
    return seconds


def _facts(snapshot: SnapshotFacts) -> list[tuple[str, str]]:
    return list(zip(HEAD, _row(snapshot), strict=True))


def _row(snapshot: SnapshotFacts) -> tuple[str, ...]:
    locked = moment(snapshot.until * 10**9) if snapshot.until else "-"
    return (
        snapshot.name,
        moment(snapshot.time_ns),
        "hand" if snapshot.kind == "manual" else f"{snapshot.kind} schedule",
        str(snapshot.files),
        size(snapshot.bytes_used),
        locked,
    )
