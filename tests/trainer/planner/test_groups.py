"""The guarantees of trainer/planner/groups.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.layout import Layout
from parallel.sequence.stretches import padding_multiple
from trainer.planner.batch import BatchArithmetic
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.costs import AttentionShape, Hardware, ModelCost
from trainer.planner.groups import GroupPlanner
from trainer.planner.plan import Terms

HARDWARE = Hardware(
    peak_flops_per_s=1e9, flops_per_s=5e8, update_parameters_per_s=1e6, link_bytes_per_s=1e7
)
COST = ModelCost(
    parameters=1000,
    flops_per_token=6e3,
    linear_flops_per_token=5e3,
    quadratic_flops=40.0,
    attention=AttentionShape(
        num_heads=4, num_kv_heads=2, head_dim=8, element_bytes=4, num_layers=2, windowed=False
    ),
    sharded=True,
    param_bytes=4,
    reshard_after_forward=True,
)
CAPACITY = 65


def _planner(ranks=4, degrees=(1, 2, 4)):
    return GroupPlanner(
        layout=Layout(shard=ranks),
        arithmetic=BatchArithmetic(
            global_batch_tokens=1024,
            seq_len=128,
            max_tokens_per_device=CAPACITY,
            data_ranks=ranks,
            group_size=0,
        ),
        activation="keep",
        model=COST,
        hardware=HARDWARE,
        degrees=degrees,
        ranks_per_host=2,
    )


LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=24)


@settings(deadline=None, max_examples=40)
@given(LENGTHS)
def test_every_sequence_is_held_once_by_ranks_with_room(lengths):
    plan = _planner().choose(1, lengths)
    held = [i for r in plan.rounds for g in r.groups for i in g.sequences]
    assert sorted(held) == list(range(len(lengths)))
    for groups in plan.rounds:
        taken = [rank for g in groups.groups for rank in g.ranks]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(4))
        for group in groups.groups:
            tokens = sum(lengths[i] for i in group.sequences)
            multiple = padding_multiple(group.attention)
            assert -(-tokens // multiple) * multiple <= CAPACITY * group.size
            assert group.first_rank % group.size == 0
            assert group.attention.degree == group.size
    assert decode_plan(encode_plan(plan)) == plan
    assert plan.predicted.total_s > 0


def test_long_and_short_sequences_get_groups_of_different_sizes():
    plan = _planner().choose(1, [180, 30, 30, 30, 30, 30, 30])
    assert {g.size for r in plan.rounds for g in r.groups} >= {1, 4}
    assert "times as long" in plan.reasons[0]
    assert plan.attention != "local"


def test_one_allowed_size_is_kept():
    plan = _planner(degrees=(2,)).choose(1, [100, 30, 30, 30, 5])
    assert {g.size for r in plan.rounds for g in r.groups} == {2}


def test_rates_follow_measurements():
    planner = _planner()
    for step in range(1, 9):
        plan = planner.choose(step, [60] * 8)
        planner.observe(plan, Terms(compute_s=0.5, communication_s=0.1, update_s=0.01))
    predicted = planner.choose(9, [60] * 8).predicted
    assert predicted.compute_s == pytest.approx(0.5, rel=0.05)
    assert predicted.update_s == pytest.approx(0.01, rel=0.05)


def test_a_sequence_that_no_group_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"sequence 1 has 257 tokens.*fits is 256"):
        _planner().choose(1, [5, 257])
