"""The guarantees of trainer/planner/steady.py."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.layout import Layout
from tests.trainer.planner.test_groups import COST, HARDWARE
from trainer.planner.batch import BatchArithmetic
from trainer.planner.plan import Terms
from trainer.planner.steady import SteadyPlanner, deal

CAPACITY = 60
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=40)


def planner(hardware=HARDWARE, ranks=3):
    return SteadyPlanner(
        layout=Layout(shard=ranks),
        arithmetic=BatchArithmetic(
            global_batch_tokens=1024,
            seq_len=32,
            max_tokens_per_device=CAPACITY,
            data_ranks=ranks,
        ),
        activation="keep",
        model=COST,
        hardware=hardware,
        degrees=(1,),
        ranks_per_host=ranks,
    )


@settings(deadline=None)
@given(LENGTHS)
def test_every_sequence_is_on_one_rank_that_has_room(lengths):
    plan = planner().choose(1, lengths)
    groups = [group for one in plan.rounds for group in one.groups]
    assert sorted(i for group in groups for i in group.sequences) == list(range(len(lengths)))
    for one in plan.rounds:
        assert [group.first_rank for group in one.groups] == list(range(len(one.groups)))
        assert len(one.groups) <= 3
    assert all(sum(lengths[i] for i in group.sequences) <= CAPACITY for group in groups)


@settings(deadline=None)
@given(LENGTHS, st.floats(0.1, 10.0))
def test_rates_change_nothing(lengths, faster):
    other = planner(replace(HARDWARE, flops_per_s=faster * HARDWARE.flops_per_s))
    other.choose(1, [5])
    other.observe(other.choose(2, [5, 9]), Terms(compute_s=1.0))
    assert planner().choose(3, lengths).rounds == other.choose(3, lengths).rounds


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 4))
def test_nobody_has_more_than_the_mean_and_one_sequence(lengths, ranks):
    work = [float(n) for n in lengths]
    (only,) = deal(lengths, work, ranks=ranks, capacity_tokens=10_000)
    loads = [sum(lengths[i] for i in share.sequences) for share in only]
    assert max(loads) <= sum(lengths) / ranks + max(lengths)


def test_rounds_are_as_few_as_fit():
    rounds = deal([60] * 4, [1.0] * 4, ranks=2, capacity_tokens=60)
    assert [len(one) for one in rounds] == [2, 2]
    assert len(deal([30] * 4, [1.0] * 4, ranks=2, capacity_tokens=60)) == 1
    assert deal([], [], ranks=2, capacity_tokens=60) == ()


def test_a_sequence_that_no_rank_holds_is_refused():
    with pytest.raises(ValueError, match="61 tokens is longer than max_tokens_per_device=60"):
        planner().choose(1, [61])
