"""The guarantees of trainer/planner/compressed.py, one by one."""

from dataclasses import replace

import pytest

from comms.compression.config import WHOLE, ReplicaConfig, StepChoice
from tests.trainer.planner.planners import LENGTHS, fixed_planner
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.compressed import CompressedPlanner
from trainer.planner.fixed import FixedPlanner
from trainer.planner.plan import Terms

DGC = ReplicaConfig(method="dgc", ratio=0.001, warmup_steps=8, warmup_stages=4)
ECONTROL = ReplicaConfig(method="econtrol", ratio=0.01, dense_steps=2)


def _bytes(choice: StepChoice) -> int:
    return 4000 if choice == WHOLE else round(4000 * (choice.ratio or 0.5))


def _planner(config: ReplicaConfig, other_bytes: int = 0) -> tuple[CompressedPlanner, FixedPlanner]:
    inner = fixed_planner()
    planner = CompressedPlanner(
        inner, config, replica_bytes=_bytes, other_bytes=lambda plan: other_bytes
    )
    return planner, inner


def test_the_choice_follows_from_the_step_alone():
    planner, _ = _planner(DGC)
    wanted = ["dgc@0.251"] * 2 + ["dgc@0.0631"] * 2 + ["dgc@0.0158"] * 2 + ["dgc@0.00398"] * 2
    found = [planner.choose(step, LENGTHS).compression for step in range(1, 10)]
    assert found == [*wanted, "dgc@0.001"]
    assert _planner(DGC)[0].choose(9, LENGTHS).compression == "dgc@0.001"
    whole, _ = _planner(ECONTROL)
    plans = [whole.choose(step, LENGTHS) for step in (1, 2, 3)]
    assert [plan.compression for plan in plans] == ["none", "none", "econtrol@0.01"]
    assert [plan.replica_bytes for plan in plans] == [4000, 4000, 40]


def test_fewer_bytes_take_less_time_and_correct_the_same_rates():
    alone, (planner, inner) = fixed_planner(), _planner(ECONTROL, other_bytes=4000)
    for step in range(1, 6):
        dense, plan = alone.choose(step, LENGTHS), planner.choose(step, LENGTHS)
        share = 1.0 if step < 3 else (4000 + 40) / 8000
        assert plan.predicted.communication_s == pytest.approx(
            dense.predicted.communication_s * share
        )
        alone.observe(dense, Terms(compute_s=1.0, communication_s=0.5))
        planner.observe(plan, Terms(compute_s=1.0, communication_s=0.5 * share))
        for rate in ("exposed_fraction", "flops_per_s"):
            found = getattr(planner.hardware, rate)
            assert found == pytest.approx(getattr(alone.hardware, rate))
    assert planner.hardware == inner.hardware != fixed_planner().hardware


def test_the_rest_is_the_planners_and_reasons_say_what_is_sent():
    plan, own = _planner(DGC)[0].choose(1, LENGTHS), fixed_planner().choose(1, LENGTHS)
    bare = replace(
        plan,
        compression="none",
        replica_bytes=None,
        predicted=own.predicted,
        reasons=plan.reasons[:-1],
    )
    assert bare == own
    assert plan.reasons[-1] == (
        "replicas send dgc@0.251 as the recipe says until step 8, to begin gently: 1,004 bytes "
        "instead of 4,000"
    )
    assert "in the first 2 steps" in _planner(ECONTROL)[0].choose(1, LENGTHS).reasons[-1]
    assert decode_plan(encode_plan(plan)) == plan
