"""Whether a machine that has only the TOML and a secret could open the volume, whoever vanishes.

A key that goes to providers must have its slot at as many owners as a head must lie at: n - k + 1, so that one is left
whatever n - k of them vanish.  Only slots that were stored count, at providers that the TOML names and whose places are
beyond doubt.  A volume all of whose keys stay on this machine cannot be recovered at all: its owner was asked before it
became so, and is told ever after, for what was published is not safe from the loss of this machine.  Pure.
"""

from __future__ import annotations

from icnfs.volume.keyring import Keyring
from icnfs.volume.network import Network

LOCAL_ONLY = (
    "no provider is to hold a slot of any key that opens the volume, and it is lost with this machine; add one by "
    "`icnfs key add`"
)


def obstacle(network: Network, keyring: Keyring) -> str:
    """What keeps the volume's keys from being safe, "" for nothing."""
    entries = [entry for entry in keyring.entries() if entry.copies]
    if not entries:
        return LOCAL_ONLY
    sure = network.facts.keys() - network.unsure
    for entry in entries:
        owners = network.owners(name for name, copy in entry.copies.items() if copy.stored and name in sure)
        if owners < network.durable:
            return f"{owners} owners hold the slot of key {entry.id} ({entry.kind}), and {network.durable} are to"
    return ""
