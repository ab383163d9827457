"""Pure: a packing improved by integer programs, and a bound raised by them.

Guarantees, each asserted in tests/trainer/planner/assignment/test_improve.py:
- what comes back is never worse than what went in;
- the raised bound is never above the best assignment.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.planner.assignment.bound import busy_bound_s, fewest_rounds
from trainer.planner.assignment.buckets import bucket_ends
from trainer.planner.assignment.counts import Buckets, Limits, Targets, count_groups
from trainer.planner.assignment.fit import Packing
from trainer.planner.assignment.greedy import Effort, pack_each, shorten, total_s
from trainer.planner.assignment.program import MOST_COLUMNS, best_packing, columns
from trainer.planner.assignment.table import Table

BUCKETS = 24
PROGRAMS = 4
"""Integer programs asked for a better packing."""


def improve(
    table: Table, packing: Packing, bound_s: float, effort: Effort, limits: Limits
) -> Packing:
    """Ask the counts program for shorter rounds, half of what is left to the bound at a time."""
    ends = bucket_ends(table.lengths, BUCKETS)
    buckets = Buckets.mean(table, ends)
    best, low = packing, bound_s - len(packing.busy_s) * table.fixed_s
    for _ in range(PROGRAMS):
        if best.total_s - low <= effort.precision * total_s(best, table):
            break
        wanted_s = (low + best.total_s) / 2
        targets_s = [busy * wanted_s / best.total_s for busy in best.busy_s]
        counts = count_groups(table, buckets, Targets.single(targets_s), limits)
        if counts.possible is None:
            break
        found = None
        if counts.sequences_QRD is not None:
            found = _realised(table, ends, counts.sequences_QRD, effort)
        if found is not None and found.total_s < best.total_s:
            best = found
        low = wanted_s if found is None or found.total_s > wanted_s else low
    return best


def _realised(
    table: Table, ends: Sequence[int], sequences_QRD: NDArray[np.int64], effort: Effort
) -> Packing | None:
    """Sequences dealt to rounds and degrees as counted, longer ones first, then packed."""
    rounds, degrees = sequences_QRD.shape[1:]
    members: list[list[int]] = [[] for _ in range(rounds)]
    preferred = [0] * len(table.lengths)
    row = 0
    for end, counts_RD in zip(ends, sequences_QRD, strict=True):
        for number in range(rounds):
            for column in range(degrees - 1, -1, -1):
                last = min(row + int(counts_RD[number, column]), end)
                members[number] += range(row, last)
                preferred[row:last] = [column] * (last - row)
                row = last
    if row != len(table.lengths) or not all(members):
        return None
    packing = pack_each(table, members, effort, preferred)
    return shorten(table, packing, effort) if packing is not None and rounds > 1 else packing


def solve_exactly(table: Table, packing: Packing, limits: Limits) -> tuple[Packing, float]:
    """The best packing of a small problem and the bound that the programs prove.

    Rounds are added as long as the program stays small; more of them are covered by the general
    bound. Both count the rounds' fixed part.
    """
    best = packing
    rounds = fewest_rounds(table)
    busy_s = busy_bound_s(table)
    proven_s = np.inf
    while (
        columns(table, rounds) <= MOST_COLUMNS
        and rounds <= len(table.lengths)
        and rounds * table.fixed_s + busy_s < min(total_s(best, table), proven_s)
    ):
        exact = best_packing(table, rounds, limits)
        proven_s = min(proven_s, exact.bound_s + rounds * table.fixed_s)
        if exact.packing is not None and total_s(exact.packing, table) < total_s(best, table):
            best = exact.packing
        rounds += 1
    if rounds <= len(table.lengths):
        proven_s = min(proven_s, rounds * table.fixed_s + busy_s)
    return best, float(proven_s)
