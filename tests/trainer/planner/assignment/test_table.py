from math import isinf

import pytest

from tests.trainer.planner.assignment.problems import COSTS, problem
from trainer.planner.assignment.table import tabulate


def test_lengths_descend_and_equal_ones_keep_their_order():
    table = tabulate(problem([5, 9, 5, 7]))

    assert table.lengths == (9, 7, 5, 5)
    assert table.positions == (1, 3, 0, 2)


def test_seconds_are_those_of_the_costs():
    table = tabulate(problem([60, 30]))

    for row, length in enumerate(table.lengths):
        for column, degree in enumerate(table.degrees):
            assert table.seconds[row][column] == pytest.approx(COSTS.sequence_s(length, degree))


def test_a_degree_that_cannot_hold_a_sequence_costs_infinite_seconds():
    table = tabulate(problem([250], ranks=8, capacity=100))

    assert [isinf(seconds) for seconds in table.seconds[0]] == [True, True, False, False]


def test_parts_keep_their_sequences_and_their_costs():
    table = tabulate(problem([5, 9, 7]))

    part = table.rows([0, 2])
    assert (part.positions, part.lengths) == ((1, 0), (9, 5))
    assert part.seconds == [table.seconds[0], table.seconds[2]]
    assert table.only(4).seconds == [[row[2]] for row in table.seconds]
