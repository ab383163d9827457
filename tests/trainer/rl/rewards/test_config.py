"""Reward settings that cannot be are refused."""

import pytest

from trainer.rl.rewards.config import RewardConfig


@pytest.mark.parametrize("function", ["", "rewards:score", "my.rewards:score_all"])
def test_functions_are_named_by_module(function):
    assert RewardConfig(function=function).function == function


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"function": "rewards.score"}, "must be module:function"),
        ({"function": "rewards:score; import os"}, "must be module:function"),
        ({"workers": 0}, r"rl\.reward\.workers=0 must be positive"),
        ({"time_limit_s": -1.0}, r"rl\.reward\.time_limit_s=-1\.0 must be positive"),
        ({"memory_bytes": 1000}, "too little for an interpreter"),
    ],
)
def test_impossible_settings_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        RewardConfig(**wrong)
