"""`icnfs status`: what a volume holds, what of it is not published, and how each provider does.

A mounted volume answers by its control socket.  Of one that is not mounted only this machine's files are looked at:
no secret is asked for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click
import msgspec

from icnfs.cli.output import age, json_option, print_facts, print_json, print_rows, size
from icnfs.config.paths import NAME_PATTERN, config_dir, config_file, runtime_dir, state_dir
from icnfs.config.volume import load
from icnfs.control import endpoint
from icnfs.control.client import Mount
from icnfs.control.facts import MountStatus, printable_path
from icnfs.control.mounts import is_mount_name, mount_name, mounted, split_mount
from icnfs.control.protocol import StatusRequest, take_facts
from icnfs.control.stalls import Stalls
from icnfs.errors import ConfigError, Exit
from icnfs.volume.health import HealthCounts
from icnfs.volume.keyring import FILE
from icnfs.volume.status import ProviderStatus, Status


@click.command("status")
@click.argument("name", metavar="[NAME]", required=False)
@json_option
def verb(name: str | None, as_json: bool) -> int:
    """Show the volume NAME, or the mount NAME@SNAP of a snapshot; without NAME, all volumes of this machine.

    A volume that is not mounted ends `status NAME` with exit code 9, after what can be said of it; a TOML that cannot
    be used ends `status` with exit code 3.
    """
    names = _names() if name is None else [mount_name(*split_mount(name))]
    found = [(each, _ask(each)) for each in names]
    if name is not None and found[0][1] is None:
        load(split_mount(name)[0])  # a volume that is not even configured is another error
    if as_json:
        documents = [_document(*pair) for pair in found]
        print_json(documents if name is None else documents[0])
    else:
        _print_all(found)
    for each, status in found:
        if status is None and config_file(split_mount(each)[0]).exists():
            load(split_mount(each)[0])  # what is wrong with it is more than that nothing is mounted
    return int(Exit.NOT_MOUNTED if name is not None and found[0][1] is None else Exit.OK)


def _names() -> list[str]:
    """Volumes with a TOML or a control socket here."""
    configured = {Path(each).stem for each in _listed(config_dir()) if each.endswith(".toml")}
    sockets = endpoint.volumes(runtime_dir())
    snapshots = {each for each in sockets if "@" in each and is_mount_name(each) and Mount(runtime_dir(), each).alive()}
    return sorted(snapshots | {each for each in configured | set(sockets) if NAME_PATTERN.fullmatch(each)})


def _listed(folder: Path) -> list[str]:
    """What is in the folder of the TOMLs; ConfigError where this user may not look."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; name a folder of this user's by ICNFS_CONFIG_DIR") from None


def _ask(name: str) -> MountStatus | None:
    """What the mount says, None where there is none; NotMountedError from one that is there and silent."""
    mount = Mount(runtime_dir(), name)
    return take_facts(mount.ask(StatusRequest()), MountStatus) if mount.alive() else None


def provider_states(mount: Mount) -> dict[str, ProviderStatus]:
    """Each provider as the mount finds it, by name."""
    status = take_facts(mount.ask(StatusRequest()), MountStatus).volume
    return {provider.name: provider for provider in status.providers}


def _document(name: str, status: MountStatus | None) -> dict[str, object]:
    """The volume's fields, and the mount's beside them."""
    if status is None:
        return {"name": name, "mounted": False, "here": _is_here(name)}
    mount = {
        "mounted": True,
        "mount_point": status.mount_point,
        "pid": status.pid,
        "since_ns": status.since_ns,
        "stalls": msgspec.to_builtins(status.stalls),
    }
    fields: dict[str, object] = msgspec.to_builtins(status.volume)
    return fields | mount


def _is_here(name: str) -> bool | None:
    """Whether the local state is here; None where this user may not look."""
    try:
        return "@" not in name and (state_dir(name) / FILE).exists()
    except PermissionError:
        return None


_HERE = {
    True: "on this machine",
    False: "not on this machine: init or recover it",
    None: "whether it is on this machine, this user may not see",
}


