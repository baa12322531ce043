"""Which providers hold which shares."""

from icnfs.placement.place import place
from icnfs.placement.policy import Policy

__all__ = ["Policy", "place"]
