"""Invariant 2: where optimizer states and activations are changes no loss, and no resumed run."""

from dataclasses import replace

import pytest

from offload.config import OffloadConfig
from parallel.config import ParallelConfig
from tests.jobs import tiny_job, train_on_ranks, train_until_killed
from tests.left import losses
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import InfrastructureError, RecipeError, ResourceError
from trainer.run_folder import RunFolder

SWAPPED = {
    "activations": "swap",
    "activation_share": 0.5,
    "activation_min_bytes": 0,
    "activation_kept_blocks": 0,
}


def _on_disk(folder, **changes) -> OffloadConfig:
    """Optimizer states and activations."""
    return OffloadConfig(
        optimizer="disk",
        disk=(str(folder / "disk0"), str(folder / "disk1")),
        disk_depth=2,
        subgroup_parameters=4096,
        **{**SWAPPED, **changes},
    )


def _named(job: JobConfig, name: str, **changes) -> JobConfig:
    return replace(job, run=replace(job.run, name=name), **changes)


def _steps(steps: int) -> TrainConfig:
    return TrainConfig(steps=steps, global_batch_tokens=8 * 48, max_tokens_per_device=96)


@pytest.mark.timeout(240)
def test_fifty_steps_of_a_dense_model_are_bitwise_those_with_states_in_memory(tmp_path):
    job = tiny_job(tmp_path, train=_steps(50))
    job = replace(job, model=replace(job.model, moe=None))
    _, wanted = train_on_ranks(_named(job, "memory"), 1)
    offload = _on_disk(tmp_path, activation_share="auto")
    _, found = train_on_ranks(_named(job, "disk", offload=offload), 1)
    assert [r.loss for r in found] == [r.loss for r in wanted]
    assert [r.grad_norm for r in found] == [r.grad_norm for r in wanted]
    assert any(r.grad_norm > job.optim.max_grad_norm for r in wanted)
    assert {r.plan.optimizer for r in wanted} == {"device"}
    assert {r.plan.optimizer for r in found} == {"disk"}
    assert all(r.movement is None for r in wanted)
    assert all(r.movement.moved_bytes["disk_read"] > 0 for r in found[1:])
    assert all(r.plan.activation.startswith("swap(") for r in found)
    assert all(r.activations.stored_bytes > 0 for r in found)
    assert all(r.measured.copies_s == r.activations.exposed_s for r in found)


LAYOUTS = [
    (2, ParallelConfig(replica=2)),
    (2, ParallelConfig(shard=2)),
    (2, ParallelConfig(tp=2)),
    (2, ParallelConfig(pp=2)),
    pytest.param(2, ParallelConfig(sp=2), marks=pytest.mark.slow),
    pytest.param(4, ParallelConfig(shard=4, shard_weights=2), marks=pytest.mark.slow),
]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("ranks", "parallel"),
    LAYOUTS,
    ids=["buckets", "fsdp2", "tensor", "pipeline", "sequence", "hierarchical"],
)
def test_no_layout_changes_itslosses(tmp_path, ranks, parallel):
    job = tiny_job(tmp_path, parallel=parallel)
    _, wanted = train_on_ranks(_named(job, "memory"), ranks)
    offloads = {"disk": _on_disk(tmp_path, disk_share=0.5)}
    if parallel.shard == 2:
        offloads["interleaved"] = OffloadConfig(
            optimizer="interleaved",
            share=0.5,
            subgroup_parameters=4096,
            activations="selective",
            activation_min_bytes=0,
        )
    for name, offload in offloads.items():
        _, found = train_on_ranks(_named(job, name, offload=offload), ranks)
        assert [r.loss for r in found] == [r.loss for r in wanted]
        assert {r.plan.optimizer for r in found} == {name}
        assert {r.plan.activation for r in found} == {
            "swap(0.5) to disk" if name == "disk" else "selective"
        }
        assert all(r.activations.recomputed_bytes > 0 for r in found)


@pytest.mark.timeout(240)
def test_a_killed_run_with_states_on_disk_ends_like_an_undisturbed_one(tmp_path):
    sections = {"train": _steps(20), "checkpoint": CheckpointConfig(interval_steps=4)}
    whole = tiny_job(tmp_path, run=RunConfig(name="whole", dir=str(tmp_path / "runs")), **sections)
    train_on_ranks(whole, 2)
    broken = tiny_job(tmp_path, offload=_on_disk(tmp_path), **sections)
    for step in (1, 10):
        train_until_killed(broken, 2, step=step)
    assert train_on_ranks(broken, 2)[0].step == 20
    assert losses(broken) == losses(whole)
    assert list((tmp_path / "disk0").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_goes_on_with_states_elsewhere_and_in_another_layout(tmp_path):
    moved = tiny_job(tmp_path, train=_steps(8))
    whole = _named(moved, "whole")
    train_on_ranks(whole, 2)
    for offload in (_on_disk(tmp_path), OffloadConfig(), OffloadConfig(optimizer="host")):
        train_on_ranks(replace(moved, offload=offload), 2, stop_after=2)
    assert losses(moved) == losses(whole)[:6]
    sharded = ParallelConfig(shard=2)
    train_on_ranks(replace(moved, offload=_on_disk(tmp_path), parallel=sharded), 2, stop_after=1)
    train_on_ranks(moved, 1)
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.timeout(120)
def test_what_cannot_be_kept_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    unwritable = OffloadConfig(optimizer="disk", disk=(str(tmp_path / "file" / "below"),))
    with pytest.raises(ResourceError, match="could not make room for optimizer states"):
        train_on_ranks(tiny_job(tmp_path, offload=unwritable), 2)
    tight = OffloadConfig(optimizer="host", host_memory_fraction=0.0)
    with pytest.raises(ResourceError, match=r"do not fit as offload\.optimizer=host asks"):
        train_on_ranks(tiny_job(tmp_path, offload=tight), 1)
    idle = {"offload.disk_share": "run.yaml:7"}
    with pytest.raises(RecipeError, match=r"offload\.disk_share has no effect"):
        train_on_ranks(tiny_job(tmp_path), 1, explicit=idle)
    with pytest.raises(ValueError, match=r"offload\.disk='scratch' is relative"):
        tiny_job(tmp_path, offload=OffloadConfig(disk=("scratch",)))
    too_much = OffloadConfig(disk=str(tmp_path), **{**SWAPPED, "activation_bytes": 1 << 60})
    with pytest.raises(
        ResourceError, match=r"activations as offload\.activations asks.*are needed"
    ):
        train_on_ranks(tiny_job(tmp_path, offload=too_much), 1)
    with pytest.raises(RecipeError, match="activations have nowhere to go"):
        train_on_ranks(tiny_job(tmp_path, offload=OffloadConfig(activations="swap")), 1)
    assert not RunFolder.of(tiny_job(tmp_path).run).metrics.exists()


@pytest.mark.timeout(120)
def test_a_disk_without_an_answer_ends_the_run_as_a_broken_machine(tmp_path):
    offload = replace(_on_disk(tmp_path), disk_timeout_s=1e-9)
    job = tiny_job(tmp_path, offload=offload)
    with pytest.raises((InfrastructureError, ResourceError), match="no answer to a"):
        train_on_ranks(job, 1)