def _print_all(found: list[tuple[str, MountStatus | None]]) -> None:
    for number, (name, status) in enumerate(found):
        if number:
            print()
        if status is None:
            print_facts([("volume", name), ("mounted", f"no ({_HERE[_is_here(name)]})")])
        else:
            print_facts(_facts(status))
            print_rows(_HEAD, [_row(provider) for provider in status.volume.providers])


def _facts(status: MountStatus) -> list[tuple[str, str]]:
    volume = status.volume
    running = age(time.time() - status.since_ns / 1e9)
    seen = any(printable_path(each.point) == status.mount_point for each in mounted())
    where = status.mount_point if seen else f"{status.mount_point}, which is not seen from here"
    facts = [
        ("volume", f"{volume.name} ({volume.volume})"),
        ("mounted", f"{where} (process {status.pid}, for {running})"),
        ("state", _state(volume)),
        ("code", f"{volume.code}, safe at {volume.safe} owners"),
        ("tree", f"{volume.files} files, {size(volume.bytes_used)}"),
        ("dirty", size(volume.dirty_bytes)),
        ("published", _published(volume)),
        ("shares at risk", _risk(volume)),
        ("health", health_line(volume.health)),
        ("stalls", _stalled(status.stalls)),
    ]
    if volume.held_bytes is not None and volume.live_bytes is not None:
        facts.append(("segments", f"{size(volume.held_bytes)}, of which {size(volume.live_bytes)} live"))
    if volume.keys:
        facts.append(("keys", f"not safe: {volume.keys}"))
    if volume.moving:
        facts.append(("moving", f"{volume.moving} segments have shares where they are to have none"))
    if volume.failure:
        facts.append(("last failure", volume.failure))
    if volume.transfer_restarts:
        facts.append(("transfer restarts", str(volume.transfer_restarts)))
    return facts


def _state(volume: Status) -> str:
    words = ["fenced"] if volume.fenced else []
    words += ["read-only"] if volume.read_only else []
    if volume.degraded:
        words.append("degraded")
    elif volume.missing_shares or volume.lost_shares:
        words.append("at risk")
    return (", ".join(words) or "healthy") + (f": {volume.fenced}" if volume.fenced else "")


def _risk(volume: Status) -> str:
    return (
        f"{volume.missing_shares} missing, {volume.lost_shares} where they cannot be had now; "
        f"{volume.unsafe_segments} segments are not safe"
    )


def health_line(counts: HealthCounts) -> str:
    """How many segments have which verdict."""
    return f"{counts.safe} segments safe, {counts.degraded} degraded, {counts.at_risk} at risk, {counts.lost} lost"


def _stalled(stalls: Stalls) -> str:
    if not stalls.count:
        return "none (nothing was asked of it yet)"
    return f"{stalls.p50_ms:.1f} ms half of the time, {stalls.p999_ms:.1f} ms at 99.9 %, {stalls.max_ms:.1f} ms at most"


def _published(volume: Status) -> str:
    if not volume.published_ns:
        return f"never (batch {volume.committed_batch} is committed here)"
    pending = f", batch {volume.committed_batch} waits" if volume.pending else ", nothing waits"
    number = f"head {volume.epoch}-{volume.sequence}"
    return f"batch {volume.published_batch}, {age(volume.published_age_s)} ago, {number}{pending}"


_HEAD = (
    *("provider", "owner", "country", "state", "shares", "missing", "bad", "free"),
    *("latency", "up", "down", "error"),
)


def _row(provider: ProviderStatus) -> tuple[str, ...]:
    latency = "-" if provider.latency_s is None else f"{provider.latency_s * 1000:.1f} ms"
    return (
        provider.name,
        provider.owner,
        provider.country,
        f"{provider.state}, draining" if provider.draining else provider.state,
        str(provider.shares),
        str(provider.missing),
        str(provider.bad_shares),
        size(provider.free_bytes),
        latency,
        size(provider.bytes_up),
        size(provider.bytes_down),
        provider.error or "-",
    )
