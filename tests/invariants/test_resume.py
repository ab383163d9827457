"""Invariant 3: a stopped or changed run ends with the losses of an undisturbed one."""

from dataclasses import replace

import pytest

from parallel.config import ParallelConfig
from tests.jobs import tiny_job, train_on_ranks
from tests.left import events, losses
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from trainer.errors import NumericError, RecipeError
from trainer.run_folder import RunFolder


@pytest.mark.timeout(180)
def test_a_stopped_run_goes_on_bitwise_and_on_other_ranks_within_the_bound(tmp_path):
    undisturbed = tiny_job(tmp_path, run=RunConfig(name="whole", dir=str(tmp_path / "runs")))
    outcome, whole = train_on_ranks(undisturbed, 2)
    assert (outcome.kind, outcome.step) == ("finished", 6)
    wanted = losses(undisturbed)

    broken = tiny_job(tmp_path)
    outcome, _ = train_on_ranks(broken, 2, stop_after=2)
    assert (outcome.kind, outcome.step) == ("stopped", 2)
    outcome, _ = train_on_ranks(broken, 2, stop_after=2)
    assert (outcome.kind, outcome.step) == ("stopped", 4)
    assert losses(broken) == wanted[:4]

    moved = replace(broken, parallel=ParallelConfig(shard=3))
    outcome, reports = train_on_ranks(moved, 3)
    assert (outcome.kind, outcome.step) == ("finished", 6)
    assert losses(broken) == pytest.approx(wanted, rel=1e-5)
    assert reports[-1].tokens == whole[-1].tokens

    assert [event["step"] for event in events(broken, "resumed")] == [2, 4]


@pytest.mark.timeout(120)
def test_going_back_on_purpose_leaves_the_later_steps_behind(tmp_path):
    config = tiny_job(tmp_path, checkpoint=CheckpointConfig(interval_steps=2, keep_last=9))
    train_on_ranks(config, 1)
    wanted = losses(config)
    folder = RunFolder.of(config.run)
    back = replace(config.run, resume=str(folder.checkpoints / "step-00000002"))
    outcome, _ = train_on_ranks(replace(config, run=back), 1, stop_after=1)
    assert (outcome.kind, outcome.step) == ("stopped", 3)
    outcome, reports = train_on_ranks(config, 1)
    assert [r.step for r in reports] == [4, 5, 6]
    assert losses(config) == wanted
    aside = sorted(p.name for p in folder.checkpoints.glob("abandoned-*"))
    assert aside == ["abandoned-step-00000004", "abandoned-step-00000006"]


@pytest.mark.timeout(120)
def test_parameters_kept_between_forward_and_backward_are_saved_whole(tmp_path):
    layout = ParallelConfig(shard=2, reshard_after_forward=False)
    config = tiny_job(tmp_path, parallel=layout, checkpoint=CheckpointConfig(interval_steps=2))
    whole = replace(config, run=replace(config.run, name="whole"), parallel=ParallelConfig())
    train_on_ranks(whole, 1)
    train_on_ranks(config, 2, stop_after=2)
    outcome, _ = train_on_ranks(config, 2)
    assert outcome.step == 6
    assert losses(config) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.timeout(120)
def test_what_does_not_fit_the_checkpoint_is_refused(tmp_path):
    config = tiny_job(tmp_path, checkpoint=CheckpointConfig(interval_steps=2))
    train_on_ranks(config, 1, stop_after=2)
    wider = replace(config.train, global_batch_tokens=16 * 48)
    with pytest.raises(RecipeError, match="sequences_per_step: 8 in the checkpoint, 16 now"):
        train_on_ranks(replace(config, train=wider), 1)
    assert isinstance(config.model, ModelConfig)
    with pytest.raises(RecipeError, match="checkpoint of another model"):
        train_on_ranks(replace(config, model=replace(config.model, hidden_size=64)), 1)
    with pytest.raises(RecipeError, match=r"run\.resume=never, but .* already holds"):
        train_on_ranks(replace(config, run=replace(config.run, resume="never")), 1)
    missing = replace(config.run, resume="must", name="other")
    with pytest.raises(RecipeError, match="holds no complete checkpoint"):
        train_on_ranks(replace(config, run=missing), 1)


@pytest.mark.timeout(120)
def test_a_resume_that_computes_something_else_is_found_out(tmp_path):
    config = tiny_job(tmp_path)
    train_on_ranks(config, 1, stop_after=1)
    # Another epsilon in the norms leaves every tensor loadable and every loss a little wrong.
    other = replace(config.model, rms_norm_eps=1e-3)
    with pytest.raises(NumericError, match="the resumed run is not the saved one"):
        train_on_ranks(replace(config, model=other), 1)


@pytest.mark.timeout(120)
def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run(tmp_path):
    config = tiny_job(
        tmp_path,
        optim=OptimConfig(lr=1e30),
        train=TrainConfig(
            steps=20, global_batch_tokens=8 * 48, max_tokens_per_device=96, max_skipped_steps=2
        ),
    )
    with pytest.raises(NumericError, match=r"for 3 steps in a row .*Lower optim\.lr"):
        train_on_ranks(config, 1)
    faults = events(config, "numeric_fault")
    assert len(faults) == 3
    causes = {"the gradient is not finite on ranks [0]", "the loss is not finite on ranks [0]"}
    assert {fault["cause"] for fault in faults} <= causes


def test_a_key_that_nothing_reads_stops_the_run(tmp_path):
    explicit = {"sched.decay_fraction": "run.yaml:9", "sched.name": "run.yaml:8"}
    with pytest.raises(RecipeError, match=r"run\.yaml:9: sched\.decay_fraction has no effect"):
        train_on_ranks(tiny_job(tmp_path), 1, explicit=explicit)
