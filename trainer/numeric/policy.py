"""What becomes of a step, from what all ranks of it know. Pure: neither torch nor ray.

Guarantees, each asserted in tests/trainer/numeric/test_policy.py:
- the same recipe, history and observation give the same decision on every rank and in every start;
- loss or gradients that are not finite never reach the weights;
- what is skipped or rolled back leaves no trace in the history;
- steps skipped in a row, and rollbacks of the whole run, are bounded; then the run ends.
"""

import math
from dataclasses import dataclass
from typing import Literal

from trainer.numeric.config import NumericConfig
from trainer.numeric.history import History, spike_cause

Action = Literal["train", "skip", "rollback", "stop"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When it is enough."""

    skipped_steps: int
    """In a row."""

    rollbacks: int
    """Of the whole run."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A step before its update, as its vote says it."""

    loss: float
    grad_norm: float
    finite: bool
    """Whether everything that was voted on is."""

    cause: str
    """Where it is not: what, and on which ranks."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is done."""

    action: Action
    fault: Literal["none", "nan", "spike"] = "none"
    cause: str = ""
    why: str = ""
    """Of `stop`: which limit was met, and what to do."""


def decide(
    config: NumericConfig,
    limits: Limits,
    history: History,
    seen: Observation,
    *,
    skipped_in_row: int,
    rollbacks: int,
) -> tuple[Decision, History]:
    """What becomes of the step, and the history after it. A rollback replaces the history by that
    of the state it goes back to."""
    if not seen.finite or not (math.isfinite(seen.loss) and math.isfinite(seen.grad_norm)):
        decision = Decision(action=config.on_nan, fault="nan", cause=seen.cause)
        return _bounded(decision, limits, skipped_in_row, rollbacks), history
    cause = spike_cause(history, seen.loss, seen.grad_norm, deviations=config.spike_deviations)
    if cause is None:
        return Decision(action="train"), history.adding(seen.loss, seen.grad_norm)
    if config.on_spike == "ignore":
        decision = Decision(action="train", fault="spike", cause=cause)
        return decision, history.adding(seen.loss, seen.grad_norm)
    if history.spikes + 1 < config.spike_patience_steps:
        return Decision(action="train", fault="spike", cause=cause), history.after_spike()
    decision = Decision(action=config.on_spike, fault="spike", cause=cause)
    return _bounded(decision, limits, skipped_in_row, rollbacks), history


def _bounded(decision: Decision, limits: Limits, skipped_in_row: int, rollbacks: int) -> Decision:
    remedy = "Lower optim.lr, raise sched.warmup_steps, or look at the data of these steps."
    why = ""
    if decision.action == "stop":
        key = "on_nan" if decision.fault == "nan" else "on_spike"
        why = f"numeric.{key}=stop. {remedy}"
    elif decision.action == "skip" and skipped_in_row + 1 > limits.skipped_steps:
        why = (
            f"for {skipped_in_row + 1} steps in a row (train.max_skipped_steps="
            f"{limits.skipped_steps}). {remedy}"
        )
    elif decision.action == "rollback" and rollbacks + 1 > limits.rollbacks:
        why = f"after {rollbacks} rollbacks (numeric.max_rollbacks={limits.rollbacks}). {remedy}"
    if not why:
        return decision
    return Decision(action="stop", fault=decision.fault, cause=decision.cause, why=why)
