"""The volume's key slots: which there are, their copies for the providers, and unlocking.

The keyring lies in the local state, in the file `slots`, readable by its owner only; nothing in it is secret.  It also
travels in every head, so a recovered machine has all of it again.  A slot that may go to the providers is wrapped anew
for each of them, under a random object name, so their copies cannot be matched; copies for providers that are away are
kept here and delivered when they return, and a provider that lost its copy is given it again.  The copies of those
that have left are kept for those that come.

A slot that is damaged on this machine is left out and keeps its place in the file, until the volume is open and the
last head gives it back; the other keys open the volume meanwhile.

This module moves nothing over the network (`places` does) and does not know where secrets come from.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import trio

from icnfs.crypto.keys import MasterKey, Secret
from icnfs.crypto.slots import Costs, Slot, SlotKind, decode_slot, encode_slot, make_slot, open_slot
from icnfs.errors import (
    DamagedError,
    FormatError,
    LocalDiskError,
    NewerFormatError,
    NoVolumeError,
    SecretError,
    UsageError,
)

log = logging.getLogger(__name__)

FILE: Final = "slots"
"""The keyring's name in the local state."""

PREFIX: Final = "slots/"
"""Before the names of slots at the providers."""

VERSION: Final = 1
KEYRING_MAX: Final = 4 * 1024 * 1024
ENTRIES_MAX: Final = 64
"""More slots than anybody keeps; each costs a copy at every provider and, for a passphrase, a second of derivation."""


class Copy(msgspec.Struct, array_like=True):
    """A slot as one provider holds it: its object's name, its bytes, and whether it is known to be stored."""

    name: str
    slot: bytes
    stored: bool = False


class Entry(msgspec.Struct, array_like=True):
    """One key: `slot` is the local copy; `copies` are by provider, none for a key that stays local."""

    id: str
    kind: str
    label: str
    added_ns: int
    slot: bytes
    copies: dict[str, Copy]


class _Document(msgspec.Struct, array_like=True):
    version: int
    entries: list[msgspec.Raw]
    gone: dict[str, list[str]]


@dataclass(frozen=True)
class Secrets:
    """What the user offers to unlock with; `keyfile` also stands for a systemd credential."""

    passphrase: Secret | None = None
    keyfile: Secret | None = None
    recovery: Secret | None = None

    def of(self, kind: str) -> Secret | None:
        """The secret for slots of `kind`."""
        return {"passphrase": self.passphrase, "keyfile": self.keyfile, "recovery": self.recovery}.get(kind)

    def __bool__(self) -> bool:
        return any(secret is not None for secret in (self.passphrase, self.keyfile, self.recovery))


_WORDS: Final = {SlotKind.PASSPHRASE: "passphrase", SlotKind.KEYFILE: "key file", SlotKind.RECOVERY: "recovery key"}


def unlock(slots: Iterable[Slot], offered: Secrets) -> MasterKey:
    """The master key, from the first slot that opens.  Raises `SecretError` as `opened` does."""
    return next(opened(slots, offered))


def opened(slots: Iterable[Slot], offered: Secrets) -> Iterator[MasterKey]:
    """The master key of each slot that opens, one at least; the cheapest are tried first, for whoever makes up a slot
    chooses what it costs.

    Raises `SecretError` when none opens, saying whether no fitting slot was there or the secret is wrong.
    """
    if not offered:
        raise SecretError("no secret was given; give a passphrase, a key file or the recovery key")
    tried: set[str] = set()
    found = False
    for slot in sorted(slots, key=_cost):
        secret = offered.of(slot.kind)
        if secret is None:
            continue
        tried.add(_WORDS[slot.kind])
        for spelling in _spellings(slot.kind, secret):
            try:
                master = open_slot(slot, spelling)
            except (SecretError, FormatError):
                continue
            found = True
            yield master
            break
    if not tried:
        raise SecretError("the volume has no key slot for the kind of secret that was given; try another kind")
    if not found:
        raise SecretError(f"this {' or '.join(sorted(tried))} does not open the volume; check it and try again")


