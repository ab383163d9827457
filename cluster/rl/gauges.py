"""Figures of steps by rewards as Ray metrics, which Ray exports to Prometheus."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

_GAUGES = {
    "reward/mean": ("rl_reward_mean", "Mean reward of the step's answers."),
    "accuracy": ("rl_accuracy", "Share of answers with full reward, dropped groups included."),
    "response_length/mean": ("rl_response_tokens", "Mean length of the step's answers."),
    "staleness/mean": ("rl_staleness_mean", "Mean updates between an answer and its step."),
    "staleness/max": ("rl_staleness_max", "Most updates between an answer and its step."),
    "weights_version": ("rl_weights_version", "Steps by rewards that the weights have seen."),
    "timing_s/rollout_wait": ("rl_rollout_wait_seconds", "Idle time of sampling workers a step."),
    "timing_s/trainer_wait": ("rl_trainer_wait_seconds", "Time that training waited for answers."),
    "rollout/tokens_per_s": (
        "rl_rollout_tokens_per_sec",
        "Tokens sampled per second, all workers.",
    ),
    "publish/seconds": ("rl_publish_seconds", "Time until all workers had the newest weights."),
    "groups/dropped_equal": ("rl_groups_equal", "Prompts left out: all rewards were equal."),
    "groups/faults": ("rl_groups_faults", "Prompts left out: their reward failed."),
}


def gauge_values(record: Mapping[str, Any]) -> dict[str, float]:
    """Values of the gauges that a line of metrics.jsonl has figures for."""
    return {name: float(record[key]) for key, (name, _) in _GAUGES.items() if key in record}


class RewardGauges:
    """Gauges of the newest step. Needs a process that is connected to Ray."""

    def __init__(self, *, run: str, project: str) -> None:
        tags = {"run": run, "project": project, "role": "conductor"}
        self.gauges = {
            name: Gauge(name, description=text, tag_keys=tuple(tags))
            for name, text in _GAUGES.values()
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags(tags)

    def write(self, record: Mapping[str, Any]) -> None:
        """Set what the step has figures for; Ray exports it in the background."""
        for name, value in gauge_values(record).items():
            self.gauges[name].set(value)
