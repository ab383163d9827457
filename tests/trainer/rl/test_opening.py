"""Whole runs by rewards, with an engine that samples with what the ranks publish.

Supervised steps first; then each batch is sampled by the weights that it trains (no staleness).
"""

from dataclasses import replace

import numpy as np
import pytest

from parallel.config import ParallelConfig
from tests.jobs import tiny_job, train_on_ranks
from tests.trainer.rl.partners import run_with_partner
from trainer.config import OptimConfig, TrainConfig
from trainer.errors import RecipeError
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.messages import Committed, Published, TrainerReady
from trainer.run_folder import read_lines

STEPS, SUPERVISED = 6, 2


def reward_job(folder, **changes):
    job = tiny_job(folder)
    sections = {
        "data": replace(
            job.data, source="task", tokenizer="bytes", task_questions=200, block_bytes=1024
        ),
        "train": TrainConfig(steps=STEPS, global_batch_tokens=4 * 48, max_tokens_per_device=96),
        "optim": OptimConfig(lr=1e-2),
        "rl": RlConfig(
            enabled=True,
            supervised_steps=SUPERVISED,
            prompts_per_step=3,
            samples_per_prompt=4,
            max_prompt_tokens=16,
            lr=2e-2,
        ),
        "rollout": RolloutConfig(max_new_tokens=10),
    }
    return replace(job, **{**sections, **changes})


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return folder, *run_with_partner(reward_job(folder), 1)


def test_every_version_is_trained_once_published_and_told(one_rank):
    _, outcome, reports, seen = one_rank
    assert outcome.kind == "finished"
    assert [report.step for report in reports] == list(range(1, STEPS + 1))
    ready = [message for message in seen.told if isinstance(message, TrainerReady)]
    assert [(message.version, message.trainers) for message in ready] == [(0, 1)]
    committed = [m for m in seen.told if isinstance(m, Committed)]
    assert [message.version for message in committed] == [0, 1, 2, 3]
    assert min(message.trained_s for message in committed) > 0.0
    assert [version for version, _ in seen.updates] == [0, 1, 2, 3]
    versions = [message.version for message in seen.told if isinstance(message, Published)]
    assert versions == [0, 1, 2, 3]
    # The last weights go nowhere but into the checkpoint.
    assert outcome.checkpoint.endswith(f"step-{STEPS:08d}")


def test_rates_and_figures_are_those_of_each_phase(one_rank):
    folder, _, reports, seen = one_rank
    assert [report.lr == 2e-2 for report in reports] == [False] * SUPERVISED + [True] * 4
    found = read_lines(folder / "runs" / "tiny" / "metrics.jsonl")
    assert "trust/kernel" not in found[SUPERVISED - 1]
    for line, reward in zip(found[SUPERVISED:], seen.rewards, strict=True):
        assert line["reward/mean"] == reward
        # Drawn by the weights that are trained, and computed again by other kernels.
        assert 0.0 <= line["trust/kernel"] < 1e-5
        assert "trust/version" not in line
        assert line["trust/mask"] == 0.0
        assert line["timing_s/trainer_wait"] > 0.0
        assert abs(line["loss"]) < 1e-6
        assert line["grad_norm"] > 0.01


def test_a_run_that_stopped_goes_on_bitwise(one_rank, tmp_path):
    _, _, _, whole = one_rank
    outcome, _, first = run_with_partner(reward_job(tmp_path), 1, stop_after=SUPERVISED + 2)
    # Asked while it waits for a batch or while it trains one, whichever it is.
    assert outcome.kind == "stopped"
    done = outcome.step - SUPERVISED
    assert done in (1, 2)
    outcome, _, second = run_with_partner(reward_job(tmp_path), 1)
    assert outcome.kind == "finished"
    assert [m.version for m in second.told if isinstance(m, TrainerReady)] == [done]
    weights = dict([*first.updates, *second.updates])
    for version, wanted in whole.updates:
        for name, value in wanted.items():
            assert np.array_equal(weights[version][name], value), (version, name)
    assert second.rewards == whole.rewards[done:]


def test_ranks_that_share_weights_and_sequences_learn_the_same(one_rank, tmp_path):
    _, _, reports, whole = one_rank
    # In the middle the worker leaves without a word and asks for another channel.
    job = reward_job(tmp_path, parallel=ParallelConfig(shard=2, sp=2))
    outcome, sharded, seen = run_with_partner(job, 2, stop_channel_at=2)
    assert outcome.kind == "finished"
    assert seen.rewards == whole.rewards
    for one, other in zip(reports, sharded, strict=True):
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)
    for (_, wanted), (_, got) in zip(whole.updates, seen.updates, strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(got[name], value, atol=2e-3)


def test_without_workers_a_run_by_rewards_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"rl\.enabled=true needs workers"):
        train_on_ranks(reward_job(tmp_path), 1, mailed=False)
