from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import best_s, problem, problems
from trainer.planner.assignment.bound import lower_bound_s
from trainer.planner.assignment.counts import Limits
from trainer.planner.assignment.greedy import Effort, pack_all, pack_cut, total_s
from trainer.planner.assignment.improve import improve, solve_exactly
from trainer.planner.assignment.table import tabulate

EFFORT = Effort(precision=0.003, sweeps=2)
LIMITS = Limits(time_s=20.0, nodes=2000)


@settings(max_examples=15, deadline=None)
@given(problems())
def test_what_comes_back_is_never_worse_and_holds_every_sequence(given_problem):
    table = tabulate(given_problem)
    packing = pack_all(table, EFFORT)
    assert packing is not None

    better = improve(table, packing, lower_bound_s(table), EFFORT, LIMITS)
    assert total_s(better, table) <= total_s(packing, table)
    placed = sorted(row for group in better.groups for row in group.members)
    assert placed == list(range(len(table.lengths)))


def test_a_bad_packing_is_improved_by_counting_groups():
    lengths = [190, 95, 95, 60, 60, 60, 60, 45, 45, 45, 45, 30, 30, 30, 30, 30]
    table = tabulate(problem(lengths, ranks=16, capacity=100))
    bad = pack_cut(table.only(16), (len(lengths),), EFFORT)
    assert bad is not None
    for group in bad.groups:
        group.column = table.degrees.index(16)

    better = improve(table, bad, lower_bound_s(table), EFFORT, LIMITS)
    assert better.total_s < 0.9 * bad.total_s


@settings(max_examples=12, deadline=None)
@given(problems(most_sequences=4, ranks=(1, 2, 3, 4)))
def test_small_problems_are_solved_exactly_and_the_bound_is_never_above(given_problem):
    table = tabulate(given_problem)
    packing = pack_all(table, EFFORT)
    assert packing is not None

    best, proven_s = solve_exactly(table, packing, LIMITS)
    exact_s = best_s(given_problem)
    assert exact_s * (1 - 1e-6) <= total_s(best, table) <= exact_s * 1.002
    assert proven_s <= exact_s * (1 + 1e-6)
