from dataclasses import replace

import pytest

from parallel.config import ParallelConfig
from trainer.config import JobConfig, TrainConfig
from trainer.rl.config import RlConfig, RolloutConfig
from trainer.rl.objectives.config import ObjectiveConfig
from trainer.rl.tasks.config import TaskConfig

RL = RlConfig(enabled=True, max_prompt_tokens=100)
ROLLOUT = RolloutConfig(max_new_tokens=156)


@pytest.mark.parametrize(
    ("changes", "named", "remedy"),
    [
        ({"parallel": ParallelConfig(island=2)}, "parallel.island=2", "parallel.replica to 2"),
        ({"parallel": ParallelConfig(pp=2)}, "parallel.pp=2", "parallel.shard or parallel.tp"),
        (
            {"parallel": ParallelConfig(rebalance_interval_steps=5)},
            "rebalance_interval_steps=5",
            "set it to 0",
        ),
        (
            {
                "rl": replace(RL, objective=ObjectiveConfig(kind="dpo")),
                "parallel": ParallelConfig(sp="auto"),
            },
            "rl.objective.kind=dpo",
            "parallel.sp to 1",
        ),
        ({"rl": replace(RL, supervised_steps=100)}, "rl.supervised_steps=100", "raise train.steps"),
        ({"rl": replace(RL, overlong_tokens=157)}, "rl.overlong_tokens=157", "lower the former"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_what_can(changes, named, remedy):
    sections = {"rl": RL, "rollout": ROLLOUT, **changes}
    with pytest.raises(ValueError, match=r"rl\.|parallel\.") as refused:
        JobConfig(**sections)
    assert named in str(refused.value)
    assert remedy in str(refused.value)
    without = {**sections, "rl": replace(sections["rl"], enabled=False)}
    assert JobConfig(**without).rl.enabled is False


def test_a_whole_answer_fits_the_context_and_the_ranks():
    train = TrainConfig(max_tokens_per_device=512)
    turns = replace(RL, task=TaskConfig(max_turns=3))
    assert JobConfig(rl=RL, rollout=ROLLOUT, train=train)
    with pytest.raises(ValueError, match=r"rl\.task\.max_turns=3 make episodes of 568 tokens"):
        JobConfig(rl=turns, rollout=ROLLOUT, train=train)
    assert JobConfig(rl=turns, rollout=ROLLOUT, train=train, parallel=ParallelConfig(sp=2))
    with pytest.raises(ValueError, match=r"model\.max_context_tokens"):
        JobConfig(rl=RL, rollout=replace(ROLLOUT, max_new_tokens=100_000))
