"""`icnfs init`: a new volume from its TOML.

The recovery key alone goes to stdout, so that `icnfs init NAME > FILE` makes a file that `recover` takes.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import click

from icnfs.cli import asking
from icnfs.cli.output import json_option, print_json, say, shown_once
from icnfs.cli.running import run
from icnfs.config import load, state_dir
from icnfs.volume.create import create


@click.command("init")
@click.argument("name", metavar="NAME")
@asking.passphrase_options
@click.option(
    "--passphrase-at-providers",
    is_flag=True,
    help="Let each provider hold the passphrase's slot: it could guess at it.",
)
@json_option
def verb(name: str, passphrase_at_providers: bool, as_json: bool, **secrets: Any) -> None:
    """Create the volume NAME that its TOML describes, and print its recovery key: once, and never again.

    Every provider must answer, and its place must be empty.  The key opens the volume when all else is lost.
    """
    config = load(name)
    offered = asking.choosing(config, asking.given(secrets))
    owner = os.geteuid(), os.getegid()
    work = partial(
        create, config, state_dir(name), offered, passphrase_at_providers=passphrase_at_providers, owner=owner
    )
    created = run(work)
    lost = (
        f"volume {name} is created, and nobody knows that key; draw another by `icnfs key add --new-recovery-key "
        f"{name}`, and remove the lost one, which `icnfs key list {name}` shows"
    )
    if as_json:
        with shown_once(lost):
            print_json({"name": name, "volume": created.volume.hex(), "recovery_key": created.recovery_key})
        return
    say(f"Volume {name} is created at {len(config.providers)} providers.")
    say("This is its recovery key.  It is not shown again: write it down, and keep it away from this machine.")
    with shown_once(lost):
        print(created.recovery_key)
    say(f"Next: icnfs mount {name} DIR")
