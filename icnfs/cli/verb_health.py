"""`icnfs health`: what the shares that are left mean for each segment, and what is known of each provider."""

from __future__ import annotations

import sys
from typing import Final

import click
import msgspec

from icnfs.cli.output import json_option, print_facts, print_rows
from icnfs.cli.verb_status import health_line
from icnfs.config import load, runtime_dir
from icnfs.config.paths import check_volume_name
from icnfs.control.client import Mount
from icnfs.control.facts import HealthFacts
from icnfs.control.protocol import MOST_SEGMENTS, HealthRequest, take_facts
from icnfs.errors import Exit, NotMountedError
from icnfs.volume.health import HealthCounts, ProviderHealth, SegmentHealth, ShareState

SHOWN: Final = 20
"""Segments shown without --json."""


@click.command("health")
@click.argument("name", metavar="NAME")
@json_option
def verb(name: str, as_json: bool) -> int:
    """Show how many segments of volume NAME are safe, degraded, at risk and lost, the worst of them, and each provider.

    Ends with exit code 14 unless all are safe and so are the keys, with 15 where some are lost.
    """
    mount = Mount(runtime_dir(), check_volume_name(name))
    if not mount.alive():
        load(name)  # a volume that is not even configured is another error
        raise NotMountedError(f"volume {name} is not mounted; its health is known to a mount alone")
    facts = _ask(mount, "", MOST_SEGMENTS if as_json else SHOWN)
    if as_json:
        _print_json(name, mount, facts)
    else:
        _print(name, facts)
    code = exit_code(facts.counts)
    return int(Exit.DEGRADED if facts.keys and code is Exit.OK else code)


def exit_code(counts: HealthCounts) -> Exit:
    """How a verb ends that found such a health."""
    if counts.lost:
        return Exit.DAMAGED
    return Exit.DEGRADED if counts.degraded or counts.at_risk else Exit.OK


def _ask(mount: Mount, after: str, most: int) -> HealthFacts:
    return take_facts(mount.ask(HealthRequest(after, most)), HealthFacts)


def _print_json(name: str, mount: Mount, facts: HealthFacts) -> None:
    """One document, a page of segments after the other: it may be longer than memory is wide."""
    head = {"name": name, "safe": facts.safe, "keys": facts.keys, "counts": facts.counts, "providers": facts.providers}
    text = msgspec.json.format(msgspec.json.encode(head), indent=2).decode()
    sys.stdout.write(text.removesuffix("\n}") + ',\n  "segments": [')
    first = True
    while True:
        for segment in facts.page.segments:
            sys.stdout.write(("" if first else ",") + "\n    " + msgspec.json.encode(segment).decode())
            first = False
        if not facts.page.after:
            break
        facts = _ask(mount, facts.page.after, MOST_SEGMENTS)
    sys.stdout.write("\n  ]\n}\n")


def _print(name: str, facts: HealthFacts) -> None:
    print_facts([("volume", name), ("health", health_line(facts.counts)), ("safe at", f"{facts.safe} owners")])
    if facts.keys:
        print_facts([("keys", f"not safe: {facts.keys}")])
    print_rows(_HEAD, [_row(provider) for provider in facts.providers])
    if facts.page.segments:
        print_rows(("segment", "verdict", "shares"), [_segment(segment) for segment in facts.page.segments])
    if facts.page.after:
        print("and more; --json has all of them")


OUTCOMES: Final = ("present", "missing", "altered", "down", "unknown")
_HEAD: Final = ("provider", "owner", "state", "standing", "shares", "lacks", *OUTCOMES, "right", "there", "reason")


def _row(provider: ProviderHealth) -> tuple[str, ...]:
    return (
        provider.name,
        provider.owner,
        provider.state,
        provider.standing or "-",
        str(provider.shares),
        str(provider.missing),
        *(str(provider.outcomes.get(outcome, 0)) for outcome in OUTCOMES),
        f"{provider.right:.0%}",
        f"{provider.there:.0%}",
        provider.reason or "-",
    )


def _segment(segment: SegmentHealth) -> tuple[str, str, str]:
    """A segment in a line: its shares that are not where they should be by name, the others as a number."""
    whole = sum(share.state is ShareState.PRESENT for share in segment.shares)
    others = [f"{share.provider} {share.state}" for share in segment.shares if share.state is not ShareState.PRESENT]
    return segment.id, segment.verdict, ", ".join([f"{whole} present", *others])
