import pytest

from tests.trainer.planner.assignment.problems import COSTS, problem
from trainer.planner.assignment.problem import (
    GroupShare,
    Problem,
    SequenceCosts,
    group_s,
    rounds_s,
)


def test_a_group_takes_what_the_formula_says():
    given = problem([10, 20], ranks=4)
    share = GroupShare(size=2, sequences=(0, 1))

    expected = (1e-5 * (100 + 400) + 1e-3 * 30) / 2 + 1e-5 * 30
    assert group_s(share, given) == pytest.approx(expected)


def test_a_round_takes_as_long_as_its_slowest_group_and_the_fixed_part():
    given = problem([10, 20], ranks=4)
    slow, fast = GroupShare(size=1, sequences=(1,)), GroupShare(size=1, sequences=(0,))

    assert rounds_s([[slow, fast]], given) == pytest.approx(0.05 + group_s(slow, given))


def test_a_sequence_that_no_group_holds_is_named_with_the_longest_that_fits():
    with pytest.raises(ValueError, match=r"sequence 1 has 801 tokens, but the longest .* is 800"):
        problem([10, 801], ranks=8, capacity=100)


def test_ranks_that_are_no_power_of_two_hold_what_their_largest_group_holds():
    with pytest.raises(ValueError, match="longest that fits is 400"):
        problem([401], ranks=6, capacity=100)


def test_a_sequence_without_tokens_is_refused():
    with pytest.raises(ValueError, match="sequence 0 has 0 tokens"):
        problem([0])


@pytest.mark.parametrize("degree", [3, 16])
def test_a_degree_that_cannot_be_aligned_is_refused(degree):
    with pytest.raises(ValueError, match=rf"degree {degree} .* Choose among \(1, 2, 4, 8\)"):
        Problem(lengths_tokens=(1,), ranks=8, capacity_tokens=1, costs=COSTS, degrees=(1, degree))


def test_a_degree_of_unknown_cost_is_refused():
    costs = SequenceCosts(quadratic_s=0.0, linear_s=1.0, fixed_s=0.0, exchange_s_per_token={2: 0.0})
    with pytest.raises(ValueError, match=r"degree 4, only for \[2\]"):
        Problem(lengths_tokens=(1,), ranks=8, capacity_tokens=1, costs=costs, degrees=(4,))


def test_degrees_left_out_are_those_whose_cost_is_known():
    assert problem([1], ranks=13).degrees == (1, 2, 4, 8)


def test_costs_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        SequenceCosts(quadratic_s=-1.0, linear_s=0.0, fixed_s=0.0, exchange_s_per_token={})
    with pytest.raises(ValueError, match="one rank exchanges nothing"):
        SequenceCosts(quadratic_s=0.0, linear_s=0.0, fixed_s=0.0, exchange_s_per_token={1: 1.0})


def test_a_pool_without_room_is_refused():
    with pytest.raises(ValueError, match="must be at least 1"):
        problem([1], capacity=0)
