import pytest
from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import problem, problems
from trainer.planner.assignment.bound import fewest_rounds
from trainer.planner.assignment.greedy import (
    Effort,
    pack_all,
    pack_cut,
    pack_rounds,
    shorten,
    total_s,
)
from trainer.planner.assignment.rounds import cut_by_tokens
from trainer.planner.assignment.table import tabulate

EFFORT = Effort(precision=0.003, sweeps=2)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_an_answer_is_always_found(given_problem):
    table = tabulate(given_problem)

    packing = pack_all(table, EFFORT)
    assert packing is not None
    placed = sorted(row for group in packing.groups for row in group.members)
    assert placed == list(range(len(table.lengths)))
    assert len(packing.busy_s) >= fewest_rounds(table)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_shortening_the_rounds_together_never_makes_the_sum_longer(given_problem):
    table = tabulate(given_problem)
    for rounds in range(2, min(4, len(table.lengths)) + 1):
        packing = pack_cut(table, cut_by_tokens(table.lengths, rounds), EFFORT)
        if packing is not None:
            assert shorten(table, packing, EFFORT).total_s <= packing.total_s
            found = pack_rounds(table, rounds, EFFORT)
            assert found is not None
            assert found.total_s <= packing.total_s


def test_one_long_and_four_shorter_sequences_get_groups_of_two_sizes():
    # 100K and four times 48K tokens on 64 ranks, in thousands, as in the paper.
    table = tabulate(problem([100, 48, 48, 48, 48], ranks=64, capacity=6))

    mixed = pack_all(table, EFFORT)
    assert mixed is not None
    for degree in (32, 64):
        static = pack_all(table.only(degree), EFFORT)
        assert static is not None
        assert total_s(mixed, table) < 0.9 * total_s(static, table)


def test_what_cannot_beat_a_given_time_is_no_answer():
    table = tabulate(problem([50] * 20, ranks=8))
    packing = pack_all(table, EFFORT)

    assert packing is not None
    assert pack_all(table, EFFORT, beat_s=total_s(packing, table)) is None
    assert pack_all(table, EFFORT, beat_s=1.01 * total_s(packing, table)) is not None


@pytest.mark.parametrize("ranks", [1, 8])
def test_many_rounds_are_found_where_only_they_hold_the_sequences(ranks):
    table = tabulate(problem([100 * ranks] * 12, ranks=ranks))

    packing = pack_all(table, EFFORT)
    assert packing is not None
    assert len(packing.busy_s) == 12
