"""Which providers hold which shares."""

from icnfs.placement.judge import Breach, judge, misplaced
from icnfs.placement.place import place, refill
from icnfs.placement.policy import Policy
from icnfs.placement.weights import Measure, Weights

__all__ = ["Breach", "Measure", "Policy", "Weights", "judge", "misplaced", "place", "refill"]
