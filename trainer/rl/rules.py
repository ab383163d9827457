"""Pure: what learning by rewards cannot be combined with, and what can instead.

Guarantees, each asserted in tests/trainer/rl/test_rules.py:
- a run without rewards is never refused;
- whatever is refused is named with its value, and with the nearest setting that works;
- an answer of full length fits the model's context and the ranks that train on it.
"""

from dataclasses import dataclass

from parallel.config import ParallelConfig
from trainer.data.config import DataConfig
from trainer.rl.config import RlConfig, RolloutConfig


@dataclass(frozen=True, kw_only=True)
class Around:
    """The other sections, as far as learning by rewards depends on them."""

    steps: int
    max_tokens_per_device: int
    max_context_tokens: int | None
    """None where a model folder says."""

    data: DataConfig
    parallel: ParallelConfig


def rewards_problem(rl: RlConfig, rollout: RolloutConfig, around: Around) -> str | None:
    """What is wrong, with its remedy; None where nothing is."""
    if not rl.enabled:
        return None
    return (
        _steps_problem(rl, around)
        or _layout_problem(rl, around.parallel)
        or _length_problem(rl, rollout, around)
    )


def max_response_tokens(rl: RlConfig, rollout: RolloutConfig) -> int:
    """Most tokens that can be sampled in one episode."""
    return rollout.max_new_tokens * rl.task.max_turns


def _steps_problem(rl: RlConfig, around: Around) -> str | None:
    if rl.supervised_steps < around.steps:
        return None
    return (
        f"rl.supervised_steps={rl.supervised_steps} leaves no step of train.steps={around.steps} "
        "to learn by rewards; raise train.steps, or set rl.enabled to false"
    )


def _layout_problem(rl: RlConfig, parallel: ParallelConfig) -> str | None:
    if parallel.island > 1:
        return (
            f"parallel.island={parallel.island} keeps several versions of the weights at a time, "
            "and rollout workers sample with one; set parallel.island to 1 and parallel.replica "
            f"to {parallel.island}"
        )
    if parallel.pp not in (1, "auto"):
        return (
            f"parallel.pp={parallel.pp} has rounds of its own, which take no rewards; set "
            f"parallel.pp to 1 and parallel.shard or parallel.tp to {parallel.pp}"
        )
    if parallel.rebalance_interval_steps:
        return (
            f"parallel.rebalance_interval_steps={parallel.rebalance_interval_steps} moves experts "
            "between ranks, while rollout workers are given them from where they were; set it to 0"
        )
    if rl.objective.learns_from_pairs and parallel.sp != 1:
        return (
            f"rl.objective.kind={rl.objective.kind} compares whole answers on one rank, but "
            f"parallel.sp={parallel.sp} cuts them over several; set parallel.sp to 1"
        )
    return None


def _length_problem(rl: RlConfig, rollout: RolloutConfig, around: Around) -> str | None:
    if rl.overlong_tokens > rollout.max_new_tokens:
        return (
            f"rl.overlong_tokens={rl.overlong_tokens} is more than rollout.max_new_tokens="
            f"{rollout.max_new_tokens}, the longest answer; lower the former"
        )
    longest = rl.max_prompt_tokens + max_response_tokens(rl, rollout)
    keys = (
        f"rl.max_prompt_tokens={rl.max_prompt_tokens} and rollout.max_new_tokens="
        f"{rollout.max_new_tokens}"
    )
    if rl.task.max_turns > 1:
        keys += f" in rl.task.max_turns={rl.task.max_turns}"
    context = around.max_context_tokens
    if context is not None and longest > context:
        return (
            f"{keys} make episodes of {longest} tokens, but model.max_context_tokens={context}; "
            "raise the latter, or lower one of the former"
        )
    together = around.parallel.sp
    if together == "auto":
        return None
    room = around.max_tokens_per_device * together
    if longest > room:
        return (
            f"{keys} make episodes of {longest} tokens, but train.max_tokens_per_device="
            f"{around.max_tokens_per_device} with parallel.sp={together} holds {room}; raise the "
            "latter, or lower one of the former"
        )
    return None
