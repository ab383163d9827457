"""Pure: seconds that no assignment of a step can beat.

Guarantees, each asserted in tests/trainer/planner/assignment/test_bound.py:
- no assignment takes less, whatever its rounds and groups;
- with one rank, where nothing can be chosen but the rounds, the bound is met exactly when all
  sequences fit one round.
"""

import numpy as np

from trainer.planner.assignment.table import Table

PRECISION = 1e-4
"""Relative width at which a bisection for seconds stops."""


def fewest_rounds(table: Table) -> int:
    """Rounds below which the tokens, or the sequences that need the largest groups, do not fit."""
    if not table.lengths:
        return 0
    largest = table.degrees[-1]
    places = table.ranks // largest
    # Ranks outside the groups of the largest degree may still hold something in smaller groups.
    by_tokens = -(-sum(table.lengths) // (table.ranks * table.capacity_tokens))
    too_long_to_share = sum(2 * s > largest * table.capacity_tokens for s in table.lengths)
    return max(1, by_tokens, -(-too_long_to_share // places))


def busy_bound_s(table: Table) -> float:
    """Seconds below which the slowest groups of all rounds together cannot stay.

    Let M be that sum. A sequence is in a group that takes at most M, so it keeps at least
    min(d * seconds(d)) ranks busy over the degrees d with seconds(d) <= M; all ranks together
    offer ranks * M. The smallest M for which both hold is found by bisection from below.
    """
    seconds_SD, rank_seconds_SD = table.seconds_SD, table.rank_seconds_SD
    if not table.lengths:
        return 0.0

    def possible(limit_s: float) -> bool:
        allowed_SD = seconds_SD <= limit_s
        cheapest_S = np.where(allowed_SD, rank_seconds_SD, np.inf).min(axis=1)
        return float(cheapest_S.sum()) <= table.ranks * limit_s

    low = max(
        float(seconds_SD.min(axis=1).max()),
        float(rank_seconds_SD.min(axis=1).sum()) / table.ranks,
    )
    # Sums in another order differ in the last digits, and a bound must not lie above an answer.
    low *= 1.0 - 1e-9
    high = low
    while not possible(high):
        low, high = high, 1.25 * high + 1e-12
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    return low


def lower_bound_s(table: Table) -> float:
    """Seconds of the fewest rounds and the busiest rank: no assignment takes less."""
    return fewest_rounds(table) * table.fixed_s + busy_bound_s(table)
