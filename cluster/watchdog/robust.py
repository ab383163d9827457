"""Statistics that a few wild values do not move."""

import math
from collections.abc import Sequence
from statistics import median

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, for normal noise."""


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed. Raises ValueError for
    no values."""
    if not values:
        raise ValueError("quantile needs at least one value")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> float:
    """Standard deviation estimated from the median absolute deviation; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    middle = median(values)
    return MAD_TO_SIGMA * median(abs(value - middle) for value in values)


def against_others(values: dict[int, float]) -> dict[int, float]:
    """Log of each value over the median of all others; empty for fewer than two.

    The others alone, since with few ranks a slow one moves the median of all.
    """
    if len(values) < 2:
        return {}
    return {
        rank: math.log(max(own, 1e-9))
        - math.log(max(median(v for other, v in values.items() if other != rank), 1e-9))
        for rank, own in values.items()
    }
