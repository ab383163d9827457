import numpy as np
import pytest
from hypothesis import given, settings

from tests.trainer.planner.assignment.problems import problem, problems
from trainer.planner.assignment.buckets import bucket_ends
from trainer.planner.assignment.counts import Buckets, Limits, Targets, count_groups
from trainer.planner.assignment.greedy import Effort, pack_all
from trainer.planner.assignment.table import tabulate

LIMITS = Limits(time_s=20.0, nodes=1000)


@settings(max_examples=25, deadline=None)
@given(problems(most_sequences=12))
def test_a_packing_within_the_seconds_is_a_solution(given_problem):
    table = tabulate(given_problem)
    packing = pack_all(table, Effort(precision=0.01, sweeps=1))
    assert packing is not None
    targets = Targets.single(packing.busy_s)

    for ends in (range(1, len(table.lengths) + 1), bucket_ends(table.lengths, 3)):
        buckets = Buckets.shortest(table, tuple(ends))
        assert count_groups(table, buckets, targets, LIMITS, whole=False).possible is True
        assert count_groups(table, buckets, targets, LIMITS).possible is True


@settings(max_examples=25, deadline=None)
@given(problems(most_sequences=12))
def test_a_solution_uses_the_ranks_there_are_and_every_sequence_once(given_problem):
    table = tabulate(given_problem)
    ends = bucket_ends(table.lengths, 4)
    buckets = Buckets.shortest(table, ends)
    seconds = float(table.seconds_SD.min(axis=1).sum())
    targets = Targets.single((seconds, seconds / 2))

    counts = count_groups(table, buckets, targets, LIMITS)
    if not counts.possible:
        return
    assert counts.sequences_QRD is not None
    assert (counts.sequences_QRD.sum(axis=(1, 2)) == buckets.counts).all()
    busy_RD = (counts.sequences_QRD * np.nan_to_num(buckets.seconds_QD, posinf=0.0)[:, None]).sum(0)
    for number, target in enumerate(targets.seconds):
        groups = np.ceil(busy_RD[number] / target - 1e-4)
        assert (groups * np.array(table.degrees)).sum() <= table.ranks


def test_too_little_time_is_not_possible_and_enough_is():
    table = tabulate(problem([50] * 8, ranks=8))
    buckets = Buckets.mean(table, (8,))
    seconds = table.seconds[0][0]

    assert count_groups(table, buckets, Targets.single([seconds]), LIMITS).possible is True
    assert count_groups(table, buckets, Targets.single([0.9 * seconds]), LIMITS).possible is False


def test_a_class_of_rounds_has_the_ranks_of_all_of_them():
    table = tabulate(problem([100] * 16, ranks=8))
    buckets = Buckets.mean(table, (16,))
    seconds = table.seconds[0][0]

    for rounds, possible in ((1, False), (2, True)):
        targets = Targets(seconds=(seconds,), rounds=(rounds,), busy_s=rounds * seconds)
        assert count_groups(table, buckets, targets, LIMITS).possible is possible


def test_sequences_of_more_than_half_a_group_do_not_share_one():
    table = tabulate(problem([60] * 9, ranks=8, capacity=100)).only(1)
    buckets = Buckets.mean(table, (9,))
    seconds = 1.9 * table.seconds[0][0]

    assert 9 * 60 < 8 * 100
    assert count_groups(table, buckets, Targets.single([seconds]), LIMITS).possible is False


def test_no_time_to_look_is_not_taken_for_impossible():
    table = tabulate(problem(list(range(10, 90)), ranks=64))
    buckets = Buckets.mean(table, bucket_ends(table.lengths, 24))
    seconds = 2 * float(table.seconds_SD[0].max())

    counts = count_groups(table, buckets, Targets.single([seconds]), Limits(time_s=0.0, nodes=1))
    assert counts.possible is not False


@pytest.mark.parametrize("ends", [(1, 3), (3,)])
def test_means_keep_the_sums(ends):
    table = tabulate(problem([30, 20, 10], ranks=8))
    buckets = Buckets.mean(table, ends)

    assert buckets.counts @ buckets.lengths == pytest.approx(60)
    assert buckets.counts @ buckets.seconds_QD == pytest.approx(table.seconds_SD.sum(axis=0))
