"""The guarantees of trainer/numeric/policy.py."""

import math

import pytest

from trainer.numeric.config import NumericConfig
from trainer.numeric.history import History
from trainer.numeric.policy import Decision, Limits, Observation, decide

LIMITS = Limits(skipped_steps=2, rollbacks=1)
USUAL = History(losses=(2.0, 2.1) * 20, grad_norms=(1.0, 1.1) * 20)
HEALTHY = Observation(loss=2.05, grad_norm=1.0, finite=True, cause="")
SPIKE = Observation(loss=5.0, grad_norm=1.0, finite=True, cause="")
NAN = Observation(loss=2.0, grad_norm=math.nan, finite=False, cause="bad")


def become(
    seen: Observation, *, history: History = USUAL, skipped: int = 0, rolled: int = 0, **keys
) -> tuple[Decision, History]:
    return decide(
        NumericConfig(**keys), LIMITS, history, seen, skipped_in_row=skipped, rollbacks=rolled
    )


def test_healthy_steps_are_trained_on_and_remembered():
    decision, history = become(HEALTHY, on_spike="stop", on_nan="stop")
    assert decision == Decision(action="train")
    assert history.losses[-1] == 2.05


@pytest.mark.parametrize("action", ["skip", "rollback", "stop"])
def test_what_is_not_finite_never_reaches_the_weights(action):
    decision, history = become(NAN, on_nan=action)
    assert (decision.action, decision.fault, decision.cause) == (action, "nan", "bad")
    assert history == USUAL
    for wrong in ({"loss": math.inf}, {"loss": math.nan}, {"grad_norm": math.inf}):
        seen = Observation(**{"loss": 2.0, "grad_norm": 1.0, "finite": True, "cause": ""} | wrong)
        assert become(seen, on_nan=action)[0].action == action


@pytest.mark.parametrize("action", ["skip", "rollback", "stop"])
def test_a_spike_is_answered_as_the_recipe_says_and_leaves_no_trace(action):
    decision, history = become(SPIKE, on_spike=action)
    assert (decision.action, decision.fault) == (action, "spike")
    assert history == USUAL
    # The same numbers give the same decision, here and on any other rank.
    assert become(SPIKE, on_spike=action) == (decision, history)


def test_an_ignored_spike_is_told_and_becomes_part_of_what_is_usual():
    decision, history = become(SPIKE)
    assert (decision.action, decision.fault) == ("train", "spike")
    assert history.losses[-1] == 5.0
    assert become(SPIKE, history=history)[0].fault == "none"


def test_patience_counts_spikes_in_a_row():
    keys = {"on_spike": "rollback", "spike_patience_steps": 3}
    first, history = become(SPIKE, **keys)
    second, history = become(SPIKE, history=history, **keys)
    assert (first.action, second.action, history.spikes) == ("train", "train", 2)
    assert become(SPIKE, history=history, **keys)[0].action == "rollback"
    _, calm = become(HEALTHY, history=history, **keys)
    assert calm.spikes == 0
    assert become(SPIKE, history=calm, **keys)[0].action == "train"


def test_skips_in_a_row_are_bounded():
    assert become(NAN, skipped=1)[0].action == "skip"
    decision, _ = become(NAN, skipped=2)
    assert decision.action == "stop"
    assert "for 3 steps in a row (train.max_skipped_steps=2)" in decision.why


def test_rollbacks_are_bounded():
    assert become(SPIKE, on_spike="rollback")[0].action == "rollback"
    decision, _ = become(SPIKE, on_spike="rollback", rolled=1)
    assert decision.action == "stop"
    assert "after 1 rollbacks (numeric.max_rollbacks=1)" in decision.why
