"""`icnfs scrub`: verifies every share at every provider through the mount, which restores what is found bad."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import click

from icnfs.cli.output import Show, age, json_option, print_facts, print_json, print_rows, say, size, watching
from icnfs.cli.taking import Above
from icnfs.config import load, runtime_dir
from icnfs.config.paths import check_volume_name
from icnfs.control.client import Mount
from icnfs.control.protocol import RATE_MAX, OrphansRequest, ScrubRequest, take_facts
from icnfs.errors import DamagedError, DegradedError, InterruptedByUserError, NotMountedError, UsageError
from icnfs.volume.orphans import OrphanReport
from icnfs.volume.scrub import LACKING, ScrubReport

OUTCOMES: Final = ("present", "missing", "altered", LACKING, "down", "unknown")
MEGA: Final = 1_000_000


@click.command("scrub")
@click.argument("name", metavar="NAME")
@click.option("--full", is_flag=True, help="Read every byte of every share, not its root and one leaf alone.")
@click.option("--restart", is_flag=True, help="Begin anew, where an interrupted one would go on.")
@click.option(
    "--rate",
    type=Above(RATE_MAX / MEGA),
    metavar="MB",
    help="Read at most so many megabytes a second.",
)
@click.option("--orphans", is_flag=True, help="Verify nothing; delete shares that nothing names, after a grace.")
@json_option
def verb(name: str, full: bool, restart: bool, rate: float | None, orphans: bool, as_json: bool) -> None:
    """Verify every share of the mounted volume NAME at its provider, now; what is bad is restored by the mount.

    Interrupted, it goes on with the next call. Ends with 0 only where every share was looked at and is what was stored.
    What else lies at the providers is told, and deleted with --orphans alone.
    """
    if orphans and (full or restart or rate is not None):
        raise UsageError("--orphans verifies nothing; leave out --full, --restart and --rate")
    mount = Mount(runtime_dir(), check_volume_name(name))
    if not mount.alive():
        load(name)  # a volume that is not even configured is another error
        raise NotMountedError(f"volume {name} is not mounted, and only a mount scrubs; `icnfs mount {name} DIR` first")
    if orphans:
        _clear(name, mount, as_json)
        return
    request = ScrubRequest(full, restart, max(1, round(rate * MEGA)) if rate is not None else 0)
    try:
        with _watching(name) as show:
            report = take_facts(mount.ask(request, show), ScrubReport)
    except KeyboardInterrupt:
        raise InterruptedByUserError("interrupted; what was verified is kept, call it again to go on") from None
    if as_json:
        print_json({"name": name, "good": report.is_good, **dataclasses.asdict(report)})
    else:
        _print(name, report)
    _judge(name, report)


def _watching(name: str) -> AbstractContextManager[Show]:
    """A bar on a terminal; elsewhere nothing, for it may take hours, and cron mails what is said."""
    return watching(f"Scrub of {name}", left=True) if sys.stderr.isatty() else nullcontext(lambda _: None)


def _print(name: str, report: ScrubReport) -> None:
    how = "every byte" if report.full else "roots, and a leaf of each"
    facts = [
        ("volume", name),
        ("verified", f"{how}{', going on from an earlier call' if report.resumed else ''}"),
        ("shares", f"{report.count('present')} of {report.shares} are what was stored"),
        ("read", size(report.read_bytes)),
    ]
    if report.count("missing", "altered"):
        facts.append(("bad", f"{report.restored} restored, {report.queued} to be restored, {report.beyond} beyond it"))
    if report.bad_slots:
        facts.append(("key slots", f"{report.bad_slots} were missing or altered, and are stored anew"))
    print_facts(facts)
    rows = [
        (provider, *(str(counts.get(outcome, 0)) for outcome in OUTCOMES))
        for provider, counts in sorted(report.counts.items())
    ]
    print_rows(("provider", *OUTCOMES), rows)
    if report.strays is None:
        say("What else lies at the providers could not be listed; the mount's log tells why.")
        return
    _print_strays(report.strays)
    if any(there.orphans for there in report.strays.providers.values()):
        say(f"Nothing names the orphans; `icnfs scrub --orphans {name}` deletes those that were such for long enough.")


def _clear(name: str, mount: Mount, as_json: bool) -> None:
    """List what lies at the providers, and have old orphans deleted."""
    try:
        with _watching(name) as show:
            report = take_facts(mount.ask(OrphansRequest(), show), OrphanReport)
    except KeyboardInterrupt:
        raise InterruptedByUserError("interrupted; what was deleted is, call it again to go on") from None
    if as_json:
        print_json({"name": name, **dataclasses.asdict(report)})
    else:
        _print_strays(report)
        found = report.providers.values()
        waiting, left = sum(there.waiting for there in found), sum(there.left for there in found)
        deleted = sum(there.deleted for there in found), sum(there.deleted_bytes for there in found)
        print_facts([("deleted", f"{deleted[0]} orphans, {size(deleted[1])}")])
        if waiting:
            say(f"{waiting} more may go once a run has found them {age(report.grace)} after another.")
        if left:
            say(f"{left} could not be deleted; the mount's log tells why. Call it again.")
    if report.skipped:
        raise DegradedError(f"volume {name}: {', '.join(sorted(report.skipped))} could not be listed; call it again")


def _print_strays(report: OrphanReport) -> None:
    """What lies at providers that nothing names: only where there is any."""
    found = [
        (
            provider,
            str(there.orphans),
            size(there.orphan_bytes),
            str(there.foreign),
            size(there.foreign_bytes),
            ", ".join(there.examples) or "-",
        )
        for provider, there in sorted(report.providers.items())
        if there.orphans or there.foreign or there.deleted
    ]
    if found:
        print_rows(("provider", "orphans", "bytes", "foreign", "bytes", "such as"), found)
    for provider, there in report.providers.items():
        if there.more:
            say(f"provider {provider} has more of them than one run deals with; call it again.")
    for provider, reason in sorted(report.skipped.items()):
        say(f"provider {provider} was not listed: {reason}")


def _judge(name: str, report: ScrubReport) -> None:
    """End as cron is to see it."""
    bad = report.count("missing", "altered")
    if bad:
        fate = "they are restored by the mount" if not report.beyond else "too few others are left to restore some"
        raise DamagedError(f"volume {name}: {bad} shares are missing or altered; {fate}: `icnfs health {name}`")
    if report.bad_slots:
        raise DamagedError(f"volume {name}: {report.bad_slots} key slots were missing or altered, and are stored anew")
    if report.is_good:
        return
    why = []
    if report.down:
        why.append(f"{', '.join(report.down)} did not answer: call it again when they are back")
    if unknown := report.count("unknown"):
        why.append(f"of {unknown} shares it is not known, for their providers refuse or contradict themselves")
    if lacking := report.count(LACKING):
        why.append(f"{lacking} are not stored yet, and are to be restored")
    raise DegradedError(
        f"volume {name}: {report.shares - report.count('present')} shares not verified; {'; '.join(why)}"
    )
