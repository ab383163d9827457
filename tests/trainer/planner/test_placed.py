"""Plans carry the place of the optimizer's states."""

from dataclasses import replace

import pytest

from parallel.layout import Layout
from trainer.planner.batch import BatchArithmetic
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.costs import AttentionShape, Hardware, ModelCost
from trainer.planner.fixed import FixedPlanner
from trainer.planner.placed import PlacedPlanner
from trainer.planner.plan import Terms

LENGTHS = [8] * 4


def _fixed() -> FixedPlanner:
    shape = AttentionShape(
        num_heads=2, num_kv_heads=2, head_dim=4, element_bytes=4, num_layers=1, windowed=False
    )
    return FixedPlanner(
        layout=Layout(replica=2),
        arithmetic=BatchArithmetic(
            global_batch_tokens=32, seq_len=8, max_tokens_per_device=8, data_ranks=2
        ),
        activation="keep",
        model=ModelCost(
            attention=shape,
            parameters=1000,
            flops_per_token=6e3,
            sharded=False,
            param_bytes=4,
            reshard_after_forward=False,
        ),
        hardware=Hardware(
            peak_flops_per_s=1e9,
            flops_per_s=5e8,
            update_parameters_per_s=1e6,
            link_bytes_per_s=1e8,
        ),
    )


@pytest.mark.parametrize("share", [None, 0.4])
def test_the_plan_is_the_planners_but_for_the_place(share):
    plan = PlacedPlanner(_fixed(), optimizer="interleaved", share=share).choose(3, LENGTHS)
    assert (plan.optimizer, plan.optimizer_share) == ("interleaved", share)
    assert replace(plan, optimizer="device", optimizer_share=None) == _fixed().choose(3, LENGTHS)
    assert decode_plan(encode_plan(plan)) == plan


def test_what_is_observed_corrects_the_planners_rates():
    alone, planner = _fixed(), _fixed()
    placed = PlacedPlanner(planner, optimizer="disk", share=0.0)
    measured = Terms(compute_s=1.0, update_s=0.5)
    for step in (1, 2):
        placed.observe(placed.choose(step, LENGTHS), measured)
        alone.observe(alone.choose(step, LENGTHS), measured)
    assert placed.hardware == planner.hardware == alone.hardware
    assert placed.hardware != _fixed().hardware
