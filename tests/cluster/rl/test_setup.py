"""A whole run by rewards, as `braid run` does it: real ranks, real workers that sample."""

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.drills.prompts import lost_prompts
from cluster.rl.state import read_state
from tests.cluster.runs import kill, run, when
from tests.jobs import tiny_job
from tests.left import events, metrics
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig, OptimConfig, RunConfig, TrainConfig
from trainer.errors import ExitCode
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.rewards.config import RewardConfig
from trainer.rl.tasks.config import TaskConfig
from trainer.run_folder import RunFolder

HERE = ClusterConfig(address="auto", num_workers=1, cpus_per_worker=0.5)
STEPS = 40
"""Some of them after the second fault, however late it comes."""


def job(
    folder: Path, name: str, *, steps: int = STEPS, task: str = "Low", workers: int = 1, **rl: Any
) -> JobConfig:
    tiny = tiny_job(folder)
    return replace(
        tiny,
        run=RunConfig(name=name, dir=str(folder / "runs")),
        model=replace(tiny.model, moe=None),
        data=replace(tiny.data, source="task", tokenizer="bytes", task_questions=64),
        train=TrainConfig(steps=steps, global_batch_tokens=4 * 48, max_tokens_per_device=192),
        optim=OptimConfig(lr=1e-3),
        checkpoint=CheckpointConfig(interval_steps=8),
        rl=RlConfig(
            enabled=True,
            supervised_steps=1,
            lr=2e-2,
            prompts_per_step=4,
            samples_per_prompt=4,
            max_prompt_tokens=8,
            task=TaskConfig(kind="own", factory=f"tests.cluster.rl.tasks:{task}"),
            **rl,
        ),
        rollout=RolloutConfig(
            workers=workers,
            colocated_workers=0 if workers else 1,
            cpus_per_worker=0.5,
            max_new_tokens=8,
        ),
    )


@pytest.mark.timeout(300)
def test_it_learns_while_a_rank_and_a_worker_are_killed(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    learning = job(
        tmp_path,
        "learning",
        reward=RewardConfig(function="tests.cluster.rl.tasks:reward", workers=1),
    )
    threads = [
        when(lambda: len(view.steps) >= 6, kill(learning, "rollout-0")),
        when(lambda: len(view.steps) >= 14, kill(learning, 0)),
    ]
    assert run(learning, view, HERE) is ExitCode.DONE, view.failures
    for thread in threads:
        thread.join()

    lines = metrics(learning)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert "reward/mean" not in lines[0]
    rewards = [line["reward/mean"] for line in lines[1:]]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2
    assert all(line["staleness/max"] <= learning.rl.max_staleness for line in lines[1:])
    # What is sampled from is what is trained: bf16 or older weights would show here.
    fresh = [line for line in lines[1:] if line["staleness/max"] == 0]
    assert all(abs(line.get("trust/kernel", 0.0)) < 1e-3 for line in fresh)
    # One update may change much at this learning rate, most change little.
    assert median(abs(line.get("trust/version", 0.0)) for line in lines[1:]) < 0.5
    assert len(events(learning, "rollout_lost")) == 1
    assert len(events(learning, "worker_lost")) == 1

    state = read_state(RunFolder.of(learning.run))
    assert state is not None
    trained = [r for r in state["ledger"]["records"] if r["state"] == "trained"]
    numbers = [record["number"] for record in trained]
    assert len(numbers) == len(set(numbers))
    assert lost_prompts(state["ledger"]) == 0
    assert view.endings[0]["step"] == STEPS


@pytest.mark.timeout(600)
def test_a_rank_gives_its_place_to_those_who_sample(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    slow = job(tmp_path, "slow", steps=36, task="SlowLow", resize="apply")
    # Who knows the task before the last step has no groups left to learn from.
    slow = replace(slow, rl=replace(slow.rl, lr=1e-4))
    assert run(slow, view, replace(HERE, num_workers=2)) is ExitCode.DONE, view.failures

    lines = metrics(slow)
    # No step is lost for it, none is trained twice, and each has all that it shall have.
    assert [line["step"] for line in lines] == list(range(1, 37))
    assert {line["groups/trained"] for line in lines[1:]} == {4.0}
    assert [len(event["ranks"]) for event in events(slow, "ranks_started")] == [2, 1]
    (resized,) = events(slow, "resized")
    assert (resized["trainers"], resized["workers"]) == (1, 2)
    assert resized["step_s"] < 0.7 * resized["present_s"]
    assert "rollout workers 2 a step should take" in resized["cause"]
    assert events(slow, "rollout_lost") == []


@pytest.mark.timeout(120)
def test_one_that_shares_the_place_of_a_rank_samples_and_says_why_it_stays(
    local_cluster: None, tmp_path: Path, view: Any
) -> None:
    shared = job(tmp_path, "shared", steps=5, workers=0, resize="apply")
    assert run(shared, view, HERE) is ExitCode.DONE, view.failures
    assert [e["worker"] for e in events(shared, "rollout_started")] == ["rollout-0"]
    assert [step["step"] for step in view.steps] == [1, 2, 3, 4, 5]
    assert "rollout.colocated_workers=1" in events(shared, "resize_refused")[0]["cause"]
