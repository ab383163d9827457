"""Rules of the sections `rl` and `rollout`, each with its remedy."""

import pytest

from trainer.rl.config import RlConfig, RolloutConfig


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"prompts_per_step": 0}, "rl.prompts_per_step=0 must be positive"),
        ({"supervised_steps": -1}, "rl.supervised_steps=-1 must not be negative"),
        ({"lr": 0.0}, "rl.lr=0.0 must be positive, or null"),
        ({"final_lr_ratio": 1.5}, r"rl.final_lr_ratio=1.5 must lie in \[0, 1\]"),
        ({"samples_per_prompt": 1}, "choose at least 2"),
    ],
)
def test_rules_of_learning(keys, said):
    with pytest.raises(ValueError, match=said):
        RlConfig(**keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"temperature": 0.0}, "rollout.temperature=0.0 must be positive"),
        ({"workers": 0}, "leave nobody to sample"),
        ({"top_p": 1.5}, r"rollout.top_p=1.5 must lie in \(0, 1\]"),
        ({"stop": ("",)}, "empty text"),
        ({"max_restarts": -1}, "rollout.max_restarts=-1 must not be negative"),
    ],
)
def test_rules_of_sampling(keys, said):
    with pytest.raises(ValueError, match=said):
        RolloutConfig(**keys)
