"""Whether a lost worker that sampled is replaced. Pure decisions.

Guarantees, each asserted in tests/cluster/rl/test_losses.py:
- a fault that a new process cannot mend (recipe, data, resources) ends the run at once;
- one worker more than `rollout.max_restarts` ends it, and the story names each loss;
- workers lost one after the other without a single answer between them end it as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import ExitCode

MOST_IN_VAIN = 5
"""Losses in a row between which no prompt was answered."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One worker that is gone."""

    name: str
    host: str
    reason: str
    exit_code: ExitCode
    answered: int
    """Prompts that all workers together had answered in this start of the run."""


def refusal(losses: Sequence[Loss], max_restarts: int) -> str:
    """Why no worker takes the place of the last of `losses`; empty where one does."""
    newest = losses[-1]
    if newest.exit_code is not ExitCode.INFRASTRUCTURE:
        return newest.reason
    if len(losses) > max_restarts:
        return (
            f"{len(losses)} workers that sample were lost, and rollout.max_restarts is "
            f"{max_restarts}"
        )
    in_vain = [loss for loss in losses if loss.answered == newest.answered]
    if len(in_vain) > MOST_IN_VAIN:
        return f"{len(in_vain)} workers that sample were lost without an answer between them"
    return ""


def exit_code_of(losses: Sequence[Loss]) -> ExitCode:
    """What the run ends with after a refusal."""
    code = losses[-1].exit_code
    return ExitCode.WATCHDOG if code is ExitCode.INFRASTRUCTURE else code


def story(losses: Sequence[Loss], *, lines: int = 10) -> str:
    """The last losses, a line each, oldest first."""
    told = [f"{loss.name} on {loss.host}: {loss.reason}" for loss in losses[-lines:]]
    if len(losses) > lines:
        told.insert(0, f"{len(losses) - lines} earlier losses are in events.jsonl")
    return "\n".join(told)