def _spellings(kind: SlotKind, secret: Secret) -> Iterator[Secret]:
    """The secret as it was given, and a passphrase with its letters composed, if they were not.

    Keyboards differ in how they write an accent; a passphrase that is typed anew is composed before it is used.
    """
    yield secret
    if kind is SlotKind.PASSPHRASE and (composed := secret.composed()) != secret:
        yield composed


def _cost(slot: Slot) -> int:
    """What it takes to try a slot: KiB times passes, 0 where nothing is guessed at."""
    return slot.costs.memory_kib * slot.costs.passes if slot.costs is not None else 0


class Keyring:
    """The volume's keys.  Changes are in memory until `save`."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries: dict[str, Entry] = {}
        self._gone: dict[str, list[str]] = {}
        self._damaged: list[msgspec.Raw] = []
        """Keys that cannot be read, as the file has them."""

    # --- kept -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, state_dir: Path) -> Keyring:
        """The keyring of a local state, without keys that are damaged: a warning tells of them.

        Raises `NoVolumeError` where there is none, `NewerFormatError`, and `DamagedError` where no key is left.
        """
        path = state_dir / FILE
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise NoVolumeError(f"{state_dir}: no volume here; run `icnfs init` or `icnfs recover`") from None
        except OSError as error:
            raise LocalDiskError(f"{path}: {error.strerror}", error.errno or 0) from None
        try:
            keyring = cls._decode(raw)
            if keyring._damaged and not keyring._entries:
                raise FormatError("every key in it is damaged")
        except NewerFormatError as error:
            raise NewerFormatError(f"{path}: {error}") from None
        except FormatError as error:
            raise DamagedError(
                f"{path}: {error}; put a copy of that file back, or move {state_dir} away and run `icnfs recover`, "
                "which brings back what was published"
            ) from None
        keyring._path = path
        if keyring._damaged:
            log.warning(
                "%s: %d of its %d keys are damaged and left out; mount the volume with another key, which puts back "
                "those that were published, or replace them by `icnfs key add`",
                path,
                len(keyring._damaged),
                len(keyring._damaged) + len(keyring._entries),
            )
        return keyring

    @classmethod
    def decode(cls, raw: bytes) -> Keyring:
        """Total: a keyring that is whole, or `FormatError`."""
        keyring = cls._decode(raw)
        if keyring._damaged:
            raise FormatError("a key in the keyring is damaged")
        return keyring

    @classmethod
    def _decode(cls, raw: bytes) -> Keyring:
        if len(raw) > KEYRING_MAX:
            raise FormatError("a keyring is larger than any can be")
        try:
            document = _DECODER.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"the keyring cannot be read: {error}") from None
        if document.version > VERSION:
            raise NewerFormatError(f"the keyring is of format {document.version}; upgrade icnfs")
        if len(document.entries) > ENTRIES_MAX:
            raise FormatError("a keyring with more keys than any can have")
        keyring = cls()
        for part in document.entries:
            try:
                entry = _read_entry(part)
            except NewerFormatError:
                raise
            except FormatError:
                keyring._damaged.append(part)
            else:
                keyring._entries[entry.id] = entry
        for names in document.gone.values():
            if not all(is_slot_name(name) for name in names):
                raise FormatError("a keyring names an object that no key slot has")
        keyring._gone = document.gone
        return keyring

    def encode(self) -> bytes:
        """The keys that are whole, as heads carry them."""
        return self._encode(())

    def _encode(self, damaged: Iterable[msgspec.Raw]) -> bytes:
        entries = [msgspec.Raw(msgspec.msgpack.encode(entry)) for entry in self._entries.values()]
        return msgspec.msgpack.encode(_Document(VERSION, [*entries, *damaged], self._gone))

    def save(self, state_dir: Path | None = None) -> None:
        """Write the file, atomically and durably; `LocalDiskError` where the disk does not take it."""
        path = state_dir / FILE if state_dir is not None else self._path
        assert path is not None
        self._path = path
        partial = path.with_name(path.name + ".partial")
        try:
            fd = os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(self._encode(self._damaged))
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
            sync_directory(path.parent)
        except OSError as error:
            raise LocalDiskError(f"{path}: {error.strerror}", error.errno or 0) from None

    # --- keys -------------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The keys, oldest first."""
        return sorted(self._entries.values(), key=lambda e: e.added_ns)

    def slots(self) -> list[Slot]:
        """The local copies, to unlock with."""
        return [decode_slot(entry.slot) for entry in self._entries.values()]

    def add(
        self,
        kind: SlotKind | str,
        secret: Secret,
        master: MasterKey,
        *,
        label: str,
        providers: Sequence[str] = (),
        costs: Costs | None = None,
    ) -> Entry:
        """Add a key, with a copy for each of `providers` (for a passphrase: only where the user chose so).

        Raises `UsageError` where the keyring is full, `SecretError` where the secret is too weak for its kind.
        """
        if len(self._entries) >= ENTRIES_MAX:
            raise UsageError(f"the volume has {ENTRIES_MAX} keys, more it cannot have; remove one first")
        kind = SlotKind(kind)
        slot = make_slot(kind, secret, master, label=label, costs=costs)
        entry = Entry(secrets.token_hex(4), kind.value, label, time.time_ns(), encode_slot(slot), {})
        for provider in providers:
            copy = make_slot(kind, secret, master, label="", costs=costs)
            entry.copies[provider] = Copy(PREFIX + secrets.token_hex(16), encode_slot(copy))
        self._entries[entry.id] = entry
        return entry

    def adopt(self, raw: bytes) -> Entry:
        """Take in a key that was wrapped elsewhere, as `encode_entry` gives it; `FormatError`, or `UsageError` where
        the keyring is full or has a key of that id."""
        entry = _read_entry(raw)
        if len(self._entries) >= ENTRIES_MAX or entry.id in self._entries:
            raise UsageError(f"key {entry.id} cannot be added to the {len(self._entries)} there are; remove one first")
        self._entries[entry.id] = entry
        return entry

    def mend(self, published: bytes) -> None:
        """Put back damaged keys from the keyring that the last head carried, and save.

        A damaged key is told by its id; one whose id is damaged too stays as it is.  Raises `FormatError` for what is
        no keyring, `LocalDiskError`.
        """
        if not self._damaged:
            return
        whole = Keyring.decode(published)._entries
        kept = len(self._damaged)
        for part in tuple(self._damaged):
            key_id = _id_in(part)
            if key_id in whole:
                self._damaged.remove(part)
                self._entries.setdefault(key_id, whole[key_id])
        if len(self._damaged) < kept:
            self.save()
            log.info("%d damaged keys are put back from the last head", kept - len(self._damaged))

    def remove(self, key_id: str) -> Entry:
        """Remove a key; its copies are deleted at the providers as they are reached.

        Raises `UsageError` for an unknown id, and for the last key, without which nobody could open the volume.
        """
        if key_id not in self._entries:
            raise UsageError(f"the volume has no key {key_id}; `icnfs key list` shows them")
        if len(self._entries) == 1:
            raise UsageError(f"key {key_id} is the last that opens the volume; add another before you remove it")
        entry = self._entries.pop(key_id)
        for provider, copy in entry.copies.items():
            self._gone.setdefault(provider, []).append(copy.name)
        return entry

    # --- copies at the providers ------------------------------------------------------------------------------------

    def undelivered(self, provider: str) -> list[Copy]:
        """Copies that `provider` is to be given."""
        copies = (entry.copies.get(provider) for entry in self._entries.values())
        return [copy for copy in copies if copy is not None and not copy.stored]

    def held(self, provider: str) -> list[Copy]:
        """Copies that `provider` was given."""
        copies = (entry.copies.get(provider) for entry in self._entries.values())
        return [copy for copy in copies if copy is not None and copy.stored]

    def undeleted(self, provider: str) -> list[str]:
        """Names of objects that `provider` is to delete."""
        return list(self._gone.get(provider, ()))

    def delivered(self, provider: str, name: str) -> None:
        """`provider` holds the copy `name`."""
        for entry in self._entries.values():
            copy = entry.copies.get(provider)
            if copy is not None and copy.name == name:
                copy.stored = True

    def deleted(self, provider: str, name: str) -> None:
        """`provider` no longer holds `name`."""
        names = [other for other in self._gone.get(provider, ()) if other != name]
        if names:
            self._gone[provider] = names
        else:
            self._gone.pop(provider, None)

    def bequeath(self, provider: str, heirs: Sequence[str]) -> bool:
        """Give the copies that are `provider`'s, from which all is deleted, to those of `heirs` that have none of that
        key; True where any went.  What nobody needs yet is kept for who does.

        A copy is not wrapped anew, for that takes the secret: whoever remembers it could match it with its heir's.
        """
        changed = False
        for entry in self._entries.values():
            copy = entry.copies.get(provider)
            if copy is None:
                continue
            heir = next((name for name in heirs if name not in entry.copies), None)
            if heir is not None:
                del entry.copies[provider]
                entry.copies[heir] = _again(copy)
            changed |= heir is not None or copy.stored
            copy.stored = False
        return self._gone.pop(provider, None) is not None or changed

    def wanting(
        self, homes: Iterable[str], named: Collection[str], enough: Callable[[Collection[str]], bool]
    ) -> list[tuple[Entry, str]]:
        """Who of `homes` is to be handed a copy of which key that goes to providers.

        There is one for each while providers that are not `named` any more have left some; without them, only while
        those of `homes` and `named` that have one are not `enough`, for two that have the same bytes can match them.
        """
        found = []
        for entry in self._entries.values():
            have = {name for name in entry.copies if name in named}
            left = len(entry.copies) - len(have)
            for home in homes if entry.copies else ():
                if home not in have and (left > 0 or not enough(have)):
                    found.append((entry, home))
                    have.add(home)
                    left -= 1
        return found

    def hand_out(self, wanting: Iterable[tuple[Entry, str]], named: Collection[str]) -> None:
        """Give copies to those who are `wanting` one; who left and comes back deletes what was given away."""
        for entry, home in wanting:
            leaver = next((name for name in entry.copies if name not in named), None)
            if leaver is None:
                entry.copies[home] = _again(next(iter(entry.copies.values())))
            else:
                copy = entry.copies.pop(leaver)
                self._gone.setdefault(leaver, []).append(copy.name)
                entry.copies[home] = _again(copy)

    def lost(self, provider: str) -> None:
        """`provider`'s place was found empty: it is to be given everything again."""
        for copy in self.held(provider):
            copy.stored = False


