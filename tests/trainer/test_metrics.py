"""A report becomes the promised lines, and TensorBoard scalars."""

import json
from dataclasses import replace

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from parallel.layout import Layout
from trainer.exchanged import Exchanged
from trainer.metrics import JsonlSink, StepReport
from trainer.movement import ActivationMovement, Movement
from trainer.planner.plan import Round, SequenceGroup, StepPlan, Terms
from trainer.tensorboard import TensorBoardSink

PROMISED = {
    "step",
    "time",
    "loss",
    "grad_norm",
    "lr",
    "tokens",
    "tokens_per_s",
    "tokens_per_s_per_device",
    "mfu",
    "step_s",
    "data_s",
    "predicted_step_s",
    "memory_gib",
    "host_memory_gib",
}
PROMISED_OF_PLANS = {
    "step",
    "layout",
    "rounds",
    "attention",
    "activation",
    "optimizer",
    "optimizer_share",
    "compression",
    "predicted",
    "measured",
    "bytes",
    "plan_s",
}


def _report(step: int = 3) -> StepReport:
    group = SequenceGroup(first_rank=1, size=1, sequences=(0, 2))
    plan = StepPlan(
        step=step,
        layout=Layout(replica=2),
        rounds=(Round(groups=(group,)),),
        predicted=Terms(compute_s=0.4),
    )
    return StepReport(
        step=step,
        total_steps=9,
        time=100.0,
        loss=2.5,
        aux_loss=0.1,
        grad_norm=1.5,
        lr=1e-3,
        tokens=3000,
        step_tokens=1000,
        step_s=0.5,
        mfu=0.3,
        memory_gib=1.0,
        host_memory_gib=2.0,
        expert_imbalance=1.1,
        dropped_share=0.0,
        skipped=False,
        world_size=2,
        plan=plan,
        measured=Terms(compute_s=0.45, data_s=0.01),
        bytes_sent={"replica/all_reduce": 77},
    )


def test_lines_have_the_promised_fields(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl", tmp_path / "plans.jsonl")
    sink.write(_report())
    sink.close()
    metrics = json.loads((tmp_path / "metrics.jsonl").read_text())
    plans = json.loads((tmp_path / "plans.jsonl").read_text())
    assert set(metrics) >= PROMISED
    assert set(plans) >= PROMISED_OF_PLANS
    assert metrics["tokens_per_s"] == 2000.0
    assert metrics["tokens_per_s_per_device"] == 1000.0
    assert plans["rounds"] == [[[1, 1, [0, 2]]]]
    assert plans["predicted"].keys() == plans["measured"].keys()


def test_lines_wait_while_the_disk_is_full(tmp_path):
    metrics, plans = tmp_path / "metrics.jsonl", tmp_path / "plans.jsonl"
    metrics.symlink_to("/dev/full")
    sink = JsonlSink(metrics, plans)
    sink.write(_report(3))
    assert not plans.exists()
    metrics.unlink()
    sink.write(_report(4))
    for path in (metrics, plans):
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [3, 4]


def test_what_the_optimizer_moved_is_told_and_only_then():
    assert not [name for name in _report().metrics_record() if name.startswith("offload")]
    moved = Movement(
        moved_bytes={"disk_read": 2**30, "disk_written": 2**30},
        update_s=2.0,
        stall_s=0.5,
        device_share=0.25,
    )
    report = replace(_report(), movement=moved)
    metrics = report.metrics_record()
    assert metrics["offload_moved_gib"] == 2.0
    assert metrics["offload_hidden"] == 0.75
    assert metrics["offload_stall_s"] == 0.5
    assert metrics["offload_device_share"] == 0.25
    assert report.plan_record()["bytes"] == {
        "replica/all_reduce": 77,
        "offload/disk_read": 2**30,
        "offload/disk_written": 2**30,
    }


def test_what_activations_moved_is_told_and_only_then():
    assert not [name for name in _report().metrics_record() if name.startswith("activation")]
    moved = ActivationMovement(
        stored_bytes=2**30,
        fetched_bytes=2**29,
        recomputed_bytes=2**28,
        saved_bytes=2**31,
        transfer_s=1.5,
        exposed_s=0.5,
    )
    report = replace(_report(), activations=moved)
    metrics = report.metrics_record()
    assert metrics["activation_moved_gib"] == 1.5
    assert metrics["activation_recomputed_gib"] == 0.25
    assert metrics["activation_saved_gib"] == 2.0
    assert metrics["activation_hidden_s"] == 1.0
    assert metrics["activation_exposed_s"] == 0.5
    assert report.plan_record()["bytes"] == {
        "replica/all_reduce": 77,
        "offload/activations_stored": 2**30,
        "offload/activations_fetched": 2**29,
    }


def test_what_replicas_sent_is_told_and_only_then():
    assert not [name for name in _report().metrics_record() if name.startswith("replica")]
    sent = Exchanged(sent_bytes=2**19, dense_bytes=2**23, waited_s=0.25, error_norm=1.5)
    plan = replace(_report().plan, compression="dgc@0.01", replica_bytes=2**19)
    report = replace(_report(), exchanged=sent, plan=plan)
    metrics = report.metrics_record()
    assert {name: metrics[name] for name in metrics if name.startswith("replica")} == {
        "replica_sent_mib": 0.5,
        "replica_dense_mib": 8.0,
        "replica_saving": 16.0,
        "replica_exposed_s": 0.25,
        "replica_error_norm": 1.5,
    }
    record = report.plan_record()
    assert (record["compression"], record["replica_bytes"]) == ("dgc@0.01", 2**19)


def test_tensorboard_gets_every_number(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(_report())
    sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert set(_report().metrics_record()) - {"step", "time"} <= scalars
    assert {"predicted/compute_s", "measured/compute_s"} <= scalars
    (loss,) = events.Scalars("loss")
    assert (loss.step, loss.wall_time) == (_report().step, _report().time)
    assert events.Scalars("bytes/replica/all_reduce")[0].value == 77.0
