"""Plans carry the place of the optimizer's states."""

from dataclasses import replace

import pytest

from tests.trainer.planner.planners import LENGTHS, fixed_planner
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.placed import PlacedPlanner
from trainer.planner.plan import Terms


@pytest.mark.parametrize("share", [None, 0.4])
def test_the_plan_is_the_planners_but_for_the_place(share):
    plan = PlacedPlanner(fixed_planner(), optimizer="interleaved", share=share).choose(3, LENGTHS)
    assert (plan.optimizer, plan.optimizer_share) == ("interleaved", share)
    assert replace(plan, optimizer="device", optimizer_share=None) == fixed_planner().choose(
        3, LENGTHS
    )
    assert decode_plan(encode_plan(plan)) == plan


def test_what_is_observed_corrects_the_planners_rates():
    alone, planner = fixed_planner(), fixed_planner()
    placed = PlacedPlanner(planner, optimizer="disk", share=0.0)
    measured = Terms(compute_s=1.0, update_s=0.5)
    for step in (1, 2):
        placed.observe(placed.choose(step, LENGTHS), measured)
        alone.observe(alone.choose(step, LENGTHS), measured)
    assert placed.hardware == planner.hardware == alone.hardware
    assert placed.hardware != fixed_planner().hardware
