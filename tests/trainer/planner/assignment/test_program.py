import pytest
from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import best_s, problem, problems
from trainer.planner.assignment.bound import fewest_rounds
from trainer.planner.assignment.counts import Limits
from trainer.planner.assignment.program import best_packing, columns
from trainer.planner.assignment.table import tabulate

LIMITS = Limits(time_s=30.0, nodes=100_000)


@settings(max_examples=8, deadline=None)
@given(problems(most_sequences=4, ranks=(1, 2, 3, 4)))
def test_the_best_over_all_numbers_of_rounds_is_what_trying_everything_finds(given_problem):
    table = tabulate(given_problem)
    best, bound = float("inf"), float("inf")
    for rounds in range(fewest_rounds(table), len(table.lengths) + 1):
        exact = best_packing(table, rounds, LIMITS)
        bound = min(bound, exact.bound_s + rounds * table.fixed_s)
        if exact.packing is not None:
            best = min(best, exact.packing.total_s + rounds * table.fixed_s)

    assert best == pytest.approx(best_s(given_problem), rel=1e-4)
    assert bound <= best * (1 + 1e-6)


def test_rounds_that_cannot_hold_the_tokens_have_no_packing():
    exact = best_packing(tabulate(problem([100, 100, 100], ranks=2)), 1, LIMITS)

    assert exact.packing is None
    assert exact.bound_s == float("inf")


def test_its_size_is_known_before_it_is_built():
    table = tabulate(problem([10, 10, 10], ranks=4))

    # Three groups of one rank (there are three sequences), two of two, one of four.
    assert columns(table, 2) == 3 * 2 * (3 + 2 + 1)
