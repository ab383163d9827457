"""Group filtering: who is trained on, and what is said of the others."""

import pytest

from trainer.rl.groups import Learning, Use, judge


def test_a_group_with_different_rewards_is_trained_on():
    assert judge(3, [0.0, 1.0], samples=2).use is Use.TRAINED


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_equal_rewards_teach_nothing(value):
    verdict = judge(3, [value] * 4, samples=4)
    assert verdict.use is Use.EQUAL
    assert verdict.reason == f"prompt 3: all rewards are {value:g}"


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        (None, "prompt 9: took longer than 2 s"),
        ([1.0], "prompt 9: 1 rewards for 2 samples"),
        ([1.0, float("nan")], "prompt 9: a reward is nan"),
        ([1.0, float("inf")], "prompt 9: a reward is inf"),
    ],
)
def test_a_group_without_usable_rewards_is_a_fault_with_a_reason(rewards, reason):
    verdict = judge(9, rewards, samples=2, fault="took longer than 2 s")
    assert (verdict.use, verdict.reason) == (Use.FAULT, reason)


def test_a_step_trains_on_its_useful_groups():
    groups = [[1.0, 1.0], [0.0, 1.0], None, [1.0, 0.0]]
    learning = Learning(tuple(judge(i, r, samples=2) for i, r in enumerate(groups)))
    assert learning.trained == (1, 3)
    assert learning.message == ""
    assert (learning.count(Use.EQUAL), learning.count(Use.FAULT)) == (1, 1)


def test_a_step_without_useful_groups_says_that_it_learned_nothing():
    groups = [[1.0, 1.0], [0.0, 0.0], None]
    learning = Learning(
        tuple(judge(i, r, samples=2, fault="it raised KeyError") for i, r in enumerate(groups))
    )
    assert learning.trained == ()
    assert "learned nothing: of 3 groups 2 have equal rewards and 1 no reward" in learning.message
    assert "it raised KeyError" in learning.message
    assert "no groups" in Learning(()).message
