from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import COSTS, best_s, problem, problems
from trainer.planner.assignment.problem import group_s, rounds_s
from trainer.planner.assignment.solve import solve

TIME_LIMIT_S = 60.0
"""Far more than any program needs: what stops them is then the limit of nodes."""


def check_legal(given_problem, assignment):
    lengths = given_problem.lengths_tokens
    placed = [i for groups in assignment.rounds for share in groups for i in share.sequences]
    assert sorted(placed) == list(range(len(lengths)))
    for groups in assignment.rounds:
        first_rank = 0
        for share in groups:
            assert share.size in given_problem.degrees
            assert first_rank % share.size == 0
            first_rank += share.size
            tokens = sum(lengths[i] for i in share.sequences)
            assert 0 < tokens <= share.size * given_problem.capacity_tokens
        assert first_rank <= given_problem.ranks


@settings(max_examples=25, deadline=None)
@given(problems(most_sequences=30, ranks=(1, 2, 3, 5, 6, 8, 13, 16, 24)))
def test_an_assignment_is_legal_between_its_bound_and_the_best_static_degree(given_problem):
    assignment = solve(given_problem, time_limit_s=TIME_LIMIT_S)

    check_legal(given_problem, assignment)
    assert assignment.lower_bound_s <= assignment.predicted_s
    assert assignment.predicted_s <= assignment.best_static_s * (1 + 1e-9)
    assert assignment.best_static_degree in given_problem.degrees
    assert assignment.predicted_s == rounds_s(assignment.rounds, given_problem)


@settings(max_examples=15, deadline=None)
@given(problems(most_sequences=5, ranks=(1, 2, 3, 4)))
def test_tiny_problems_get_the_best_there_is(given_problem):
    assignment = solve(given_problem, time_limit_s=TIME_LIMIT_S)
    exact_s = best_s(given_problem)

    assert assignment.lower_bound_s <= exact_s * (1 + 1e-6)
    assert exact_s * (1 - 1e-6) <= assignment.predicted_s <= exact_s * 1.015


@settings(max_examples=6, deadline=None)
@given(problems())
def test_the_same_problem_gives_the_same_answer(given_problem):
    first = solve(given_problem, time_limit_s=TIME_LIMIT_S)
    assert solve(given_problem, time_limit_s=TIME_LIMIT_S) == first


@pytest.mark.parametrize(("sequences", "ranks"), [(128, 16), (200, 48)])
def test_long_tails_are_faster_than_any_single_degree_and_near_the_bound(sequences, ranks):
    random = np.random.default_rng(0)
    drawn = np.exp(random.normal(2.5, 1.3, sequences)).astype(int) + 1
    lengths = [int(length) for length in np.minimum(drawn, 700)]
    lengths[:2] = [790, 400]
    given_problem = problem(lengths, ranks=ranks, capacity=200)

    assignment = solve(given_problem, time_limit_s=TIME_LIMIT_S)
    check_legal(given_problem, assignment)
    assert assignment.best_static_s > 1.1 * assignment.predicted_s
    assert assignment.gap < 0.1


def test_one_long_and_four_shorter_sequences_as_in_the_paper():
    # 100K and four times 48K tokens on 64 ranks, in thousands.
    given_problem = problem([100, 48, 48, 48, 48], ranks=64, capacity=6)

    assignment = solve(given_problem, time_limit_s=TIME_LIMIT_S)
    sizes = [share.size for share in assignment.rounds[0]]
    assert len(assignment.rounds) == 1
    assert sizes == [32, 8, 8, 8, 8]
    assert assignment.gap < 1e-3


def test_no_sequences_need_no_rounds():
    assignment = solve(problem([]), time_limit_s=TIME_LIMIT_S)

    assert assignment.rounds == ()
    assert assignment.predicted_s == 0.0
    assert assignment.gap == 0.0


def test_sequences_that_cost_nothing_are_assigned_all_the_same():
    free = replace(COSTS, quadratic_s=0.0, linear_s=0.0, fixed_s=0.0, exchange_s_per_token={2: 0.0})
    given_problem = problem([100, 50, 200], ranks=2, costs=free)
    assignment = solve(given_problem, time_limit_s=TIME_LIMIT_S)
    check_legal(given_problem, assignment)
    assert assignment.predicted_s == 0.0


def test_the_slowest_group_and_the_distance_to_the_bound_are_told():
    given_problem = problem([100, 90, 80, 30, 20, 10], ranks=4)
    assignment = solve(given_problem, time_limit_s=TIME_LIMIT_S)

    slowest = [max(group_s(share, given_problem) for share in g) for g in assignment.rounds]
    assert assignment.predicted_s == pytest.approx(sum(slowest) + 0.05 * len(slowest))
    assert f"{100 * assignment.gap:.1f} % above" in assignment.how
