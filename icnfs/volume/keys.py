"""What an open volume does to its keys, beside giving providers their slots (`places`)."""

from __future__ import annotations

import logging

from icnfs.errors import FencedError, IcnfsError
from icnfs.state.store import Store
from icnfs.volume.fence import Fence
from icnfs.volume.keyring import Entry, Keyring

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
