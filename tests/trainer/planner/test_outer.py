"""The guarantees of trainer/planner/outer.py, one by one."""

from dataclasses import replace

import pytest

from comms.outer.schedule import OuterSchedule
from tests.trainer.planner.planners import LENGTHS, fixed_planner
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.outer import IslandPlanner, OuterCosts, outer_plan
from trainer.planner.plan import OuterPlan, Terms

COSTS = OuterCosts(schedule=OuterSchedule(6, 1, 3), sent_bytes=(10, 20, 30), bytes_per_s=100.0)


def test_the_plan_is_the_planners_but_for_the_exchange():
    planner = IslandPlanner(fixed_planner(), COSTS)
    alone = fixed_planner()
    for step in range(1, 8):
        plan, wanted = planner.choose(step, LENGTHS), alone.choose(step, LENGTHS)
        predicted = replace(plan.predicted, islands_s=0.0)
        assert replace(plan, outer=None, predicted=predicted) == wanted
        assert decode_plan(encode_plan(plan)) == plan
        planner.observe(plan, Terms(compute_s=1.0, update_s=0.5, islands_s=7.0))
        alone.observe(wanted, Terms(compute_s=1.0, update_s=0.5))
    assert planner.hardware == alone.hardware


def test_fragments_leave_in_turn_and_are_merged_after_the_overlap():
    found = [outer_plan(step, COSTS) for step in range(1, 9)]
    assert [one.sends for one in found] == [None, 0, None, 1, None, 2, None, 0]
    assert [one.merges for one in found] == [None, None, 0, None, 1, None, 2, None]
    assert [one.sent_bytes for one in found] == [0, 10, 0, 20, 0, 30, 0, 10]
    at_once = replace(COSTS, schedule=OuterSchedule(3, 0, 1))
    assert outer_plan(3, at_once) == OuterPlan(sends=0, merges=0, sent_bytes=10)
    # What began anew after step 2 has nothing under way at step 3.
    assert outer_plan(3, replace(COSTS, first_step=2)).merges is None
    assert outer_plan(5, replace(COSTS, first_step=2)).merges == 1


def test_waiting_is_what_the_overlap_does_not_hide_and_tells_the_rate():
    planner = IslandPlanner(fixed_planner(), COSTS)
    for step in range(1, 9):
        measured = Terms(compute_s=0.04)
        plan = planner.choose(step, LENGTHS)
        if plan.outer.merges is not None and step > 2:
            hidden_s = plan.predicted.total_s - plan.predicted.islands_s if step == 1 else 0.04
            sent_s = COSTS.sent_bytes[plan.outer.merges] / planner.bytes_per_s
            assert plan.predicted.islands_s == pytest.approx(max(0.0, sent_s - hidden_s))
            measured = replace(measured, islands_s=COSTS.sent_bytes[plan.outer.merges] / 50 - 0.04)
        planner.observe(plan, measured)
    assert 50 < planner.bytes_per_s < 100
    kept = planner.bytes_per_s
    planner.observe(planner.choose(9, LENGTHS), Terms(compute_s=0.04))
    assert planner.bytes_per_s == kept
