"""Pure: lengths put into few buckets, so that a program need not name every sequence.

Guarantees, each asserted in tests/trainer/planner/assignment/test_buckets.py:
- buckets are neighbouring rows, together all rows, none empty;
- no other choice of as many buckets pads less, where all lengths were candidates for a border.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CANDIDATES = 384
"""Borders considered at most; beyond, the shortest lengths are thinned out."""


def bucket_ends(lengths: Sequence[int], buckets: int) -> tuple[int, ...]:
    """Where each bucket ends, for lengths in descending order.

    Dynamic programming over the borders (FlexSP, arXiv 2412.01523): the sum over all sequences of
    what they lack to the longest of their bucket is smallest.
    """
    borders = _borders(lengths, buckets)
    longest = np.array(lengths, dtype=np.float64)[borders[:-1]]
    tokens = np.concatenate([[0.0], np.cumsum(np.array(lengths, dtype=np.float64))])[borders]
    # padding[i, j]: rows from border i up to border j, all padded to the first of them.
    padding = longest[:, None] * (borders[None, 1:] - borders[:-1, None])
    padding -= tokens[None, 1:] - tokens[:-1, None]
    padding[np.tril_indices(len(longest), -1)] = np.inf
    best, choices = padding[0], [np.zeros(len(longest), dtype=np.intp)]
    for _ in range(1, min(buckets, len(longest))):
        sums = np.full_like(padding, np.inf)
        sums[1:] = best[:-1, None] + padding[1:]
        choices.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    return _ends(borders, choices)


def _borders(lengths: Sequence[int], buckets: int) -> NDArray[np.int64]:
    rows = np.array(lengths)
    changes = np.flatnonzero(rows[1:] != rows[:-1]) + 1
    most = max(CANDIDATES, 2 * buckets)
    if len(changes) > most:
        # The tail decides; among the many short ones a border more or less pads next to nothing.
        keep = most // 2
        rest = np.linspace(keep, len(changes) - 1, most - keep).astype(np.int64)
        changes = np.concatenate([changes[:keep], changes[np.unique(rest)]])
    return np.unique(np.concatenate([[0], changes, [len(rows)]])).astype(np.int64)


def _ends(borders: NDArray[np.int64], choices: list[NDArray[np.intp]]) -> tuple[int, ...]:
    ends: list[int] = []
    at = len(borders) - 2
    for choice in reversed(choices):
        ends.append(int(borders[at + 1]))
        at = int(choice[at]) - 1
    return tuple(reversed(ends))
