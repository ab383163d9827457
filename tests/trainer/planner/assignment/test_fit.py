from math import inf

import pytest
from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import problem, problems
from trainer.planner.assignment.bound import busy_bound_s
from trainer.planner.assignment.fit import fit, shortest_round
from trainer.planner.assignment.table import tabulate


@settings(max_examples=60, deadline=None)
@given(problems())
def test_a_packing_is_legal_and_within_its_targets(given_problem):
    table = tabulate(given_problem)
    longest_s = 1.5 * float(table.seconds_SD[0].min())
    targets = [longest_s] * len(table.lengths)

    packing = fit(table, targets)
    assert packing is not None
    placed = sorted(row for group in packing.groups for row in group.members)
    assert placed == list(range(len(table.lengths)))
    for group in packing.groups:
        degree = table.degrees[group.column]
        assert group.tokens == sum(table.lengths[row] for row in group.members)
        assert group.tokens <= degree * table.capacity_tokens
        assert group.seconds <= targets[group.round] * (1 + 1e-9)
    for number in range(len(targets)):
        sizes = [table.degrees[g.column] for g in packing.groups if g.round == number]
        assert sum(sizes) <= table.ranks


def test_sequences_that_do_not_fit_are_not_packed():
    table = tabulate(problem([100] * 9, ranks=8))

    assert fit(table, [inf]) is None
    assert fit(table, [inf, inf]) is not None
    assert shortest_round(table, bound_s=busy_bound_s(table), precision=0.01) is None


def test_a_preferred_degree_is_opened_where_one_must_be_opened():
    table = tabulate(problem([50], ranks=8))

    packing = fit(table, [inf], [2])
    assert packing is not None
    assert [table.degrees[group.column] for group in packing.groups] == [4]


def test_equal_sequences_on_as_many_ranks_meet_the_bound():
    table = tabulate(problem([50] * 8, ranks=8))
    bound_s = busy_bound_s(table)

    packing = shortest_round(table, bound_s=bound_s, precision=0.001)
    assert packing is not None
    assert packing.total_s == pytest.approx(bound_s, rel=1e-3)
