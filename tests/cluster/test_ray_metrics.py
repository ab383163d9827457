"""Names and values that alerts rely on."""

import pytest

from cluster.ray_metrics import RayMetricsSink, gauge_values
from parallel.layout import Layout
from trainer.metrics import StepReport
from trainer.planner.plan import StepPlan, Terms


@pytest.fixture
def report() -> StepReport:
    """One step."""
    return StepReport(
        step=3,
        total_steps=10,
        time=1000.0,
        loss=2.5,
        aux_loss=0.0,
        grad_norm=1.5,
        lr=0.001,
        tokens=300,
        step_tokens=100,
        step_s=0.5,
        mfu=0.25,
        memory_gib=1.0,
        host_memory_gib=4.0,
        expert_imbalance=0.0,
        dropped_share=0.0,
        skipped=False,
        world_size=2,
        plan=StepPlan(step=3, layout=Layout(), rounds=()),
        measured=Terms(),
        bytes_sent={},
    )


def test_names_carry_their_unit_and_values_are_in_it(report: StepReport) -> None:
    assert gauge_values(report) == {
        "trainer_step": 3,
        "trainer_loss": 2.5,
        "trainer_grad_norm": 1.5,
        "trainer_learning_rate": 0.001,
        "trainer_throughput_tokens_per_sec": 200.0,
        "trainer_mfu_percent": 25.0,
        "trainer_peak_memory_gib": 1.0,
        "trainer_host_memory_gib": 4.0,
        "trainer_step_duration_seconds": 0.5,
        "trainer_last_step_timestamp_seconds": 1000.0,
    }


def test_the_sink_has_a_gauge_for_every_value_and_no_step_label(report: StepReport) -> None:
    sink = RayMetricsSink(run="r", project="p", role="trainer")
    sink.write(report)
    gauges = sink.gauges
    assert set(gauges) == set(gauge_values(report))
    for gauge in gauges.values():
        assert gauge.info["default_tags"] == {"run": "r", "project": "p", "role": "trainer"}
    sink.close()
