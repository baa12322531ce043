"""`icnfs key`: the keys that open a volume.

A new key is wrapped here, with the master key that an old one opens; beside a mount only the wrapped slot is handed
over, so no secret ever crosses the control socket.  Without a mount the keyring's file is changed, under the volume's
lock.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from icnfs.cli import asking
from icnfs.cli.output import json_option, moment, print_json, print_rows, say, shown_once
from icnfs.cli.taking import FILE
from icnfs.config import VolumeConfig, load, runtime_dir, state_dir
from icnfs.config.paths import check_volume_name
from icnfs.control.client import Mount
from icnfs.control.facts import KeyFacts, MountStatus, key_facts
from icnfs.control.protocol import AddKeyRequest, KeysRequest, RemoveKeyRequest, StatusRequest, take_facts
from icnfs.crypto.keys import MasterKey, Secret
from icnfs.crypto.recovery import format_recovery_key, new_recovery_key
from icnfs.crypto.slots import LABEL_MAX, SlotKind
from icnfs.errors import InterruptedByUserError, MountedError, UsageError
from icnfs.volume.keyring import Entry, Keyring, Secrets, encode_entry, unlock

LOCK_FILE = "lock"
"""In the local state: held by whoever has the volume open."""


@click.group("key")
def verb() -> None:
    """Add, list and remove the keys that open a volume."""


@verb.command("list")
@click.argument("name", metavar="NAME")
@json_option
def list_keys(name: str, as_json: bool) -> None:
    """List the keys of NAME: kind, label, and how many providers hold their slots."""
    keys = _keys(name)
    if as_json:
        print_json(keys)
        return
    print_rows(("id", "kind", "label", "added", "at providers"), [_row(key) for key in keys])


def _keys(name: str) -> list[KeyFacts]:
    """The keys, oldest first, as the mount or else the keyring's file has them."""
    mount = Mount(runtime_dir(), check_volume_name(name))
    if mount.alive():
        return take_facts(mount.ask(KeysRequest()), list[KeyFacts])
    keepers = _keepers(load(name))
    return [key_facts(entry, keepers) for entry in Keyring.load(state_dir(name)).entries()]


def _keepers(config: VolumeConfig) -> list[str]:
    """Providers that are to keep what they are given."""
    return [name for name, facts in config.providers.items() if not facts.drain]


def _row(key: KeyFacts) -> tuple[str, ...]:
    stored = f"{key.stored} of {key.providers}" if key.providers else "on this machine only"
    return key.id, key.kind, key.label, moment(key.added_ns), stored


@verb.command("add")
@click.argument("name", metavar="NAME")
@asking.secret_options
@click.option("--new-passphrase-file", type=FILE, metavar="FILE", help="Read the new passphrase from FILE.")
@click.option("--new-keyfile", type=FILE, metavar="FILE", help="Add FILE, 32 random bytes or more, as key.")
@click.option("--new-credential", metavar="NAME", help="Add the systemd credential NAME as key file.")
@click.option("--new-recovery-key", is_flag=True, help="Draw another recovery key and print it, once.")
@click.option("--label", default="", metavar="TEXT", help="What `key list` is to call it; no provider sees it.")
@click.option(
    "--passphrase-at-providers",
    is_flag=True,
    help="Let each provider hold the new passphrase's slot: it could guess at it.",
)
@json_option
def add_key(
    name: str,
    new_passphrase_file: Path | None,
    new_keyfile: Path | None,
    new_credential: str | None,
    new_recovery_key: bool,
    label: str,
    passphrase_at_providers: bool,
    as_json: bool,
    **secrets: Any,
) -> None:
    """Add a key to NAME: a passphrase that is asked for, unless an option names another.

    It takes a key that opens NAME already, found as `icnfs mount` finds it.
    """
    config = load(name)
    if len(label.encode("utf-8", "surrogateescape")) > LABEL_MAX or not label.isprintable():
        raise UsageError(f"--label: at most {LABEL_MAX} bytes that print")
    ways = (new_passphrase_file, new_keyfile, new_credential, new_recovery_key or None)
    if sum(way is not None for way in ways) > 1:
        raise UsageError("one key at a time: give one of the --new options")
    ring = Keyring.load(state_dir(name))
    master = unlock(ring.slots(), asking.opening(config, asking.given(secrets)))
    where = asking.Given(new_passphrase_file, new_keyfile, new_credential)
    fresh = new_recovery_key_of(new_recovery_key) or asking.choosing_one(config, where)
    added = _hand_over(config, _wrapped(ring, config, fresh, master, label, passphrase_at_providers))
    shown = format_recovery_key(fresh.recovery) if fresh.recovery is not None else None
    lost = f"nobody knows key {added.id}; remove it by `icnfs key remove {name} {added.id}`, and add another"
    if as_json:
        with shown_once(lost) if shown is not None else nullcontext():
            print_json({"id": added.id, "kind": added.kind, "label": added.label, "recovery_key": shown})
        return
    say(f"Key {added.id} ({added.kind}) opens volume {name} from now on.")
    if added.providers:
        say(_delivery(Mount(runtime_dir(), name)))
    if shown is not None:
        say("This is the new recovery key.  It is not shown again: write it down, and keep it away from this machine.")
        with shown_once(lost):
            print(shown)


