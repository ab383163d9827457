"""Pure: a lower bound raised by asking linear programs whether less time could be enough.

Guarantees, each asserted in tests/trainer/planner/assignment/test_prove.py:
- the bound is never above the best assignment;
- it is never below the bound it starts from.

Let M_1 >= M_2 >= ... be the seconds of the rounds and T their sum. Where M_1 lies between a and b,
every M_r with r >= 2 is at most (T - a) / (r - 1). When the program of counts.py without integers
has no solution for these, no assignment with M_1 in [a, b] takes T or less. Intervals that cannot
be ruled out are halved; T is proven once all are ruled out, for every number of rounds.
"""

from dataclasses import dataclass

from trainer.planner.assignment.bound import busy_bound_s, fewest_rounds
from trainer.planner.assignment.buckets import bucket_ends
from trainer.planner.assignment.counts import Buckets, Limits, Targets, count_groups
from trainer.planner.assignment.table import Table

BUCKETS = 64

NARROWEST = 0.003
"""Width, relative to the sum, below which an interval is not halved any more."""

SINGLY = 2
"""Numbers of rounds, from the fewest on, that are ruled out one by one."""

COLUMNS = 40_000
"""Columns of all programs for one bound together: what they cost grows with these."""

OVERHEAD_COLUMNS = 500
"""Columns that cost as much as starting a program."""


@dataclass(slots=True)
class _Budget:
    columns: int


def raised_bound_s(
    table: Table, *, bound_s: float, answer_s: float, precision: float, limits: Limits
) -> float:
    """The highest bound between `bound_s` and `answer_s` that linear programs prove.

    Seconds count the rounds' fixed part.
    """
    budget = _Budget(COLUMNS)
    buckets = Buckets.shortest(table, bucket_ends(table.lengths, BUCKETS))
    low, high = bound_s, answer_s
    # What matters most is whether the answer is good enough; asked first.
    tried_s = max(high * (1.0 - 2 * precision), (low + high) / 2)
    while high - low > precision * answer_s / 2 and budget.columns > 0:
        if _proven(table, buckets, tried_s, budget, limits):
            low = tried_s
        else:
            high = tried_s
        tried_s = (low + high) / 2
    return low


def _proven(
    table: Table, buckets: Buckets, total_s: float, budget: _Budget, limits: Limits
) -> bool:
    """Whether no assignment takes `total_s` or less, whatever its number of rounds."""
    fewest, most, least_s = fewest_rounds(table), len(table.lengths), busy_bound_s(table)
    longest_s = float(table.seconds_SD[0].min())
    cases = [(rounds, rounds) for rounds in range(fewest, min(fewest + SINGLY, most + 1))]
    # All larger numbers of rounds at once: as many rounds as there can be, some of them empty.
    cases.append((fewest + SINGLY, most))
    for paid, rounds in cases:
        busy_s = total_s - paid * table.fixed_s
        if paid > most or busy_s < least_s:
            continue
        first_s = (max(busy_s / rounds, longest_s), busy_s)
        if not _ruled_out(table, buckets, busy_s, first_s, rounds, budget, limits):
            return False
    return True


def _targets(busy_s: float, low: float, high: float, rounds: int) -> Targets:
    """Most seconds of each round when the longest takes between `low` and `high`.

    Beyond the first two, rounds are taken in classes of doubling size, at the seconds of the
    longest of a class: the program grows with the logarithm of the rounds.
    """
    seconds, sizes, before = [high], [1], 1
    while before < rounds:
        size = min(before, rounds - before)
        seconds.append(min(high, (busy_s - low) / before))
        sizes.append(size)
        before += size
    return Targets(seconds=tuple(seconds), rounds=tuple(sizes), busy_s=busy_s)


def _ruled_out(
    table: Table,
    buckets: Buckets,
    busy_s: float,
    first_s: tuple[float, float],
    rounds: int,
    budget: _Budget,
    limits: Limits,
) -> bool:
    """Whether no rounds sum to `busy_s` or less with the longest one's seconds in `first_s`."""
    open_intervals = [first_s]
    while open_intervals:
        if budget.columns <= 0:
            return False
        low, high = open_intervals.pop()
        targets = _targets(busy_s, low, high, rounds)
        budget.columns -= OVERHEAD_COLUMNS + len(targets.rounds) * buckets.seconds_QD.size
        counts = count_groups(table, buckets, targets, limits, whole=False)
        if counts.possible is False:
            continue
        if counts.possible is None:
            # Others would run out of time as well.
            budget.columns = 0
            return False
        if rounds == 1 or high - low < NARROWEST * busy_s:
            # Nothing is left to halve; whole groups and sequences may still be impossible.
            counts = count_groups(table, buckets, targets, limits)
            if counts.possible is not False:
                return False
            continue
        middle = (low + high) / 2
        # The lower half last in, first out: short first rounds are the ones that may be possible.
        open_intervals += [(middle, high), (low, middle)]
    return True
