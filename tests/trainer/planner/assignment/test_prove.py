from dataclasses import replace

import pytest
from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import COSTS, best_s, problem, problems
from trainer.planner.assignment.bound import lower_bound_s
from trainer.planner.assignment.counts import Limits
from trainer.planner.assignment.prove import raised_bound_s
from trainer.planner.assignment.table import tabulate

LIMITS = Limits(time_s=20.0, nodes=1000)


@settings(max_examples=15, deadline=None)
@given(problems(most_sequences=5, ranks=(1, 2, 3, 4)))
def test_the_bound_is_never_above_the_best_nor_below_the_first(given_problem):
    table = tabulate(given_problem)
    first_s, exact_s = lower_bound_s(table), best_s(given_problem)

    raised_s = raised_bound_s(
        table, bound_s=first_s, answer_s=1.2 * exact_s, precision=0.01, limits=LIMITS
    )
    assert first_s <= raised_s <= exact_s * (1 + 1e-5)


def test_sequences_that_cannot_share_a_group_in_time_raise_the_bound():
    # Two ranks and three equal sequences: one rank has two of them, or all pay for the exchange.
    costs = replace(COSTS, exchange_s_per_token={2: 1e-2})
    three = problem([90, 90, 90], ranks=2, capacity=200, costs=costs)
    table = tabulate(three)
    first_s, exact_s = lower_bound_s(table), best_s(three)

    raised_s = raised_bound_s(
        table, bound_s=first_s, answer_s=exact_s, precision=0.01, limits=LIMITS
    )
    assert exact_s > 1.2 * first_s
    assert raised_s == pytest.approx(exact_s, rel=0.03)
