"""Which providers hold which shares."""

from icnfs.placement.place import place
from icnfs.placement.policy import Policy
from icnfs.placement.weights import Measure, Weights

__all__ = ["Measure", "Policy", "Weights", "place"]
