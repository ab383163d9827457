"""A spike is found before its update, and a rollback leaves the run as if what was undone had never
been: in the running processes, and when they are killed right after it."""

import shutil
from pathlib import Path

import pytest

from tests.jobs import start_until, tiny_job, train_on_ranks
from tests.left import events, losses_by_step
from tests.processes import kill_all
from trainer.checkpoint.config import CheckpointConfig
from trainer.checkpoint.folder import list_complete, step_name
from trainer.config import JobConfig, RunConfig, TrainConfig
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
    write_planted(RunFolder.of(config.run).planted, SPIKE)
    return config


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
