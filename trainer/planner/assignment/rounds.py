"""Pure: sequences, longest first, cut into consecutive rounds.

Sequences of like length share a round (FlexSP, arXiv 2412.01523, section on blasting): the long
ones then need their large groups in few rounds, and the short ones are not kept waiting for them.

Guarantees, each asserted in tests/trainer/planner/assignment/test_rounds.py:
- every cut gives the number of rounds asked for, none of them empty;
- the cut by tokens has the smallest possible largest round;
- the cut by seconds has the smallest sum of estimates among the cuts it considers.
"""

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from trainer.planner.assignment.table import Floats, Table

Cut = tuple[int, ...]
"""Where each round ends, in rows of the table; the last one is the number of sequences."""

MARKS = 48
"""Rows, evenly spaced in tokens, between which a cut by seconds may fall."""

LONGEST = 12
"""Rows at the long end after each of which it may fall as well."""

BISECTIONS = 24


def cut_by_tokens(lengths: Sequence[int], rounds: int) -> Cut:
    """The cut whose largest round has the fewest tokens (linear partition)."""
    low, high = max(lengths), sum(lengths)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(lengths, middle)) <= rounds else (middle + 1, high)
    ends = _filled(lengths, low)
    # Rounds still to be made take single sequences off the short end, which makes none larger.
    while len(ends) < rounds:
        starts = [0, *ends[:-1]]
        widest = max(range(len(ends)), key=lambda i: ends[i] - starts[i])
        ends.insert(widest, ends[widest] - 1)
    return tuple(ends)


def _filled(lengths: Sequence[int], most_tokens: int) -> list[int]:
    ends, held = [], 0
    for row, length in enumerate(lengths):
        if held + length > most_tokens:
            ends.append(row)
            held = 0
        held += length
    return [*ends, len(lengths)]


def cut_by_seconds(table: Table, rounds: int) -> Cut | None:
    """The cut with the smallest sum of estimated seconds, or None where tokens leave none."""
    rows = _marks(table, rounds)
    estimate_s = interval_s(table, rows)
    marks = len(rows)
    best = np.full(marks, inf)
    best[0] = 0.0
    choices: list[NDArray[np.intp]] = []
    for _ in range(rounds):
        sums = best[:, None] + estimate_s
        choices.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    if best[-1] == inf:
        return None
    ends, at = [], marks - 1
    for choice in reversed(choices):
        ends.append(int(rows[at]))
        at = int(choice[at])
    return tuple(reversed(ends))


def _marks(table: Table, rounds: int) -> NDArray[np.int64]:
    total = len(table.lengths)
    tokens = np.cumsum(table.lengths)
    spread = np.searchsorted(tokens, np.linspace(0, tokens[-1], MARKS + 1))
    first = np.arange(min(LONGEST, total) + 1)
    even = cut_by_tokens(table.lengths, rounds)
    return np.unique(np.concatenate([first, spread, even, [0, total]])).astype(np.int64)


def interval_s(table: Table, rows: NDArray[np.int64]) -> Floats:
    """Estimated seconds of a round of the rows from `rows[i]` up to `rows[j]`, infinite for i >= j.

    The bound of bound.py under the assumption that the smallest degree that is fast enough also
    keeps the fewest ranks busy: then prefix sums answer for all intervals at once.
    """
    first, last = (a.ravel() for a in np.meshgrid(rows, rows, indexing="ij"))
    tokens = np.concatenate([[0], np.cumsum(table.lengths)])
    held = tokens[last] - tokens[first]
    usable = (first < last) & (held <= table.ranks * table.capacity_tokens)
    first, last = first[usable], last[usable]
    rank_seconds_SD = np.where(np.isfinite(table.rank_seconds_SD), table.rank_seconds_SD, 0.0)
    sums_SD = np.vstack([np.zeros(len(table.degrees)), np.cumsum(rank_seconds_SD, axis=0)])
    low = table.seconds_SD[first].min(axis=1) if len(first) else np.zeros(0)
    high = np.full(len(first), float(table.seconds_SD.min(axis=1).sum()) + 1e-12)
    for _ in range(BISECTIONS):
        middle = np.sqrt(low * high)
        enough = _busy(table, sums_SD, first, last, middle) <= table.ranks * middle
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    seconds = np.full(len(usable), inf)
    seconds[usable] = high + table.fixed_s
    return seconds.reshape(len(rows), len(rows))


def _busy(
    table: Table,
    sums_SD: Floats,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    limits_s: Floats,
) -> Floats:
    """Rank-seconds of each interval when every sequence takes the smallest degree in the limit."""
    busy = np.zeros(len(first))
    upper = last
    total = len(table.lengths)
    for column in range(len(table.degrees)):
        ascending = table.seconds_SD[::-1, column]
        fast = np.searchsorted(ascending, limits_s, side="right")
        start = np.clip(total - fast, first, upper)
        busy += sums_SD[upper, column] - sums_SD[start, column]
        upper = start
    return np.where(upper > first, inf, busy)
