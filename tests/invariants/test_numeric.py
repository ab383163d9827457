"""A spike is found before its update, and a rollback leaves the run as if what was undone had never
been: in the running processes, and when they are killed right after it."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.jobs import start_until, tiny_job, train_on_ranks
from tests.left import events, losses_by_step
from tests.processes import kill_all
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.folder import list_complete, step_name
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.errors import NumericError
from trainer.numeric.config import NumericConfig
from trainer.numeric.planted import Planted, write_planted
from trainer.run_folder import RunFolder

SPIKE = Planted(step=24, rank=1, factor="1e4")
UNDONE = (21, 22, 23, 24)


def _job(folder: Path, name: str, numeric: NumericConfig) -> JobConfig:
    return tiny_job(
        folder,
        run=RunConfig(name=name, dir=str(folder / "runs")),
        train=TrainConfig(steps=28, global_batch_tokens=8 * 48, max_tokens_per_device=2 * 48),
        checkpoint=CheckpointConfig(interval_steps=4, keep_last=3),
        numeric=numeric,
    )


def _spiking(folder: Path, name: str) -> JobConfig:
    config = _job(folder, name, NumericConfig(on_spike="rollback", rollback_steps=4))
    _plant(config, SPIKE)
    return config


def _plant(config: JobConfig, planted: Planted) -> None:
    write_planted(RunFolder.of(config.run).planted, planted)


def _fails(config: JobConfig, *, nan_at: int) -> str:
    """Go on until a gradient that is not finite ends the run; how that is told."""
    _plant(config, Planted(step=nan_at, rank=0, factor="nan"))
    with pytest.raises(NumericError) as ended:
        train_on_ranks(config, 1)
    return str(ended.value)


@pytest.mark.timeout(240)
def test_a_rollback_undoes_a_spike_once_and_for_all(tmp_path):
    without = _job(tmp_path, "without", NumericConfig(skip_steps=UNDONE))
    train_on_ranks(without, 2)
    assert not set(UNDONE) & set(losses_by_step(without))
    wanted = {step: loss for step, loss in losses_by_step(without).items() if step > 24}

    rolled = _spiking(tmp_path, "rolled")
    outcome, _ = train_on_ranks(rolled, 2)
    found = losses_by_step(rolled)
    assert (outcome.step, len(found)) == (28, 28)
    assert {step: found[step] for step in wanted} == wanted
    (spike,) = events(rolled, "loss_spike")
    assert (spike["step"], spike["action"]) == (24, "rollback")
    assert "gradient norm" in spike["cause"]
    assert spike["documents"]
    (back,) = events(rolled, "rolled_back")
    assert (back["step"], back["to_step"], back["not_trained"]) == (24, 20, [21, 24])
    listed = [step for step, _ in list_complete(RunFolder.of(rolled.run).checkpoints)]
    assert listed == [28, 24, 20]

    killed = _spiking(tmp_path, "killed")
    workers, _ = start_until(killed, 2, lambda: bool(events(killed, "rolled_back")))
    kill_all(workers)
    # The host goes down with its ranks, and the checkpoint that a rollback leaves is lost as well.
    shutil.rmtree(killed.keep.dir)
    Path(killed.keep.dir).mkdir()
    shutil.rmtree(RunFolder.of(killed.run).checkpoints / step_name(24), ignore_errors=True)
    outcome, _ = train_on_ranks(killed, 2)
    found = losses_by_step(killed)
    assert outcome.step == 28
    assert {step: found[step] for step in wanted} == wanted
    assert not set(UNDONE) & set(found)
    assert len(events(killed, "rolled_back")) == 1


@pytest.mark.timeout(240)
def test_numbers_that_are_not_finite_lead_back_once_and_then_end_the_run(tmp_path):
    undone = tuple(range(5, 11))
    without = _job(tmp_path, "without", NumericConfig(skip_steps=undone))
    train_on_ranks(without, 1)
    wanted = {step: loss for step, loss in losses_by_step(without).items() if step > 10}

    rolling = NumericConfig(on_nan="rollback", rollback_steps=4, max_rollbacks=1)
    run = _job(tmp_path, "run", rolling)
    _plant(run, Planted(step=10, rank=0, factor="nan"))
    outcome, _ = train_on_ranks(run, 1, stop_after=13)
    assert (outcome.kind, outcome.step) == ("stopped", 13)
    (back,) = events(run, "rolled_back")
    assert (back["step"], back["not_trained"]) == (10, [5, 10])
    # The budget is that of the whole run, whatever starts it has.
    assert "after 1 rollbacks (numeric.max_rollbacks=1)" in _fails(run, nan_at=16)
    stopping = replace(run, numeric=replace(rolling, on_nan="stop"))
    assert "numeric.on_nan=stop" in _fails(stopping, nan_at=19)
    faults = [(fault["step"], fault["action"]) for fault in events(run, "numeric_fault")]
    assert faults == [(10, "rollback"), (16, "stop"), (19, "stop")]
    RunFolder.of(run.run).planted.unlink()
    outcome, _ = train_on_ranks(run, 1)
    found = losses_by_step(run)
    assert outcome.step == 28
    assert {step: found[step] for step in wanted} == wanted
    assert [event["step"] for event in events(run, "resumed")] == [13, 15, 18]