def _delivery(mount: Mount) -> str:
    """What is to be expected of the new key's way to the providers."""
    if mount.alive() and take_facts(mount.ask(StatusRequest()), MountStatus).volume.fenced:
        return (
            "No provider gets its slot: another machine went on with the volume, and this key opens what is on this "
            "machine alone.  Add it there."
        )
    return (
        "Providers get its slot once the volume is mounted and may publish; until `icnfs key list` says that they hold "
        "it, it opens the volume on this machine only."
    )


def new_recovery_key_of(wanted: bool) -> Secrets | None:
    """A fresh recovery key where one is wanted."""
    return Secrets(recovery=new_recovery_key()) if wanted else None


def _wrapped(
    ring: Keyring, config: VolumeConfig, fresh: Secrets, master: MasterKey, label: str, passphrase_at_providers: bool
) -> Entry:
    kind, secret = _kind_of(fresh)
    providers = tuple(config.providers) if kind.strong or passphrase_at_providers else ()
    return ring.add(kind, secret, master, label=label, providers=providers)


def _kind_of(fresh: Secrets) -> tuple[SlotKind, Secret]:
    for kind in SlotKind:
        secret = fresh.of(kind)
        if secret is not None:
            return kind, secret
    raise AssertionError("a new key without a secret")


def _hand_over(config: VolumeConfig, entry: Entry) -> KeyFacts:
    """Have the new key kept: by the mount, or in the keyring's file."""
    mount = Mount(runtime_dir(), config.name)
    if mount.alive():
        return take_facts(mount.ask(AddKeyRequest(encode_entry(entry))), KeyFacts)
    with unmounted_keyring(config.name) as ring:
        return key_facts(ring.adopt(encode_entry(entry)), _keepers(config))


@verb.command("remove")
@click.argument("name", metavar="NAME")
@click.argument("key_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Remove it though no provider holds another: it is not asked about.")
@json_option
def remove_key(name: str, key_id: str, yes: bool, as_json: bool) -> None:
    """Remove the key ID, as `key list` shows it, from NAME.

    Without any key at the providers, the loss of this machine is the loss of the volume.

    A provider that keeps what it was told to delete still has the slot, and whoever had the secret may have kept the
    volume's master key: this is for a secret that was lost, not for one that was stolen.
    """
    config = load(name)
    mount = Mount(runtime_dir(), config.name)
    if not yes:
        _ask_whether_to_strand(name, _keys(name), key_id)
    if mount.alive():
        removed = take_facts(mount.ask(RemoveKeyRequest(key_id)), KeyFacts)
    else:
        with unmounted_keyring(name) as ring:
            removed = key_facts(ring.remove(key_id), _keepers(config))
    if as_json:
        print_json({"id": removed.id, "kind": removed.kind, "label": removed.label})
        return
    say(f"Key {removed.id} ({removed.kind}) no longer opens volume {name}.")
    if removed.providers:
        say(
            "Providers delete their slots of it as the volume is mounted and reaches them; until then those open it.  "
            "Where another machine went on with the volume they never do: remove it there."
        )


def _ask_whether_to_strand(name: str, keys: list[KeyFacts], key_id: str) -> None:
    """Have the user confirm the removal of the last key that providers hold; UsageError where nobody can be asked."""
    others = [key for key in keys if key.id != key_id]
    held = any(key.providers for key in keys if key.id == key_id)
    if not held or not others or any(key.stored for key in others):
        return
    what = (
        f"key {key_id} is the only one that providers hold: without it, nothing recovers volume {name} when this "
        "machine is lost"
    )
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"{what}; add another and mount it first, or give --yes")
    if not click.confirm(f"{what[0].upper()}{what[1:]}.  Remove it?", err=True):
        raise InterruptedByUserError(f"key {key_id} is kept")


@contextmanager
def unmounted_keyring(name: str) -> Iterator[Keyring]:
    """The keyring of a volume that nobody has open, saved when the block ends well; MountedError otherwise."""
    state = state_dir(name)
    Keyring.load(state)
    fd = os.open(state / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MountedError(f"volume {name} is just being mounted or unmounted; try again") from None
        ring = Keyring.load(state)
        yield ring
        ring.save()
    finally:
        os.close(fd)
