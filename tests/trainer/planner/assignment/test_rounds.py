from itertools import combinations, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.planner.assignment.problems import problem, problems
from trainer.planner.assignment.rounds import _marks, cut_by_seconds, cut_by_tokens, interval_s
from trainer.planner.assignment.table import tabulate

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=8).map(
    lambda lengths: sorted(lengths, reverse=True)
)


@given(LENGTHS, st.data())
def test_the_cut_by_tokens_has_the_smallest_largest_round(lengths, data):
    rounds = data.draw(st.integers(1, len(lengths)))
    cut = cut_by_tokens(lengths, rounds)

    assert len(cut) == rounds
    assert all(first < last for first, last in pairwise((0, *cut)))
    cuts = [(*inner, len(lengths)) for inner in combinations(range(1, len(lengths)), rounds - 1)]
    assert largest(lengths, cut) == min(largest(lengths, other) for other in cuts)


def largest(lengths, cut):
    return max(sum(lengths[first:last]) for first, last in pairwise((0, *cut)))


@settings(max_examples=30, deadline=None)
@given(problems(most_sequences=7), st.data())
def test_the_cut_by_seconds_has_the_smallest_sum_of_estimates(given_problem, data):
    table = tabulate(given_problem)
    total = len(table.lengths)
    rounds = data.draw(st.integers(1, total))
    cut = cut_by_seconds(table, rounds)

    rows = _marks(table, rounds)
    assert list(rows) == list(range(total + 1))
    estimate_s = interval_s(table, rows)
    sums = [
        sum(estimate_s[first, last] for first, last in pairwise((0, *inner, total)))
        for inner in combinations(range(1, total), rounds - 1)
    ]
    if cut is None:
        assert min(sums) == np.inf
        return
    assert len(cut) == rounds
    assert all(first < last for first, last in pairwise((0, *cut)))
    chosen_s = sum(estimate_s[first, last] for first, last in pairwise((0, *cut)))
    assert chosen_s <= min(sums) * (1 + 1e-9)


def test_rounds_that_cannot_hold_their_tokens_are_not_cut():
    assert cut_by_seconds(tabulate(problem([100] * 9, ranks=8)), 1) is None
