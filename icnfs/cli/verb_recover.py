"""`icnfs recover`: a machine that has only the TOML and a secret gets the volume back."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Final

import click

from icnfs.cli import asking
from icnfs.cli.dates import seconds_of
from icnfs.cli.output import json_option, moment, print_facts, print_json, say, size, watching
from icnfs.cli.running import run
from icnfs.config import load, runtime_dir, state_dir
from icnfs.control.client import Mount
from icnfs.control.protocol import Progress
from icnfs.errors import MountedError, UsageError
from icnfs.volume.recover import Bound, Found, recover

NUMBER_MAX: Final = 2**62
"""No head's sequence is above it."""

_NUMBER = re.compile(r"(\d{1,19})(?:-(\d{1,19}))?")


@click.command("recover")
@click.argument("name", metavar="NAME")
@asking.secret_options
@click.option(
    "--at-least",
    metavar="EPOCH[-SEQUENCE]",
    help="Refuse a published state older than this head, which `icnfs status` showed once.",
)
@click.option(
    "--at-most", metavar="EPOCH[-SEQUENCE]", help="Go back to this head, or the newest before it that there is."
)
@click.option("--as-of", metavar="DATE", help="Go back to the newest state that was taken before DATE (UTC).")
@json_option
def verb(
    name: str, at_least: str | None, at_most: str | None, as_of: str | None, as_json: bool, **secrets: Any
) -> None:
    """Rebuild the volume NAME from its providers, and take it over: another machine that has it mounted stops writing.

    Contents stay at the providers until they are read.
    """
    config = load(name)
    if Mount(runtime_dir(), name).alive():  # though its state was deleted: it would be taken over from itself
        raise MountedError(f"volume {name} is mounted here; `icnfs umount` it first, and call it again")
    lowest = None if at_least is None else head_number(at_least, "--at-least", 0)
    bound = _bound(at_most, as_of)
    offered = asking.opening(config, asking.given(secrets))
    with watching(f"Loading {name}") as show:
        work = partial(
            recover,
            config,
            state_dir(name),
            offered,
            at_least=lowest,
            bound=bound,
            found=_tell,
            progress=lambda done, whole: show(Progress(done, whole)),
        )
        what = run(work)
    if as_json:
        print_json(_document(name, what))
        return
    print_facts(
        [
            ("recovered", f"{name} ({what.volume.hex()})"),
            ("head", f"{what.epoch}-{what.sequence}, as of {moment(what.time_ns)}"),
            ("tree", f"{what.files} files, {size(what.bytes_used)}"),
        ]
    )
    if bound is not None:
        say(
            f"The volume's keys are those of now, not of then: look at `icnfs key list {name}`, and remove any that is "
            "not yours once it is mounted."
        )
    say(f"Next: icnfs mount {name} DIR")


def head_number(text: str, option: str, otherwise: int) -> tuple[int, int]:
    """`EPOCH-SEQUENCE` as numbers, `otherwise` where it has no sequence; UsageError for anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UsageError(f"{option} {text[:40]!r}: write EPOCH or EPOCH-SEQUENCE, such as 3-17")
    return int(match[1]), otherwise if match[2] is None else int(match[2])


def _bound(at_most: str | None, as_of: str | None) -> Bound | None:
    if at_most is None and as_of is None:
        return None
    number = None if at_most is None else head_number(at_most, "--at-most", NUMBER_MAX)
    return Bound(number, None if as_of is None else seconds_of(as_of, "--as-of") * 1_000_000_000)


def _tell(what: Found) -> None:
    """Before anything is loaded: only a person can know whether this is the newest."""
    shown = f"{what.owners} owner{'s show' if what.owners != 1 else ' shows'} it"
    say(f"Found head {what.epoch}-{what.sequence} as of {moment(what.time_ns)}, {what.files} files; {shown}.")


def _document(name: str, what: Found) -> dict[str, object]:
    return {
        "name": name,
        "volume": what.volume.hex(),
        "epoch": what.epoch,
        "sequence": what.sequence,
        "time_ns": what.time_ns,
        "files": what.files,
        "bytes_used": what.bytes_used,
        "owners": what.owners,
    }
