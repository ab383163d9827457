"""The guarantees of trainer/planner/compressed.py, one by one."""

from dataclasses import replace

import pytest

from comms.compression.config import WHOLE, ReplicaConfig, StepChoice
from parallel.layout import Layout
from trainer.planner.batch import BatchArithmetic
from trainer.planner.codec import decode_plan, encode_plan
from trainer.planner.compressed import CompressedPlanner
from trainer.planner.costs import AttentionShape, Hardware, ModelCost
from trainer.planner.fixed import FixedPlanner
from trainer.planner.plan import Terms

LENGTHS = [8] * 4
DGC = ReplicaConfig(method="dgc", ratio=0.001, warmup_steps=8, warmup_stages=4)
ECONTROL = ReplicaConfig(method="econtrol", ratio=0.01, dense_steps=2)


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


def _bytes(choice: StepChoice) -> int:
    return 4000 if choice == WHOLE else round(4000 * (choice.ratio or 0.5))


def _planner(config: ReplicaConfig, other_bytes: int = 0) -> tuple[CompressedPlanner, FixedPlanner]:
    inner = _fixed()
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
    alone, (planner, inner) = _fixed(), _planner(ECONTROL, other_bytes=4000)
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
    assert planner.hardware == inner.hardware != _fixed().hardware


def test_the_rest_is_the_planners_and_reasons_say_what_is_sent():
    plan, own = _planner(DGC)[0].choose(1, LENGTHS), _fixed().choose(1, LENGTHS)
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
