"""`icnfs snapshot diff`: how the tree of a volume changed, as it is found, by records alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import click

from icnfs.cli import asking
from icnfs.cli.output import json_option, watching
from icnfs.cli.restoring import checked
from icnfs.cli.running import run
from icnfs.config import load, runtime_dir, state_dir
from icnfs.config.paths import check_volume_name
from icnfs.control.client import Mount
from icnfs.control.facts import printable_path
from icnfs.control.log import escape
from icnfs.control.protocol import Progress, SyncRequest
from icnfs.volume.difference import Difference, Differences
from icnfs.volume.past import open_trees


@click.command("diff")
@click.argument("name", metavar="NAME")
@click.argument("before", metavar="A")
@click.argument("after", metavar="[B]", required=False)
@asking.secret_options
@json_option
def diff(name: str, before: str, after: str | None, as_json: bool, **given: Any) -> None:
    """Show how the tree of volume NAME changed from snapshot A to snapshot B, or to now, by its records.

    Where the volume is mounted, what is not published is published first.
    """
    config = load(check_volume_name(name))
    trees = [checked(before), checked(after) if after is not None else ""]
    mount = Mount(runtime_dir(), name)
    if after is None and mount.alive():
        with watching(f"Publishing {name}") as show:
            mount.ask(SyncRequest(), show)
    offered = asking.opening(config, asking.given(given))

    async def work() -> None:
        with watching("Loading records") as show:

            def tell(done: int, total: int) -> None:
                show(Progress(done, total))

            async with open_trees(config, trees, state_dir(name), offered, progress=tell) as (old, new):
                _stream(Differences(old, new), as_json)

    run(work)


def _stream(found: Iterable[Difference], as_json: bool) -> None:
    """Each as it is found: an array of one object a line, or a line each."""
    opening = "[\n"
    for each in found:
        if not as_json:
            print("\t".join((each.kind, *_words(each))))
            continue
        facts = {"kind": each.kind, "path": printable_path(each.path), "what": list(each.what)}
        if each.before:
            facts["before"] = printable_path(each.before)
        sys.stdout.write(opening + json.dumps(facts))
        opening = ",\n"
    if as_json:
        sys.stdout.write("[]\n" if opening[0] == "[" else "\n]\n")


def _words(each: Difference) -> list[str]:
    path = escape(printable_path(each.path))
    name = f"{escape(printable_path(each.before))} -> {path}" if each.before else path
    return [name, *([", ".join(each.what)] if each.what else [])]
