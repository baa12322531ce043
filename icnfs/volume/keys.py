"""What becomes of a volume's keys while it is open or recovered, beside giving providers their slots (`places`)."""

from __future__ import annotations

import logging
from contextlib import suppress

import msgspec

from icnfs.crypto.keys import MasterKey
from icnfs.errors import FencedError, FormatError, IcnfsError, SecretError, UsageError
from icnfs.format.head import Head
from icnfs.state.store import Store
from icnfs.volume.fence import Fence
from icnfs.volume.keyring import Entry, Keyring, Secrets, encode_entry, unlock

log = logging.getLogger(__name__)


def mend(keyring: Keyring, fence: Fence) -> None:
    """Put back keys that are damaged on this machine, as far as the last head has them."""
    try:
        if fence.base is not None:
            keyring.mend(fence.base.keyring)
    except IcnfsError as error:
        log.warning("damaged keys could not be put back: %s", error)


def remove(keyring: Keyring, store: Store, key_id: str) -> Entry:
    """Remove a key; providers delete their copies with the next publish, or when they return.

    Raises what `Keyring.remove` does, and `FencedError` where no provider would ever be told to.
    """
    if store.fenced is not None:
        raise FencedError(
            "another machine went on with the volume: remove the key there, for nothing that is done here reaches the "
            "providers, whose slots open the volume as before"
        )
    entry = keyring.remove(key_id)
    keyring.save()
    return entry


def going_back(head: Head, newest: Head, offered: Secrets, master: MasterKey) -> Head:
    """`head`, which is older, with the keys that the newest one has.

    They tell what lies at the providers: a key that was removed since must not come back, and one that was added since
    could not be removed if nobody knew of it.  Where what was offered opens none of them, whoever published the newest
    may have taken that key away: then the head's own stay as well.
    """
    try:
        ring = Keyring.decode(newest.keyring)
    except FormatError as error:
        log.warning("the newest head's keys cannot be read, and those of the older one stay: %s", error)
        return head
    try:
        known = unlock(ring.slots(), offered) == master
    except SecretError:
        known = False
    if known:
        return msgspec.structs.replace(head, keyring=newest.keyring)
    log.warning(
        "what opens the volume now was removed from its keys since: the keys of then are kept beside those of now"
    )
    both = Keyring.decode(head.keyring)
    for copy in (copy for entry in both.entries() for copy in entry.copies.values()):
        copy.stored = False  # it was deleted, as far as anybody could
    for entry in ring.entries():
        with suppress(UsageError):  # it is among them, or there are too many
            both.adopt(encode_entry(entry))
    return msgspec.structs.replace(head, keyring=both.encode())