def _again(copy: Copy) -> Copy:
    """The same slot for another provider, which is to be given it."""
    return Copy(PREFIX + secrets.token_hex(16), copy.slot)


def encode_entry(entry: Entry) -> bytes:
    """A key as `Keyring.adopt` takes it: nothing in it is secret."""
    return msgspec.msgpack.encode(entry)


def _read_entry(raw: bytes | msgspec.Raw) -> Entry:
    """The key in these bytes, or `FormatError`."""
    try:
        entry = _ENTRY_DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"a key cannot be read: {error}") from None
    _check(entry)
    return entry


def _id_in(damaged: msgspec.Raw) -> str:
    """The id that a damaged key still bears, "" where it does not."""
    try:
        first = msgspec.msgpack.decode(damaged, type=list[msgspec.Raw])[0]
        return msgspec.msgpack.decode(first, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError):
        return ""


def _check(entry: Entry) -> None:
    """`FormatError` unless the entry is one that `add` can have made."""
    if not _ID.fullmatch(entry.id) or decode_slot(entry.slot).kind != entry.kind:
        raise FormatError("a key has an impossible id, or its slot is of another kind than it says")
    for copy in entry.copies.values():
        if not is_slot_name(copy.name) or decode_slot(copy.slot).kind != entry.kind:
            raise FormatError("a copy of a key slot is not what its key says")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_DECODER: Final = msgspec.msgpack.Decoder(_Document)
_ENTRY_DECODER: Final = msgspec.msgpack.Decoder(Entry)
_ID: Final = re.compile(r"[0-9a-f]{8}")
_COPY_NAME: Final = re.compile(r"slots/[0-9a-f]{32}")


def is_slot_name(name: str) -> bool:
    """Whether copies of key slots are stored under such names."""
    return _COPY_NAME.fullmatch(name) is not None


async def unlock_local(state_dir: Path, offered: Secrets) -> tuple[Keyring, MasterKey]:
    """The keyring of a local state and the master key; `NoVolumeError`, `SecretError`, `FormatError`."""
    keyring = Keyring.load(state_dir)
    return keyring, await trio.to_thread.run_sync(unlock, keyring.slots(), offered)
