"""Invariant 3, the hard way: ranks killed at any moment, then the same command again."""

import random
import shutil
import time
from pathlib import Path

import pytest

from tests.jobs import start_until_step, tiny_job, train_on_ranks
from tests.left import events, losses
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, RunConfig, TrainConfig


def _kill_at(config: JobConfig, *, step: int, chance: random.Random) -> None:
    """Train until `step` is reported, then kill first one rank and then the others."""
    workers, _ = start_until_step(config, 2, step)
    time.sleep(chance.uniform(0.0, 0.1))
    chance.shuffle(workers)
    for worker in workers:
        worker.kill()
        worker.join()


@pytest.mark.timeout(240)
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path):
    sections = {
        "train": TrainConfig(steps=80, global_batch_tokens=8 * 48, max_tokens_per_device=96),
        "checkpoint": CheckpointConfig(interval_steps=3),
    }
    whole = tiny_job(tmp_path, run=RunConfig(name="whole", dir=str(tmp_path / "runs")), **sections)
    train_on_ranks(whole, 2)
    broken = tiny_job(tmp_path, **sections)
    chance = random.Random(7)
    # From the second report on, all ranks have a step in memory, however slow the machine is.
    for step in (2, 10, 23, 41):
        _kill_at(broken, step=step, chance=chance)
        # Every other time the host goes down with its ranks, and only the disk is left.
        if step in (10, 41):
            shutil.rmtree(broken.keep.dir)
            Path(broken.keep.dir).mkdir()
    outcome, _ = train_on_ranks(broken, 2)
    assert outcome.step == 80
    resumed = events(broken, "resumed")
    assert [event["place"] for event in resumed] == ["memory", "disk", "memory", "disk"]
    assert losses(broken) == losses(whole)
