"""Statistics that a few wild values do not move."""

import math
from collections.abc import Sequence
from statistics import median

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, for normal noise."""

LEAST_SHARE = 1e-6
"""No ratio is smaller, or larger than its inverse."""


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


def log_ratio(value: float, usual: float) -> float:
    """Log of `value` over `usual`, whatever unit both are in; 0 where both are 0. The smaller one
    counts for `LEAST_SHARE` of the larger at least."""
    largest = max(value, usual)
    if largest <= 0:
        return 0.0
    least = LEAST_SHARE * largest
    return math.log(max(value, least) / max(usual, least))


def against_others(values: dict[int, float]) -> dict[int, float]:
    """Log of each value over the median of all others; empty for fewer than two.

    The others alone, since with few ranks a slow one moves the median of all.
    """
    if len(values) < 2:
        return {}
    return {
        rank: log_ratio(own, median(v for other, v in values.items() if other != rank))
        for rank, own in values.items()
    }
