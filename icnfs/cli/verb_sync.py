"""`icnfs sync`: returns when all that is written is published and safe."""

from __future__ import annotations

import click

from icnfs.cli.mounts import named
from icnfs.cli.output import json_option, print_facts, print_json, say, watching
from icnfs.cli.taking import TEXT, Above
from icnfs.control.facts import Published
from icnfs.control.protocol import WAIT_MAX, SyncRequest, take_facts

deadline_option = click.option(
    "--deadline",
    type=Above(WAIT_MAX),
    metavar="SECONDS",
    help="Give up after SECONDS; the default is the TOML's volume.sync_deadline.",
)


@click.command("sync")
@click.argument("target", metavar="[NAME|PATH]", required=False, type=TEXT)
@deadline_option
@json_option
def verb(target: str | None, deadline: float | None, as_json: bool) -> None:
    """Publish all that is written and wait until it is safe.

    NAME is a volume, PATH anything within its mount; neither is needed where one volume is mounted.  Fails as degraded
    where too few owners can be reached within the deadline; what is written stays on this machine in any case.
    """
    mount = named(target)
    with watching(f"Publishing {mount.volume}") as show:
        answer = mount.ask(SyncRequest(deadline or 0.0), show)
    report(take_facts(answer, Published), as_json)


def report(published: Published, as_json: bool) -> None:
    """What was reached, and whose word it rests on that is worth little."""
    for name in published.suspects:
        say(
            f"provider {name} is suspended for wrong answers and counts as holding what it said it stored; "
            "`icnfs health` counts it out, `icnfs provider drain` moves what it was given"
        )
    if as_json:
        print_json(published)
        return
    print_facts([("published batch", str(published.batch)), ("head", f"{published.epoch}-{published.sequence}")])
