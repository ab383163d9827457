"""What the section refuses, and with what it may be combined."""

from dataclasses import replace

import pytest

from comms.compression.config import ReplicaConfig
from comms.config import CommsConfig
from parallel.config import ParallelConfig
from trainer.checkpoint.config import CheckpointConfig
from trainer.config import JobConfig
from trainer.numeric.config import NumericConfig
from trainer.numeric.rules import read_keys
from trainer.reads import ReadLog

BACK = NumericConfig(on_spike="rollback")


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"spike_deviations": 2.0}, "choose at least 3"),
        ({"spike_patience_steps": 0}, "must be at least 1"),
        ({"rollback_steps": 0}, "set on_nan and on_spike to skip"),
        ({"max_rollbacks": 51}, r"must lie in \[1, 50\]"),
        ({"max_rollbacks": 0}, "set on_nan and on_spike to stop"),
        ({"skip_steps": (3, 0)}, "counted from 1"),
    ],
)
def test_values_are_refused_with_the_remedy(keys, says):
    with pytest.raises(ValueError, match=says):
        NumericConfig(**keys)


@pytest.mark.parametrize(
    ("numeric", "others", "says"),
    [
        (NumericConfig(on_nan="rollback"), {"parallel": ParallelConfig(island=2)}, "on_nan=skip"),
        (BACK, {"parallel": ParallelConfig(island=2)}, "numeric.on_spike=ignore"),
        (NumericConfig(on_spike="skip"), {"parallel": ParallelConfig(island=2)}, "on_spike=ignore"),
        (NumericConfig(skip_steps=(3,)), {"parallel": ParallelConfig(island=2)}, r"steps=\[\]"),
        (
            BACK,
            {"comms": CommsConfig(replica=ReplicaConfig(method="powersgd"))},
            "set numeric.on_spike=skip, or comms.replica.method=none",
        ),
        (
            BACK,
            {"parallel": ParallelConfig(rebalance_interval_steps=5)},
            "parallel.rebalance_interval_steps=0",
        ),
        (BACK, {"checkpoint": CheckpointConfig(interval_steps=0)}, "interval_steps=20"),
        (
            BACK,
            {"checkpoint": CheckpointConfig(interval_steps=8, keep_last=2)},
            "set checkpoint.keep_last=4",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_nearest(numeric, others, says):
    with pytest.raises(ValueError, match=says):
        JobConfig(numeric=numeric, **others)


@pytest.mark.parametrize(
    ("numeric", "others"),
    [
        (NumericConfig(on_nan="stop"), {"parallel": ParallelConfig(island=2)}),
        (BACK, {"checkpoint": CheckpointConfig(interval_steps=8, keep_last=4)}),
        (BACK, {"checkpoint": CheckpointConfig(interval_steps=20, keep_last=2)}),
    ],
)
def test_the_nearest_is_accepted_as_it_is_and_one_less_is_not(numeric, others):
    job = JobConfig(numeric=numeric, **others)
    assert job.numeric == numeric
    assert {name: getattr(job, name) for name in others} == others
    if checkpoint := others.get("checkpoint"):
        fewer = replace(checkpoint, keep_last=checkpoint.keep_last - 1)
        with pytest.raises(ValueError, match=f"keep_last={checkpoint.keep_last}"):
            JobConfig(numeric=numeric, checkpoint=fewer)


def test_keys_without_effect_stay_unread():
    def unread(config: NumericConfig) -> set[str]:
        log = ReadLog()
        assert read_keys(log.watch(config), by_rewards=False) == config
        return {name for name in vars(config)} - log.read

    idle = {"spike_patience_steps", "rollback_steps", "max_rollbacks"}
    assert unread(NumericConfig()) == idle
    assert unread(replace(BACK, on_spike="skip")) == idle - {"spike_patience_steps"}
    assert unread(BACK) == set()
