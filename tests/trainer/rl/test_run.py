"""Whole runs by rewards on one and two ranks, with an engine that samples with what they publish."""

from dataclasses import replace

import numpy as np
import pytest

from parallel.config import ParallelConfig
from tests.jobs import tiny_job
from tests.trainer.rl.partners import run_with_partner
from trainer.config import OptimConfig, TrainConfig
from trainer.data.config import DataConfig
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.messages import Committed, Published, TrainerReady


def rl_job(folder, *, steps=7, supervised=1, moe=False, **changes):
    job = tiny_job(folder)
    model = job.model if moe else replace(job.model, moe=None)
    sections = {
        "model": model,
        "data": replace(
            job.data, source="task", tokenizer="bytes", task_questions=200, block_bytes=1024
        ),
        "train": TrainConfig(steps=steps, global_batch_tokens=4 * 48, max_tokens_per_device=96),
        "optim": OptimConfig(lr=1e-2),
        "rl": RlConfig(
            enabled=True,
            supervised_steps=supervised,
            prompts_per_step=3,
            samples_per_prompt=4,
            max_prompt_tokens=16,
            lr=2e-2,
        ),
        "rollout": RolloutConfig(max_new_tokens=10),
    }
    return replace(job, **{**sections, **changes})


@pytest.mark.timeout(120)
def test_it_learns_and_publishes_every_version(tmp_path):
    job = rl_job(tmp_path)
    outcome, reports, seen = run_with_partner(job, 1)
    assert outcome.kind == "finished"
    assert seen.rewards[-1] > seen.rewards[0] + 0.5
    assert [m.version for m in seen.told if isinstance(m, Committed)] == list(range(6))
