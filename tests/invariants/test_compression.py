"""Invariants 3 and 7 where replicas compress gradients; what is sent whole is summed as without."""

from dataclasses import replace

import pytest

from comms.compression.config import ReplicaConfig
from comms.config import CommsConfig
from parallel.config import ParallelConfig
from tests.jobs import start_until, tiny_job, train_on_ranks
from tests.left import events, losses
from tests.processes import kill_all
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, OptimConfig, TrainConfig
from trainer.errors import RecipeError
from trainer.run_folder import RunFolder
from trainer.spread import require_layout

ECONTROL = ReplicaConfig(method="econtrol", ratio=0.05, dense_below=100)
DGC = ReplicaConfig(method="dgc", ratio=0.05, dense_below=100, warmup_steps=8)
SGD = OptimConfig(name="sgd", lr=0.1)
TWO = ParallelConfig(replica=2)


def _job(base: JobConfig, name: str, replica: ReplicaConfig, **changes) -> JobConfig:
    run = replace(base.run, name=name)
    return replace(
        base, run=run, **{"parallel": TWO, "comms": CommsConfig(replica=replica), **changes}
    )


@pytest.mark.timeout(240)
def test_what_is_sent_whole_is_summed_bitwise_as_without_compression(tmp_path):
    base = tiny_job(tmp_path)
    _, plain = train_on_ranks(_job(base, "plain", ReplicaConfig()), 2)
    _, whole = train_on_ranks(_job(base, "whole", replace(ECONTROL, dense_steps=99)), 2)
    assert [(r.loss, r.grad_norm) for r in whole] == [(r.loss, r.grad_norm) for r in plain]
    assert {r.plan.compression for r in whole} == {"none"}
    assert all(r.exchanged is None for r in plain)
    assert all(r.exchanged.error_norm == 0 for r in whole)


@pytest.mark.timeout(240)
def test_a_method_that_changes_on_the_way_keeps_what_was_not_sent(tmp_path):
    """Bytes are those foretold, the loss still falls, and a step that sends everything sends what
    earlier ones left."""
    base = tiny_job(tmp_path)
    job = _job(base, "changing", DGC, optim=SGD)
    _, first = train_on_ranks(job, 2, stop_after=3)
    fp16 = _job(base, "changing", replace(DGC, ratio=1.0, warmup_steps=0), optim=SGD)
    _, rest = train_on_ranks(fp16, 2)
    reports = [*first, *rest]
    assert [r.plan.compression for r in first] == ["dgc@0.549", "dgc@0.549", "dgc@0.302"]
    assert {r.plan.compression for r in rest} == {"dgc@1.0"}
    for report in reports:
        assert report.exchanged.sent_bytes == report.plan.replica_bytes
        assert f"send {report.plan.compression}" in report.plan.reasons[-1]
    assert [r.exchanged.error_norm > 0 for r in reports] == [True] * 3 + [False] * 3
    assert reports[-1].loss < reports[0].loss
    resets = events(job, "compression_reset")
    assert [e["cause"].split(" of ")[0] for e in resets] == ["dense_velocity"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("ranks", "parallel", "replica", "optim"),
    [
        (2, TWO, ECONTROL, OptimConfig(lr=3e-3)),
        (4, ParallelConfig(replica=2, shard=2), DGC, SGD),
    ],
    ids=["buckets", "fsdp2"],
)
def test_a_killed_run_ends_with_the_losses_of_an_undisturbed_one(
    tmp_path, ranks, parallel, replica, optim
):
    train = TrainConfig(steps=6, global_batch_tokens=8 * 48, max_tokens_per_device=96)
    base = tiny_job(
        tmp_path, train=train, optim=optim, checkpoint=CheckpointConfig(interval_steps=2)
    )
    whole = _job(base, "whole", replica, parallel=parallel)
    _, reports = train_on_ranks(whole, ranks)
    assert all(r.exchanged.saving > 1 for r in reports[3:])
    broken = _job(base, "broken", replica, parallel=parallel)
    saved = RunFolder.of(broken.run).checkpoints / "step-00000002"
    workers, _ = start_until(broken, ranks, saved.exists)
    kill_all(workers)
    assert train_on_ranks(broken, ranks)[0].step == 6
    assert losses(broken) == losses(whole)
    assert not events(broken, "compression_reset")


REFUSED = [
    ({"optim": OptimConfig()}, DGC, "does not fit optim.name=adamw; set optim.name=sgd"),
    ({"optim": OptimConfig(name="sgd", momentum=0.0)}, DGC, "sgd with optim.momentum=0.0"),
]


@pytest.mark.parametrize(("changes", "replica", "message"), REFUSED)
def test_a_method_that_does_not_fit_the_optimizer_is_refused(tmp_path, changes, replica, message):
    with pytest.raises(ValueError, match=message):
        _job(tiny_job(tmp_path), "refused", replica, **changes)


def test_one_replica_has_nothing_to_compress(tmp_path):
    job = _job(tiny_job(tmp_path), "alone", ECONTROL, parallel=ParallelConfig(shard=2))
    with pytest.raises(RecipeError, match=r"set parallel\.replica to 2 or more"):
        require_layout(job, 2)
