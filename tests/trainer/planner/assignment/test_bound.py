import pytest
from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import best_s, problem, problems
from trainer.planner.assignment.bound import fewest_rounds, lower_bound_s
from trainer.planner.assignment.table import tabulate


@settings(max_examples=25, deadline=None)
@given(problems(most_sequences=5, ranks=(1, 2, 3, 4)))
def test_no_assignment_takes_less(given_problem):
    assert lower_bound_s(tabulate(given_problem)) <= best_s(given_problem) * (1 + 1e-9)


def test_one_rank_and_one_round_meet_the_bound():
    one = problem([30, 40, 20], ranks=1)

    assert lower_bound_s(tabulate(one)) == pytest.approx(best_s(one), rel=1e-3)


def test_fewest_rounds_follow_from_tokens_and_from_sequences_that_cannot_share():
    assert fewest_rounds(tabulate(problem([100] * 17, ranks=8))) == 3
    assert fewest_rounds(tabulate(problem([500] * 3, ranks=8))) == 3
    assert fewest_rounds(tabulate(problem([1], ranks=8))) == 1
