"""What is said when a `sync` could not reach in time what it promises."""

from __future__ import annotations

from icnfs.errors import DegradedError
from icnfs.volume import openable
from icnfs.volume.keyring import Keyring
from icnfs.volume.network import Network
from icnfs.volume.publish import Publisher
from icnfs.volume.repair import Repair


def unpublished(publisher: Publisher, network: Network, seconds: float) -> DegradedError:
    """What was accepted is on this machine alone."""
    failure = publisher.failure
    cause = f": {failure}" if failure is not None else ""
    if network.foreign and failure is not None:
        cause += "; " + "; ".join(f"{name}: {reason}" for name, reason in sorted(network.foreign.items()))
    return DegradedError(f"degraded: not published within {seconds:.0f} s, and kept on this machine{cause}")


def unsafe(network: Network, repair: Repair, keyring: Keyring) -> DegradedError:
    """It is published, and too few owners hold it, or what opens it."""
    amiss = network.doubts()
    amiss |= {name: f"lacks {count} share{'s' * (count != 1)}" for name, count in repair.lacking_at().items()}
    why = {name: f" ({trouble})" for name in amiss if (trouble := network.trouble(name))}
    names = [f"{name} {what}{why.get(name, '')}" for name, what in sorted(amiss.items())]
    if keys := openable.obstacle(network, keyring):
        names.append(keys)
    what = ", ".join(names) or "try again"
    if keys == openable.LOCAL_ONLY:
        return DegradedError(f"degraded: published, but {what}")
    return DegradedError(
        f"degraded: published, but not whole at {network.safe} owners: {what}; bring them back or make room"
    )
