"""Every key of `rl` and `rollout` is read by somebody: ranks, those who sample, or the driver."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from cluster.rewards.pool import RewardPool
from cluster.rl.setup import rollout_means
from tests.invariants.rewards_in_one_process import run_in_one_process
from tests.jobs import tiny_job, train_on_ranks
from trainer.config import JobConfig, OptimConfig, TrainConfig
from trainer.errors import RecipeError
from trainer.reads import ReadLog, leaves_of
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.engine.config import EngineConfig
from trainer.rl.objectives.config import Kind, ObjectiveConfig
from trainer.rl.objectives.policy import pair_loss, policy_loss
from trainer.rl.objectives.stream import GlobalCounts, PolicyStream
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.rewards.outcome import RewardRequest
from trainer.rl.tasks.build import build_task
from trainer.rl.tasks.config import TaskConfig


def job(folder: Path, *, rl: dict[str, Any], rollout: dict[str, Any]) -> JobConfig:
    tiny = tiny_job(folder)
    return replace(
        tiny,
        model=replace(tiny.model, moe=None),
        data=replace(tiny.data, source="task", tokenizer="bytes", task_questions=64),
        train=TrainConfig(steps=5, global_batch_tokens=4 * 48, max_tokens_per_device=192),
        optim=OptimConfig(lr=1e-3),
        rl=RlConfig(
            **{
                "enabled": True,
                "supervised_steps": 1,
                "prompts_per_step": 2,
                "samples_per_prompt": 4,
                "max_prompt_tokens": 8,
                "dynamic_sampling": False,
            }
            | rl
        ),
        rollout=RolloutConfig(**{"max_new_tokens": 8} | rollout),
    )


def of_the_ranks(config: JobConfig) -> set[str]:
    """What a rank reads until its first step."""
    names = {name for name, _ in leaves_of(config)} | {"z.z"}
    with pytest.raises(RecipeError) as refused:
        train_on_ranks(config, 1, explicit=dict.fromkeys(names, "here"))
    lines = [line for line in str(refused.value).splitlines() if line.startswith("here: ")]
    unread = {line.removeprefix("here: ").split(" ")[0] for line in lines}
    assert "z.z" in unread
    return names - unread


def of_the_objectives() -> frozenset[str]:
    """What losses read in the middle of a step."""
    log = ReadLog()
    ones_T = torch.ones(4)
    stream = PolicyStream(
        mask_T=ones_T.bool(),
        sequence_T=torch.tensor([0, 0, 1, 1]),
        tokens_S=torch.tensor([2, 2]),
        advantage_T=torch.tensor([1.0, 1.0, -1.0, -1.0]),
        behave_T=-ones_T,
        proximal_T=-ones_T,
        reference_T=-ones_T,
    )
    counts = GlobalCounts(tokens=4, sequences=2, max_response_tokens=2, pairs=1)
    for kind in get_args(Kind):
        config = log.watch(ObjectiveConfig(kind=kind, kl_coefficient=0.1), "rl.objective.")
        if not config.learns_from_pairs:
            policy_loss(-ones_T.clone().requires_grad_(), stream, counts, config)
            continue
        pairs_P2 = torch.tensor([[0, 1]])
        pair_loss(-ones_T.clone().requires_grad_(), stream, pairs_P2, counts, config)
    return log.read


def of_the_driver(folder: Path) -> frozenset[str]:
    """What reserves, starts and judges."""
    log = ReadLog()
    rollout_means(log.watch(RolloutConfig(), "rollout."), 1.0)
    settings = RewardConfig(function="tests.cluster.rl.tasks:reward", workers=1)
    with RewardPool(
        log.watch(settings, "rl.reward."), path=[str(Path(__file__).parents[2])]
    ) as pool:
        (result,) = pool.score([RewardRequest(number=0, prompt="", completions=["ab", "c"])])
        assert result.rewards == (0.25, 0.125)
    questions = folder / "questions.jsonl"
    questions.write_text('{"prompt": "a", "answer": "b"}\n')
    for kind in ("arithmetic", "sorting", "countdown", "jsonl"):
        task = TaskConfig(kind=kind, path=str(questions))  # type: ignore[arg-type]
        build_task(log.watch(task, "rl.task."), seed=0)
    own = TaskConfig(kind="own", factory="tests.cluster.rl.tasks:Low")
    build_task(log.watch(own, "rl.task."), seed=0)
    return log.read


@pytest.mark.timeout(240)
def test_every_key_is_read_by_somebody(tmp_path: Path) -> None:
    plain = job(tmp_path, rl={}, rollout={"engine": EngineConfig(max_draft_tokens=2)})
    seed = ObjectiveConfig(kind="seed_grpo", kl_coefficient=0.1)
    compared = job(tmp_path / "b", rl={"objective": seed, "lr": 1e-3}, rollout={})
    every = {name for name, _ in leaves_of(plain) if name.startswith(("rl.", "rollout."))}
    read = of_the_ranks(plain) | of_the_objectives() | of_the_driver(tmp_path)
    for config in (plain, compared):
        found, lines = run_in_one_process(config)
        read |= found
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
        assert all("reward/mean" in line for line in lines[1:])
    assert every - read == set()
