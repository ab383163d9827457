"""Invariant 3, the hard way: ranks killed at any moment, then the same command again."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.jobs import start_ranks, tiny_job, train_on_ranks
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, RunConfig, TrainConfig
from trainer.run_folder import RunFolder


def _lines(metrics: Path) -> list[str]:
    return metrics.read_text().splitlines() if metrics.exists() else []


def _losses(config: JobConfig) -> list[float]:
    return [json.loads(line)["loss"] for line in _lines(RunFolder.of(config.run).metrics)]


def _kill_at(config: JobConfig, *, step: int, chance: random.Random) -> None:
    """Train until `step` is reported, then kill first one rank and then the others."""
    workers, _ = start_ranks(config, 2)
    while len(_lines(RunFolder.of(config.run).metrics)) < step:
        time.sleep(0.005)
        assert all(worker.is_alive() for worker in workers)
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
    for step in (1, 10, 23, 41):
        _kill_at(broken, step=step, chance=chance)
        # Every other time the host goes down with its ranks, and only the disk is left.
        if step in (10, 41):
            shutil.rmtree(broken.keep.dir)
            Path(broken.keep.dir).mkdir()
    outcome, _ = train_on_ranks(broken, 2)
    assert outcome.step == 80
    events = RunFolder.of(broken.run).events.read_text().splitlines()
    resumed = [json.loads(line) for line in events if '"resumed"' in line]
    assert [event["place"] for event in resumed] == ["memory", "disk", "memory", "disk"]
    assert _losses(broken) == _losses(whole)
