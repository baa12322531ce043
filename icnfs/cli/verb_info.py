"""`icnfs info`: where a file's contents lie, and how many losses they survive."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from icnfs.cli.mounts import mount_process
from icnfs.cli.output import json_option, print_facts, print_json, print_rows, size
from icnfs.cli.taking import PATH
from icnfs.control.facts import Extent, FileFacts, printable_path
from icnfs.control.mounts import mount_of
from icnfs.control.protocol import InfoRequest, take_facts
from icnfs.volume.status import SharePlace


@click.command("info")
@click.argument("path", metavar="PATH", type=PATH)
@json_option
def verb(path: Path, as_json: bool) -> None:
    """Show the chunks of PATH: on this machine or not, in which segment, and which provider holds each share.

    Chunks are 128 KiB each.  A symbolic link is shown itself, not what it names.
    """
    found, ino = mount_of(path)
    facts = take_facts(mount_process(found).ask(InfoRequest(ino)), FileFacts)
    if as_json:
        document: dict[str, object] = msgspec.to_builtins(facts)
        print_json({"path": printable_path(path)} | document)
        return
    _print(printable_path(path), facts)


def _print(path: str, facts: FileFacts) -> None:
    print_facts(
        [
            ("path", path),
            ("inode", str(facts.ino)),
            ("size", size(facts.size)),
            ("chunks", str(facts.chunks)),
            ("survives", _losses(facts.survives)),
        ]
    )
    if facts.extents:
        print_rows(("chunks", "here", "segment", "data shares", "survives"), [_row(each) for each in facts.extents])
    for segment, shares in facts.segments.items():
        print_rows((f"share of {segment}", "provider", "owner", "stored"), [_share(share) for share in shares])
    if facts.more:
        print("(more chunks are left out)")


def _losses(survives: int | None) -> str:
    if survives is None:
        return "nothing is stored for it but its name and attributes"
    if survives < 0:
        return "no loss of this machine: not all of it is published yet"
    if survives == 0:
        return "the loss of this machine, but of no provider"
    return f"the loss of this machine and any {_owners(survives)}"


def _owners(count: int) -> str:
    return "1 owner" if count == 1 else f"{count} owners"


def _row(extent: Extent) -> tuple[str, ...]:
    chunks = str(extent.first) if extent.first == extent.last else f"{extent.first}-{extent.last}"
    survives = "only here" if extent.survives < 0 else _owners(extent.survives)
    shares = ", ".join(map(str, extent.data_shares)) or "-"
    return chunks, "yes" if extent.local else "no", extent.segment or "-", shares, survives


def _share(share: SharePlace) -> tuple[str, ...]:
    return str(share.index), share.provider, share.owner or "-", "yes" if share.stored else "no"
